"""Tiny models as the extension itself takes them, without the package's Python around it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tiny_models import random_ids, random_weights

from quickllama import _core

Floats = NDArray[np.float32]

CONFIG: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
MEMORY: dict[str, Any] = {
    "mode": "qllm",
    "n_init": 4,
    "n_local": 32,
    "block_size": 8,
    "topk": 2,
    "repr_topk": 2,
    "exc_block_size": 16,
    "lookup_interval": 1,
    "question_weight": 1.0,
    "keep_query_tokens": False,
    "mask": "exact",
    "kv_dtype": "float32",
}
EXC = MEMORY["exc_block_size"]
MODES = ("full", "stream", "infinite", "infllm", "qllm")


def core_config(config: Mapping[str, Any] = CONFIG) -> dict[str, Any]:
    """The table that the core takes, from HuggingFace's names."""
    bias = config.get("attention_bias", False)
    return {
        **{name: config[name] for name in CONFIG},
        "rms_norm_eps": config.get("rms_norm_eps", 1e-5),
        "rope_theta": config.get("rope_theta", 10000.0),
        "rope_type": "default",
        "rope_factor": 1.0,
        "rope_low_freq_factor": 1.0,
        "rope_high_freq_factor": 4.0,
        "rope_original_max_position": 8192,
        "sliding_window": 0,
        "qkv_bias": bias,
        "o_bias": bias,
        "mlp_bias": config.get("mlp_bias", False),
        "tie_word_embeddings": config.get("tie_word_embeddings", False),
    }


def tensors(weights: Mapping[str, Any]) -> Iterator[tuple[str, Any, str, tuple[int, ...]]]:
    """float32 arrays as the core takes them."""
    return ((name, array, "float32", array.shape) for name, array in weights.items())


def core_model(
    config: Mapping[str, Any] = CONFIG,
    weights: Mapping[str, Any] | None = None,
    *,
    seed: int = 0,
    dtype: str = "float32",
    n_threads: int = 1,
) -> _core.Model:
    """A model of random weights, or of those given."""
    given = random_weights(config, seed) if weights is None else weights
    return _core.Model(core_config(config), tensors(given), dtype, n_threads)


def core_session(model: _core.Model, **changes: Any) -> _core.Session:
    """A session with the settings of MEMORY, unless changed."""
    return _core.Session(model, **{**MEMORY, **changes})


def ids(count: int, seed: int = 1) -> NDArray[np.int64]:
    """Token ids [count] of the vocabulary of CONFIG."""
    return random_ids(CONFIG, count, seed)
