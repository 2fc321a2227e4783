"""Models of known shapes with random weights, some layers of them: speed depends on shapes alone.

``made:NAME:LAYERS`` names one, for instance ``made:llama3-8b:2``. Its vocabulary is as much smaller
as it has fewer layers, so that every part of a token's cost shrinks alike: the whole model takes
``layers of the whole / LAYERS`` times as long.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

PREFIX = "made:"

_LLAMA = {"model_type": "llama", "rms_norm_eps": 1e-5}
SHAPES: dict[str, dict[str, Any]] = {
    "smollm2-135m": {
        **_LLAMA,
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "rope_theta": 100000.0,
        "tie_word_embeddings": True,
    },
    "llama3-8b": {
        **_LLAMA,
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
    },
    "tiny": {
        **_LLAMA,
        "vocab_size": 256,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "tie_word_embeddings": True,
    },
}


def is_made(model: str) -> bool:
    """Whether ``model`` names one of these, and no file."""
    return model.startswith(PREFIX)


def split(model: str) -> tuple[str, int]:
    """Name and number of layers of ``made:NAME:LAYERS``. Raises ValueError saying what is wrong."""
    name, _, layers = model.removeprefix(PREFIX).partition(":")
    if name not in SHAPES:
        raise ValueError(f"shapes are {', '.join(SHAPES)}, not {name!r}")
    most = SHAPES[name]["num_hidden_layers"]
    if not layers.isdigit() or not 1 <= int(layers) <= most:
        raise ValueError(f"{name} has 1 to {most} layers, not {layers!r}: made:{name}:2")
    return name, int(layers)


def share(model: str) -> float:
    """The part of the whole model that ``model`` is."""
    name, layers = split(model)
    return layers / float(SHAPES[name]["num_hidden_layers"])


def config_of(model: str) -> dict[str, Any]:
    """The keys of its ``config.json``."""
    name, layers = split(model)
    vocabulary = max(64, round(SHAPES[name]["vocab_size"] * share(model)))
    return {**SHAPES[name], "num_hidden_layers": layers, "vocab_size": vocabulary}


def weights_of(model: str) -> dict[str, NDArray[Any]]:
    """HuggingFace names to arrays: matrices [out, in] as bits of bfloat16 (uint16), norms float32.

    The numbers of one pool come again and again: a gigabyte is filled in a second.
    """
    config = config_of(model)
    hidden, inner, dim = (config[n] for n in ("hidden_size", "intermediate_size", "head_dim"))
    q, kv = (config[f"num_{n}_heads"] * dim for n in ("attention", "key_value"))
    normal = np.random.default_rng(7).standard_normal((1 << 20) + 7, dtype=np.float32)
    pool = ((0.02 * normal).view(np.uint32) >> 16).astype(np.uint16)
    matrices = {
        "self_attn.q_proj": (q, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, q),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    tables = ["model.embed_tokens", *([] if config["tie_word_embeddings"] else ["lm_head"])]
    weights = {f"{t}.weight": np.resize(pool, (config["vocab_size"], hidden)) for t in tables}
    ones = np.ones(hidden, np.float32)
    weights["model.norm.weight"] = ones
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{prefix}.{name}.weight"] = ones
        for name, shape in matrices.items():
            weights[f"{prefix}.{name}.weight"] = np.resize(pool, shape)
    return weights
