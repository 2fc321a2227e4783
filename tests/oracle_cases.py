"""The oracle cases (fixtures/oracle/README.md): loading, replaying through a session, comparing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
from numpy.typing import NDArray

ORACLE = Path(__file__).parent / "fixtures" / "oracle"
RANDOM_WEIGHT_CASES = (
    "qllm_gqa4x2",
    "qllm_gqa6x2_tied",
    "qllm_exact_gqa4x2",
    "infllm_mha3x3",
    "stream_gqa4x1",
    "infinite_gqa4x2",
)

Floats = NDArray[np.float32]


class RecordLike(Protocol):
    """One layer's lookup for one execution chunk."""

    @property
    def layer(self) -> int: ...
    @property
    def first_token(self) -> int: ...
    @property
    def n_tokens(self) -> int: ...
    @property
    def block_ids(self) -> NDArray[Any]: ...
    @property
    def scores(self) -> NDArray[Any]: ...


class SessionLike(Protocol):
    """What the reference's session and the package's have in common."""

    def __len__(self) -> int: ...
    def feed(self, ids: NDArray[Any], all_logits: bool = False) -> Floats: ...
    @property
    def trace(self) -> Sequence[RecordLike]: ...
    def block_vectors(self, layer: int) -> Floats: ...
    def question_vector(self, layer: int) -> Floats: ...


@dataclass(frozen=True)
class Case:
    """One folder of fixtures/oracle."""

    name: str
    config: dict[str, Any]  # HuggingFace names; empty for the real model
    memory: dict[str, Any]  # keyword arguments of the memory, mode and mask included
    piece: int  # tokens per call while the prompt is fed
    query_span: tuple[int, int] | None
    tokens: NDArray[np.int32]  # [T]
    expected: dict[str, NDArray[Any]]

    @property
    def greedy_tokens(self) -> NDArray[Any]:
        return self.expected["greedy_tokens"]

    def weights(self) -> dict[str, Floats]:
        return arrays(ORACLE / self.name / "weights.npz")

    def records(self, layer: int) -> list[dict[str, Any]]:
        """What the authors' code looked up in one layer, chunk by chunk; none without blocks."""
        if f"layer{layer}.chunk_len" not in self.expected:
            return []
        chunk_len, num_blocks, scores, num_retrieved, retrieved = (
            self.expected[f"layer{layer}.{name}"]
            for name in ("chunk_len", "num_blocks", "scores", "num_retrieved", "retrieved")
        )
        scores_of = np.split(scores, np.cumsum(num_blocks)[:-1])
        ids_of = np.split(retrieved, np.cumsum(num_retrieved)[:-1])
        first_of = np.cumsum(chunk_len) - chunk_len
        return [
            {"first_token": int(a), "n_tokens": int(m), "block_ids": ids, "scores": s}
            for a, m, ids, s in zip(first_of, chunk_len, ids_of, scores_of, strict=True)
        ]


def arrays(path: Path) -> dict[str, NDArray[Any]]:
    with np.load(path, allow_pickle=False) as archive:
        return dict(archive.items())


def load_case(name: str) -> Case:
    case = json.loads((ORACLE / name / "case.json").read_text(encoding="utf-8"))
    expected = arrays(ORACLE / name / "expected.npz")
    settings = {k: v for k, v in case["memory"].items() if k != "max_cached_block"}
    span = case["question_range"]
    return Case(
        name=name,
        config=case.get("config", {}),
        memory={"mode": case["mode"], "mask": case["mask"], **settings},
        piece=case["prefill_chunk_size"],
        query_span=None if span is None else (span[0], span[1]),
        tokens=expected["tokens"],
        expected=expected,
    )


@dataclass(frozen=True)
class Replay:
    """What a session answered to a case."""

    tail_logits: Floats  # [4, V] at positions T-5 .. T-2; [0, V] if not asked for
    step_logits: Floats  # [steps, V]


def replay(session: SessionLike, case: Case, tail: bool = True) -> Replay:
    """Feeds a case in the order that its numbers depend on.

    tokens[:-1] in pieces, the last prompt token alone, then one generated token at a time: the
    expected one, so that a first difference does not hide what comes after it.
    """
    prompt, rows = case.tokens[:-1], []
    for start in range(0, len(prompt), case.piece):
        logits = session.feed(prompt[start : start + case.piece], all_logits=tail)
        rows.append(np.atleast_2d(logits)[-4:] if tail else np.atleast_2d(logits)[:0])
    steps = [session.feed(case.tokens[-1:])]
    steps += [
        session.feed(case.greedy_tokens[i : i + 1]) for i in range(len(case.greedy_tokens) - 1)
    ]
    return Replay(np.concatenate(rows)[-4:], np.stack(steps))


def check_logits(answer: Replay, case: Case, tolerance: float) -> None:
    """Logits within `tolerance`, greedy tokens exactly."""
    np.testing.assert_array_equal(answer.step_logits.argmax(axis=-1), case.greedy_tokens)
    expected = case.expected
    np.testing.assert_allclose(answer.step_logits, expected["step_logits"], rtol=0, atol=tolerance)
    np.testing.assert_allclose(
        answer.tail_logits, expected["prefill_tail_logits"], rtol=0, atol=tolerance
    )


def check_lookups(session: SessionLike, case: Case, tolerance: float) -> None:
    """Every chunk of every layer: the same blocks, scores within `tolerance` of the largest."""
    for layer in range(case.config["num_hidden_layers"]):
        ours = [record for record in session.trace if record.layer == layer]
        theirs = case.records(layer)
        if not theirs:  # a mode without blocks: chunks are recorded, empty
            assert ours and all(len(r.block_ids) == len(r.scores) == 0 for r in ours)
            continue
        assert len(ours) == len(theirs)
        for record, expected in zip(ours, theirs, strict=True):
            where = f"layer {layer}, token {expected['first_token']}"
            assert record.first_token == expected["first_token"], where
            assert record.n_tokens == expected["n_tokens"], where
            check_close(record.scores, expected["scores"], tolerance, where)
            np.testing.assert_array_equal(record.block_ids, expected["block_ids"], where)


def check_vectors(session: SessionLike, case: Case, tolerance: float) -> None:
    """Block vectors and question vectors within `tolerance` of the largest component."""
    for layer in range(case.config["num_hidden_layers"]):
        where = f"layer {layer}"
        if f"layer{layer}.block_vectors" in case.expected:
            expected = case.expected[f"layer{layer}.block_vectors"]
            check_close(session.block_vectors(layer), expected, tolerance, where)
        if f"layer{layer}.question_vector" in case.expected:
            expected = case.expected[f"layer{layer}.question_vector"]
            check_close(session.question_vector(layer), expected, tolerance, where)
        else:
            with pytest.raises(ValueError):
                session.question_vector(layer)


def check_close(ours: NDArray[Any], theirs: NDArray[Any], tolerance: float, where: str) -> None:
    """Equal shapes, and no component further off than `tolerance` times the largest one, or times 1
    if that is less: a sum may be small because its terms cancel."""
    assert ours.shape == theirs.shape, f"{where}: {ours.shape} instead of {theirs.shape}"
    scale = max(float(np.abs(theirs).max()), 1.0) if theirs.size else 0.0
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * scale, err_msg=where)
