"""Random tiny models: a config by HuggingFace names, and weights drawn from a seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def shapes(config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every tensor of a model: HuggingFace name and shape, [out, in] for matrices."""
    hidden, inner, vocab = (
        config[name] for name in ("hidden_size", "intermediate_size", "vocab_size")
    )
    dim = config.get("head_dim") or hidden // config["num_attention_heads"]
    q, kv = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    attention_bias = config.get("attention_bias", False)
    linears = {
        "self_attn.q_proj": (q, hidden, attention_bias or config.get("model_type") == "qwen2"),
        "self_attn.k_proj": (kv, hidden, attention_bias or config.get("model_type") == "qwen2"),
        "self_attn.v_proj": (kv, hidden, attention_bias or config.get("model_type") == "qwen2"),
        "self_attn.o_proj": (hidden, q, attention_bias),
        "mlp.gate_proj": (inner, hidden, config.get("mlp_bias", False)),
        "mlp.up_proj": (inner, hidden, config.get("mlp_bias", False)),
        "mlp.down_proj": (hidden, inner, config.get("mlp_bias", False)),
    }
    yield "model.embed_tokens.weight", (vocab, hidden)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        yield f"{prefix}.input_layernorm.weight", (hidden,)
        yield f"{prefix}.post_attention_layernorm.weight", (hidden,)
        for name, (n_out, n_in, has_bias) in linears.items():
            yield f"{prefix}.{name}.weight", (n_out, n_in)
            if has_bias:
                yield f"{prefix}.{name}.bias", (n_out,)
    yield "model.norm.weight", (hidden,)
    if not config.get("tie_word_embeddings", False):
        yield "lm_head.weight", (vocab, hidden)


def random_weights(config: Mapping[str, Any], seed: int) -> dict[str, Floats]:
    """Weights that give attention something to prefer and every bias an effect."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in shapes(config):
        values = rng.standard_normal(shape)
        if name.endswith("norm.weight"):
            values = 1 + 0.2 * values
        elif name.endswith("bias"):
            values = 0.3 * values
        elif "q_proj" in name or "k_proj" in name:
            values = values * 1.6 / np.sqrt(shape[-1])
        elif name != "model.embed_tokens.weight" or config.get("tie_word_embeddings", False):
            values = values / np.sqrt(shape[-1])
        weights[name] = values.astype(np.float32)
    return weights


def random_ids(config: Mapping[str, Any], count: int, seed: int) -> NDArray[np.int64]:
    """Token ids [count]."""
    return np.random.default_rng(seed).integers(0, config["vocab_size"], count)
