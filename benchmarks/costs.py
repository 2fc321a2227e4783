"""What a token costs: operations and bytes, from the model's configuration alone."""

from __future__ import annotations

from quickllama import MemoryConfig, ModelConfig

ITEM_BYTES = {"float32": 4, "bfloat16": 2}


def linear_parameters(config: ModelConfig) -> int:
    """Weights that every token is multiplied with: all but embeddings and head."""
    tables = 1 if config.tie_word_embeddings else 2
    return config.parameters - tables * config.vocab_size * config.hidden_size


def keys_while_reading(memory: MemoryConfig) -> float:
    """Keys that a query sees in the steady state, on average: first tokens, window, retrieved
    blocks, and the remainder of its chunk (all of it with the authors' mask)."""
    chunk = memory.exc_block_size
    remainder = chunk * 1.5 if memory.mask == "authors" else (chunk + 1) / 2
    return memory.n_init + memory.n_local + memory.topk * memory.block_size + remainder


def keys_while_decoding(memory: MemoryConfig, n_tokens: int) -> float:
    """Keys that a new token sees after ``n_tokens`` tokens: on average half a block waits."""
    full = memory.n_init + memory.n_local + memory.topk * memory.block_size
    return min(n_tokens, full + (memory.block_size - 1) / 2)


def flops_of_reading(config: ModelConfig, n_keys: float) -> tuple[float, float]:
    """Operations for one token that sees ``n_keys`` keys, in linear layers and in attention: 2 for
    each weight; 4 for each key, query head and dimension. The head counts for one token of a call
    only, and is left out."""
    width = config.num_attention_heads * config.head_dim
    return 2 * linear_parameters(config), 4 * width * config.num_hidden_layers * n_keys


def flops_of_skimming(
    config: ModelConfig, memory: MemoryConfig, layers: int
) -> tuple[float, float]:
    """The same for a session that skims with ``layers`` layers: of the last one only queries and
    keys, no attention; first tokens and window are all that a query sees."""
    linear, attention = flops_of_reading(config, memory.n_init + memory.n_local)
    heads = config.num_attention_heads + config.num_key_value_heads
    part = (layers - 1) / config.num_hidden_layers
    return linear * part + 2 * config.hidden_size * heads * config.head_dim, attention * part


def bytes_of_decoding(
    config: ModelConfig, memory: MemoryConfig, n_tokens: int, held: float, kv_dtype: str
) -> float:
    """Bytes read for one new token: weights with the head, keys and values seen, block vectors.

    ``held``: bytes of all weights as the model holds them; embeddings that are no head are not
    read, and taken to be held like the rest."""
    embedding = 0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size
    weights = held * (1 - embedding / config.parameters)
    layers, dim, item = config.num_hidden_layers, config.head_dim, ITEM_BYTES[kv_dtype]
    keys = keys_while_decoding(memory, n_tokens)
    pairs = 2 * layers * config.num_key_value_heads * dim * keys
    waiting = memory.n_init + memory.n_local
    blocks = max(0, n_tokens - waiting) / memory.block_size
    vectors = layers * config.num_attention_heads * dim * blocks
    vectors /= memory.lookup_interval
    return weights + (pairs + vectors) * item
