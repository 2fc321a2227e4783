"""Makes fixtures/peers: random tiny models of each family, and what transformers answers.

    pip install ".[test-peers]" && python tests/make_peer_fixtures.py

Each `<name>.npz` holds `config` (JSON, as written below), `saved_config` (JSON, as transformers
saves it), `ids` [T], `logits` [T, V] float32, and the weights by HuggingFace name in float16,
so that the comparison needs neither torch nor transformers.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tiny_models import random_ids, random_weights

PEERS = Path(__file__).parent / "fixtures" / "peers"
N_TOKENS = 48

TINY: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 50,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama_linear_rope": {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "llama3_rope": {
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
    "llama_bias": {"attention_bias": True, "mlp_bias": True},
    "llama_head_dim": {"num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 14},
    "mistral": {"model_type": "mistral", "sliding_window": 11},
    "qwen2": {"model_type": "qwen2", "rms_norm_eps": 1e-6, "rope_theta": 1e6},
    "qwen2_window": {
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 13,
        "max_window_layers": 0,
    },
    "smollm2": {
        "hidden_size": 36,
        "intermediate_size": 48,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "rope_theta": 100000.0,
        "tie_word_embeddings": True,
    },
}


def transformers_answer(
    config: Mapping[str, Any], weights: Mapping[str, NDArray[Any]], ids: NDArray[Any]
) -> tuple[dict[str, Any], NDArray[np.float32]]:
    """The config as transformers saves it, and its logits [T, V] in float32."""
    import torch
    import transformers

    settings = copy.deepcopy(dict(config))  # transformers writes into it
    del settings["model_type"]
    hf_config = transformers.AutoConfig.for_model(config["model_type"], **settings)
    model = transformers.AutoModelForCausalLM.from_config(
        hf_config, attn_implementation="eager", dtype=torch.float32
    )
    tensors = {name: torch.from_numpy(np.array(x, np.float32)) for name, x in weights.items()}
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    tied = ["lm_head.weight"] if config["tie_word_embeddings"] else []
    if unexpected or list(missing) not in ([], tied):
        raise ValueError(f"transformers misses {missing} and does not know {unexpected}")
    model.tie_weights()
    model.eval()
    with torch.no_grad():
        logits = model(input_ids=torch.from_numpy(np.array(ids, np.int64))[None]).logits[0]
    saved: dict[str, Any] = json.loads(hf_config.to_json_string())
    return saved, logits.numpy().astype(np.float32)


def main() -> None:
    PEERS.mkdir(parents=True, exist_ok=True)
    for seed, (name, changes) in enumerate(FAMILIES.items(), start=70):
        config = {**TINY, **changes}
        weights = {k: x.astype(np.float16) for k, x in random_weights(config, seed).items()}
        ids = random_ids(config, N_TOKENS, seed)
        saved, logits = transformers_answer(config, weights, ids)
        arrays: dict[str, Any] = {
            "config": np.array(json.dumps(config)),
            "saved_config": np.array(json.dumps(saved)),
            "ids": ids.astype(np.int32),
            "logits": logits,
            **weights,
        }
        np.savez_compressed(PEERS / f"{name}.npz", **arrays)


if __name__ == "__main__":
    main()
