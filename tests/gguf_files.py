"""GGUF files made by hand, byte by byte, so that they can also lie."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
TYPE_F32, TYPE_F16, TYPE_Q8_0, TYPE_BF16 = 0, 1, 8, 30


def u32(value: int) -> bytes:
    """Four bytes."""
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    """Eight bytes."""
    return struct.pack("<Q", value)


def string(text: str | bytes) -> bytes:
    """A string with its length before it."""
    data = text.encode() if isinstance(text, str) else text
    return u64(len(data)) + data


def array(kind: int, payload: bytes, count: int) -> bytes:
    """An array's value, without the type ARRAY before it."""
    return u32(kind) + u64(count) + payload


def strings(texts: Sequence[str | bytes]) -> bytes:
    """A value of type array of strings, its type included."""
    return u32(ARRAY) + array(STRING, b"".join(map(string, texts)), len(texts))


def number(value: int | float | bool | str) -> bytes:
    """A scalar value, its type included."""
    if isinstance(value, bool):
        return u32(BOOL) + bytes([value])
    if isinstance(value, int):
        return u32(U32) + u32(value)
    if isinstance(value, float):
        return u32(F32) + struct.pack("<f", value)
    return u32(STRING) + string(value)


@dataclass(frozen=True)
class Stored:
    """A tensor of a file: GGUF's dimensions (the last one first), type, bytes."""

    dimensions: tuple[int, ...]
    kind: int
    data: bytes


def assemble(
    metadata: Mapping[str, bytes],
    tensors: Mapping[str, Stored],
    *,
    version: int = 3,
    alignment: int = 32,
    n_tensors: int | None = None,
    n_entries: int | None = None,
    offsets: Mapping[str, int] | None = None,
) -> bytes:
    """A file; ``metadata``: key to a value with its type. The last three are for lies."""
    head = b"GGUF" + u32(version)
    head += u64(len(tensors) if n_tensors is None else n_tensors)
    head += u64(len(metadata) if n_entries is None else n_entries)
    head += b"".join(string(key) + value for key, value in metadata.items())
    data = b""
    for name, tensor in tensors.items():
        data += b"\0" * (-len(data) % alignment)
        offset = (offsets or {}).get(name, len(data))
        head += string(name) + u32(len(tensor.dimensions))
        head += b"".join(map(u64, tensor.dimensions)) + u32(tensor.kind) + u64(offset)
        data += tensor.data
    return head + b"\0" * (-len(head) % alignment) + data


def random_tensor(rng: np.random.Generator, shape: tuple[int, ...], kind: int) -> Stored:
    """A tensor of HuggingFace's ``shape`` with finite random values."""
    if kind == TYPE_Q8_0:
        blocks = rng.integers(0, 256, (*shape[:-1], shape[-1] // 32, 34), np.uint8)
        blocks[..., :2] = rng.random((*blocks.shape[:-1], 1)).astype(np.float16).view(np.uint8)
        data = blocks.tobytes()
    elif kind == TYPE_BF16:
        data = (
            (rng.standard_normal(shape, np.float32).view(np.uint32) >> 16).astype("<u2").tobytes()
        )
    else:
        dtype = "<f2" if kind == TYPE_F16 else "<f4"
        data = rng.standard_normal(shape).astype(dtype).tobytes()
    return Stored(shape[::-1], kind, data)


HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INNER, VOCAB = 32, 4, 2, 8, 64, 6


def tiny_metadata(architecture: str = "llama") -> dict[str, bytes]:
    """Metadata of a model of one layer."""
    own = {
        "context_length": 128,
        "embedding_length": HIDDEN,
        "block_count": 1,
        "feed_forward_length": INNER,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": 10000.0,
    }
    return {
        "general.architecture": number(architecture),
        **{f"{architecture}.{key}": number(value) for key, value in own.items()},
        "tokenizer.ggml.tokens": strings(["a", "é", "", "d", "e", "f"]),
        "tokenizer.ggml.token_type": u32(ARRAY) + array(I32, b"\1\0\0\0" * VOCAB, VOCAB),
        "tokenizer.ggml.bos_token_id": number(1),
        "tokenizer.ggml.eos_token_id": number(2),
    }


def tiny_tensors(biases: Sequence[str] = (), seed: int = 0) -> dict[str, Stored]:
    """Tensors of that model: matrices in Q8_0, F16 and BF16; ``biases``: parts that have one."""
    rng = np.random.default_rng(seed)
    q, kv = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    matrices = {
        "attn_q": ((q, HIDDEN), TYPE_Q8_0),
        "attn_k": ((kv, HIDDEN), TYPE_F16),
        "attn_v": ((kv, HIDDEN), TYPE_BF16),
        "attn_output": ((HIDDEN, q), TYPE_Q8_0),
        "ffn_gate": ((INNER, HIDDEN), TYPE_Q8_0),
        "ffn_up": ((INNER, HIDDEN), TYPE_Q8_0),
        "ffn_down": ((HIDDEN, INNER), TYPE_Q8_0),
    }
    tensors = {
        "token_embd.weight": random_tensor(rng, (VOCAB, HIDDEN), TYPE_F16),
        "output_norm.weight": random_tensor(rng, (HIDDEN,), TYPE_F32),
        "blk.0.attn_norm.weight": random_tensor(rng, (HIDDEN,), TYPE_F32),
        "blk.0.ffn_norm.weight": random_tensor(rng, (HIDDEN,), TYPE_F32),
    }
    for name, (shape, kind) in matrices.items():
        tensors[f"blk.0.{name}.weight"] = random_tensor(rng, shape, kind)
        if name in biases:
            tensors[f"blk.0.{name}.bias"] = random_tensor(rng, shape[:1], TYPE_F32)
    return tensors


def changed(
    metadata: dict[str, bytes] | None = None, tensors: dict[str, Any] | None = None, **lies: Any
) -> bytes:
    """The valid file with entries replaced, added, or (None) left out."""
    entries: dict[str, Any] = {**tiny_metadata(), **(metadata or {})}
    parts: dict[str, Any] = {**tiny_tensors(), **(tensors or {})}
    return assemble(
        {key: value for key, value in entries.items() if value is not None},
        {key: value for key, value in parts.items() if value is not None},
        **lies,
    )
