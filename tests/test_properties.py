"""The C core equals the executable specification, over random shapes, settings and splits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from oracle_cases import check_close
from reference import MODES, Reference
from reference import Session as ReferenceSession
from tiny_models import random_ids, random_weights

import quickllama as ql

RELATIVE = 3e-5  # of the largest component
CLOSE_CALL = 3e-5  # two scores nearer to each other than this may be ordered otherwise

ROPES: tuple[dict[str, Any] | None, ...] = (
    None,
    {"rope_type": "linear", "factor": 3.0},
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
)

BIASES: tuple[dict[str, Any], ...] = (
    {},
    {"attention_bias": True},
    {"mlp_bias": True},
    {"attention_bias": True, "mlp_bias": True},
    {"model_type": "qwen2"},
)


@st.composite
def configs(draw: st.DrawFn) -> dict[str, Any]:
    """Any GQA shape, head_dim other than hidden/heads, biases, tied or not, every RoPE kind."""
    kv_heads = draw(st.integers(1, 3))
    config = {
        "vocab_size": draw(st.integers(5, 70)),
        "hidden_size": draw(st.integers(3, 40)),
        "intermediate_size": draw(st.integers(1, 70)),
        "num_hidden_layers": draw(st.integers(1, 2)),
        "num_attention_heads": kv_heads * draw(st.integers(1, 4)),
        "num_key_value_heads": kv_heads,
        "head_dim": 2 * draw(st.integers(1, 17)),
        "rms_norm_eps": draw(st.sampled_from([1e-6, 1e-5, 1e-2])),
        "rope_theta": draw(st.sampled_from([100.0, 10000.0, 500000.0])),
        "tie_word_embeddings": draw(st.booleans()),
        **draw(st.sampled_from(BIASES)),
    }
    scaling = draw(st.sampled_from(ROPES))
    if scaling is not None:
        config["rope_scaling"] = scaling
    return config


@st.composite
def memories(draw: st.DrawFn, mode: str) -> dict[str, Any]:
    n_local = draw(st.integers(1, 24))
    block_size = draw(st.integers(1, 8))
    return {
        "mode": mode,
        "n_init": draw(st.integers(0, 10)),
        "n_local": n_local,
        "block_size": block_size,
        "topk": draw(st.integers(0, 6)),
        "repr_topk": draw(st.integers(1, block_size)),
        "exc_block_size": draw(st.integers(1, n_local)),
        "lookup_interval": draw(st.integers(1, 4)),
        "question_weight": draw(st.sampled_from([0.0, 0.5, 4.0])),
        "keep_query_tokens": draw(st.booleans()),
        "mask": draw(st.sampled_from(["exact", "authors"])),
    }


@dataclass(frozen=True)
class Feed:
    """One call of feed: how many tokens, which logits, and a question in this call's positions."""

    n_tokens: int
    all_logits: bool
    query_span: tuple[int, int] | None


@dataclass(frozen=True)
class Timeline:
    """A model, a memory and the calls made on one session."""

    config: dict[str, Any]
    memory: dict[str, Any]
    query_span: tuple[int, int] | None
    feeds: tuple[Feed, ...]
    fork_before: int  # number of the call that a fork makes instead of the original
    n_threads: int
    seed: int


@st.composite
def timelines(draw: st.DrawFn, mode: str) -> Timeline:
    memory = draw(memories(mode))
    asks = mode == "qllm"
    span = draw(spans(30, memory["n_local"])) if asks and draw(st.booleans()) else None
    lengths = [*draw(st.lists(st.integers(1, 40), min_size=1, max_size=4)), 1, 1, 1, 1, 1]
    feeds = []
    for length in lengths:
        new = asks and draw(st.integers(0, 5)) == 0
        question = draw(spans(length, memory["n_local"])) if new else None
        feeds.append(Feed(length, draw(st.booleans()), question))
    return Timeline(
        config=draw(configs()),
        memory=memory,
        query_span=span,
        feeds=tuple(feeds),
        fork_before=draw(st.integers(0, len(feeds) - 1)),
        n_threads=draw(st.sampled_from([1, 2, 5])),
        seed=draw(st.integers(0, 2**16)),
    )


@st.composite
def spans(draw: st.DrawFn, end: int, longest: int) -> tuple[int, int]:
    """[start, stop) inside [0, end), at most `longest` tokens."""
    start = draw(st.integers(0, end - 1))
    return start, draw(st.integers(start + 1, min(end, start + longest)))


@pytest.mark.parametrize("variant", ql.cpu_variants())
@pytest.mark.parametrize("mode", MODES)
def test_core_equals_specification(variant: str, mode: str) -> None:
    @settings(
        max_examples=50,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
    @given(timelines(mode))
    def holds(timeline: Timeline) -> None:
        compare(timeline)

    ql.set_cpu_variant(variant)
    holds()


def compare(timeline: Timeline) -> None:
    """Runs a timeline through the specification and through the core, call by call."""
    weights = random_weights(timeline.config, timeline.seed)
    model = ql.Model(timeline.config, weights, dtype="float32", n_threads=timeline.n_threads)
    ours = model.session(
        memory=ql.MemoryConfig(**timeline.memory),
        query_span=timeline.query_span,
        kv_dtype="float32",
        trace=True,
    )
    theirs = Reference(timeline.config, weights).session(timeline.memory, timeline.query_span)
    total = sum(feed.n_tokens for feed in timeline.feeds)
    ids = random_ids(timeline.config, total, timeline.seed)
    for number, feed in enumerate(timeline.feeds):
        if number == timeline.fork_before:
            ours, theirs = ours.fork(), theirs.fork()
        piece, ids = ids[: feed.n_tokens], ids[feed.n_tokens :]
        before = len(theirs)
        try:
            expected = theirs.feed(piece, feed.all_logits, feed.query_span)
        except ValueError:
            with pytest.raises(ValueError):
                ours.feed(piece, all_logits=feed.all_logits, query_span=feed.query_span)
            assert len(ours) == len(theirs) == before
            continue
        assume(theirs.margin > CLOSE_CALL)
        logits = ours.feed(piece, all_logits=feed.all_logits, query_span=feed.query_span)
        assert logits.dtype == np.float32
        check_close(logits, expected, RELATIVE, f"logits of call {number}")
        assert len(ours) == len(theirs)
    check_memory(ours, theirs)


def check_memory(ours: ql.Session, theirs: ReferenceSession) -> None:
    """Every lookup, block vector and question vector."""
    key = ("layer", "first_token", "n_tokens")
    n_layers = len(theirs.layers)
    assert len(ours.trace) == len(theirs.trace)
    for record, expected in zip(ours.trace, theirs.trace, strict=True):
        where = f"layer {expected.layer}, token {expected.first_token}"
        assert [getattr(record, k) for k in key] == [getattr(expected, k) for k in key], where
        check_close(record.scores, expected.scores, RELATIVE, where)
        np.testing.assert_array_equal(record.block_ids, expected.block_ids, where)
    for layer in range(n_layers):
        check_close(ours.block_vectors(layer), theirs.block_vectors(layer), RELATIVE, f"{layer}")
        try:
            question = theirs.question_vector(layer)
        except ValueError:
            with pytest.raises(ValueError):
                ours.question_vector(layer)
            continue
        check_close(ours.question_vector(layer), question, RELATIVE, f"question {layer}")


@pytest.mark.parametrize("variant", ql.cpu_variants())
def test_forward_equals_specification(variant: str) -> None:
    """`forward`, with and without a sliding window, all logits or the last ones."""

    @settings(max_examples=40, deadline=None, derandomize=True)
    @given(
        configs(), st.integers(0, 12), st.integers(1, 60), st.integers(0, 9), st.integers(0, 2**16)
    )
    def holds(config: dict[str, Any], window: int, length: int, keep: int, seed: int) -> None:
        if window and "model_type" not in config:
            config = {**config, "sliding_window": window}
        weights, ids = random_weights(config, seed), random_ids(config, length, seed)
        expected = Reference(config, weights).forward(ids)
        logits = ql.Model(config, weights, dtype="float32").forward(ids, logits_to_keep=keep)
        check_close(logits, expected[-keep:] if keep else expected, RELATIVE, "logits")

    ql.set_cpu_variant(variant)
    holds()


@settings(max_examples=30, deadline=None, derandomize=True)
@given(configs(), memories("qllm"), st.integers(0, 2**16))
def test_short_sequence_is_the_same_in_every_mode(
    config: dict[str, Any], memory: dict[str, Any], seed: int
) -> None:
    """A sequence that fits into the window never meets the memory."""
    weights, ids = random_weights(config, seed), random_ids(config, memory["n_local"], seed)
    model = ql.Model(config, weights, dtype="float32")
    expected = model.forward(ids)
    for mode in MODES:
        session = model.session(
            memory=ql.MemoryConfig(**{**memory, "mode": mode}), kv_dtype="float32"
        )
        check_close(session.feed(ids, all_logits=True), expected, RELATIVE, mode)


def test_representatives_come_from_the_block() -> None:
    with pytest.raises(ValueError, match="repr_topk"):
        ql.MemoryConfig(block_size=4, repr_topk=5)


@pytest.mark.parametrize(
    "held", [("bfloat16", "bfloat16"), ("float32", "bfloat16"), ("float32", "int8")]
)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("variant", ql.cpu_variants())
def test_rounding_stays_near(variant: str, mode: str, held: tuple[str, str]) -> None:
    """Weights, keys and values in bfloat16: 8 bits of mantissa, off by 1 in 500. In int8 keys and
    values are off by 1 in 250 of their largest number.

    All blocks are retrieved, so that no choice depends on the rounding.
    """
    config = {
        "vocab_size": 90,
        "hidden_size": 96,
        "intermediate_size": 200,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 20,
    }
    memory: dict[str, Any] = {"mode": mode, "n_init": 5, "n_local": 40, "block_size": 8}
    memory |= {"topk": 99, "exc_block_size": 33, "question_weight": 1.0}
    weights, ids = random_weights(config, 3), random_ids(config, 150, 4)
    span = (3, 9) if mode == "qllm" else None
    theirs = Reference(config, weights).session(memory, span)
    ql.set_cpu_variant(variant)
    ours = ql.Model(config, weights, dtype=held[0]).session(
        memory=ql.MemoryConfig(**memory), query_span=span, kv_dtype=held[1]
    )
    for piece in np.split(ids, [148, 149]):  # many tokens at once, and one at a time
        expected = theirs.feed(piece, all_logits=True)
        difference = ours.feed(piece, all_logits=True) - expected
        off = float(np.linalg.norm(difference) / np.linalg.norm(expected))
        assert 1e-4 < off < 0.02, off
