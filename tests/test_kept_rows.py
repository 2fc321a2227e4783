"""Keys and values as they are kept: rounded as the specification says, and in how much memory."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from reference import MODES, Reference
from reference_rounding import ROUNDED, round_to_bfloat16, round_to_int8
from tiny_core import CONFIG as CORE_CONFIG
from tiny_core import core_model, core_session, ids
from tiny_models import random_ids, random_weights

import quickllama as ql
from quickllama.dtypes import kv_bytes

KEPT = ("bfloat16", "int8")
CONFIG: dict[str, Any] = {
    "vocab_size": 90,
    "hidden_size": 96,
    "intermediate_size": 200,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 20,
}
MEMORY: dict[str, Any] = {
    "n_init": 5,
    "n_local": 40,
    "block_size": 8,
    "topk": 99,  # all blocks, so that no choice depends on a rounding
    "question_weight": 1.0,
}
SPANS = {"qllm": (3, 9)}
WEIGHTS = random_weights(CONFIG, 3)
IDS = random_ids(CONFIG, 110, 4)
HEADS = [[0, 1], [1, 3], [0, 2]]
Floats = NDArray[np.float32]


def distance(one: Floats, other: Floats) -> float:
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))


@cache
def specified(mode: str, kv_dtype: str, chunk: int) -> tuple[Floats, list[Floats]]:
    """All logits, and the block vectors of each layer."""
    memory = {**MEMORY, "mode": mode, "exc_block_size": chunk, "kv_dtype": kv_dtype}
    session = Reference(CONFIG, WEIGHTS).session(memory, SPANS.get(mode))
    return session.feed(IDS, all_logits=True), [session.block_vectors(layer) for layer in (0, 1)]


@pytest.mark.parametrize("chunk", [33, 1])
@pytest.mark.parametrize("kv_dtype", KEPT)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("variant", ql.cpu_variants())
def test_rounded_as_the_specification_says(
    variant: str, mode: str, kv_dtype: str, chunk: int
) -> None:
    """Off by a few numbers that lie so near to the middle that they are rounded to the other side;
    far less than by rounding nothing."""
    memory = ql.MemoryConfig(**MEMORY, mode=mode, exc_block_size=chunk)
    ql.set_cpu_variant(variant)
    model = ql.Model(CONFIG, WEIGHTS, dtype="float32")
    session = model.session(memory, query_span=SPANS.get(mode), kv_dtype=kv_dtype)
    logits = session.feed(IDS, all_logits=True)
    expected, vectors = specified(mode, kv_dtype, chunk)
    exact, _ = specified(mode, "float32", chunk)
    off = distance(logits, expected)
    if chunk > 1 and variant in ("naive", "avx512bf16", "amx"):
        # Queries and probabilities are rounded, too.
        assert off < 8e-3
        return
    assert off < 4e-4
    assert distance(logits, exact) > 5 * off
    if mode in ("infllm", "qllm"):
        for layer in (0, 1):
            assert distance(session.block_vectors(layer), vectors[layer]) < 1e-3


def test_int8_is_rounded_to_the_nearest() -> None:
    rows = np.random.default_rng(0).standard_normal((50, 20)).astype(np.float32)
    rows[3] = 0
    rows[4] *= 1e-35
    found = round_to_int8(rows)
    assert not found[3:5].any()
    rows, found = rows[5:], found[5:]
    largest = np.abs(rows).max(axis=1, keepdims=True)
    assert (np.abs(found - rows) <= 0.501 * largest / 127).all()
    np.testing.assert_allclose(np.abs(found).max(axis=1, keepdims=True), largest, rtol=1e-6)
    assert len(np.unique(found[0])) > 10
    assert round_to_bfloat16(np.float32([1.00390625, 1.01171875])).tolist() == [1, 1.015625]


@pytest.mark.parametrize("mode", ["full", "infllm"])
def test_bytes_of_a_token(mode: str) -> None:
    """Pages hold what `kv_bytes` says; block vectors come on top."""
    model = core_model()
    grown = {}
    for kv_dtype in ROUNDED:
        session = core_session(model, mode=mode, kv_dtype=kv_dtype, block_size=64, n_local=64)
        session.read(ids(512))
        before = session.nbytes
        session.read(ids(64 * 64))
        grown[kv_dtype] = (session.nbytes - before) / (64 * 64)
        rows = 2 * CORE_CONFIG["num_hidden_layers"] * CORE_CONFIG["num_key_value_heads"]
        expected = rows * kv_bytes(kv_dtype, CORE_CONFIG["head_dim"])
        assert expected <= grown[kv_dtype] < 1.15 * expected + 20
    assert grown["int8"] < 0.75 * grown["bfloat16"] < 0.5 * grown["float32"]


@pytest.mark.parametrize("kv_dtype", KEPT)
def test_ranking_sees_rounded_keys(kv_dtype: str) -> None:
    """Of layer 0, whose keys follow from the embeddings alone."""
    weights = random_weights(CORE_CONFIG, 0)
    text, question = ids(300), ids(10, seed=5)
    session = core_session(core_model(weights=weights), kv_dtype=kv_dtype)
    session.read(text)
    queries = session.fork().listen(question, HEADS)
    scores = session.rank(HEADS, queries, 0, 300, 8)
    x = weights["model.embed_tokens.weight"][text]
    x = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5)
    x = x * weights["model.layers.0.input_layernorm.weight"]
    exact = (x @ weights["model.layers.0.self_attn.k_proj.weight"].T).reshape(300, 2, 16)
    for row, head in ((0, 1), (2, 2)):
        best = {
            name: [
                (queries[row] @ keys[at : at + 8, head // 2].T).max(1).mean()
                for at in range(0, 300, 8)
            ]
            for name, keys in (("kept", ROUNDED[kv_dtype](exact)), ("exact", exact))
        }
        np.testing.assert_allclose(scores[row], best["kept"], atol=3e-3)
        assert np.abs(scores[row] - best["exact"]).max() > 6e-3


@pytest.mark.parametrize("kv_dtype", KEPT)
def test_an_excerpt_keeps_the_dtype(kv_dtype: str) -> None:
    """Its keys are rotated and rounded once more; its values are the same bytes."""
    model = core_model()
    session, full = (core_session(model, kv_dtype=kv_dtype, mode=m) for m in ("qllm", "full"))
    for each in (session, full):
        each.feed(ids(30))
    excerpt = session.excerpt([[0, 30]])
    assert excerpt.kv_dtype == kv_dtype
    found, expected = excerpt.feed([5]), full.feed([5])
    assert 0 < distance(found, expected) < 0.02
