"""Sessions that skim: only the layers that a few heads need, and only these heads' keys."""

from __future__ import annotations

import _thread
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from reference import Reference
from tiny_core import CONFIG, MEMORY, core_model, core_session, ids
from tiny_models import random_weights

import quickllama as ql
from quickllama import _core

DEEP = {**CONFIG, "num_hidden_layers": 4}
WEIGHTS = random_weights(DEEP, 0)
HEADS = [[2, 3], [0, 1], [2, 2]]  # of 3 layers; two share a key head
TEXT, QUESTION = ids(700), ids(10, seed=5)
Floats = NDArray[np.float32]


def model_of(n_threads: int = 1, dtype: str = "float32") -> _core.Model:
    return core_model(DEEP, WEIGHTS, n_threads=n_threads, dtype=dtype)


def skimmer(model: _core.Model | None = None, **changes: Any) -> _core.Session:
    settings: dict[str, Any] = {"mode": "stream", "skim_heads": HEADS, **changes}
    return core_session(model_of() if model is None else model, **settings)


def ranked(session: _core.Session) -> tuple[Floats, Floats]:
    """What skimming is for: the scores of the text, and the mean of the queries."""
    queries = session.fork().listen(QUESTION, HEADS)
    means = np.concatenate([session.mean_query(layer) for layer in range(3)])
    return session.rank(HEADS, queries, 0, len(TEXT), 8), means


def expect_same(session: _core.Session, expected: tuple[Floats, Floats]) -> None:
    for found, wanted in zip(ranked(session), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("mode", ["stream", "infinite"])
@pytest.mark.parametrize("variant", ql.cpu_variants())
def test_ranks_as_the_reference_with_all_layers(variant: str, mode: str) -> None:
    ql.set_cpu_variant(variant)
    session = skimmer(mode=mode)
    session.read(TEXT)
    queries = session.fork().listen(QUESTION, HEADS)
    scores = session.rank(HEADS, queries, 3, 700, 9)
    settings = {name: value for name, value in MEMORY.items() if name != "kv_dtype"}
    reference = Reference(DEEP, WEIGHTS).session({**settings, "mode": mode})
    reference.feed(TEXT)
    for row, (layer, head) in enumerate(HEADS):
        keys = reference.layers[layer].keys[head // 2]
        products = queries[row] @ keys.T
        best = [products[:, at : min(at + 9, 700)].max(1).mean() for at in range(3, 700, 9)]
        np.testing.assert_allclose(scores[row], best, atol=2e-3)


@pytest.mark.parametrize("kv_dtype", ["float32", "bfloat16", "int8"])
def test_neither_threads_nor_splits_nor_forks_change_a_bit(kv_dtype: str) -> None:
    step = MEMORY["exc_block_size"]
    whole = skimmer(kv_dtype=kv_dtype)
    whole.read(TEXT)
    expected = ranked(whole)
    for n_threads in (2, 3, 5):
        session = skimmer(model_of(n_threads), kv_dtype=kv_dtype)
        for at in range(0, len(TEXT), 3 * step):
            session.read(TEXT[at : at + 3 * step])
        expect_same(session, expected)
    begun = skimmer(kv_dtype=kv_dtype)
    begun.read(TEXT[: 20 * step])
    fork, astray = begun.fork(), begun.fork()
    astray.read(ids(400, 9))
    fork.listen(TEXT[20 * step :], HEADS)  # listening reads
    begun.read(TEXT[20 * step :])
    del astray
    expect_same(begun, expected)
    del begun
    expect_same(fork, expected)
    fork.reset()
    fork.read(TEXT)
    expect_same(fork, expected)


def test_higher_layers_and_other_heads_change_nothing() -> None:
    session, other = skimmer(), skimmer(skim_heads=[*HEADS, [3, 0], [1, 1]])
    for each in (session, other):
        each.read(TEXT)
    assert (session.n_layers, other.n_layers) == (3, 4)
    assert other.nbytes > session.nbytes
    expect_same(other, ranked(session))


def test_several_threads_ask_one_text() -> None:
    session = skimmer(model_of(2))
    session.read(TEXT)
    expected = ranked(session)
    forks = [session.fork() for _ in range(6)]
    with ThreadPoolExecutor(3) as pool:
        for found in pool.map(ranked, forks):
            np.testing.assert_array_equal(found[0], expected[0])


def test_an_interrupted_text_is_read_on() -> None:
    long, model = ids(60_000, 3), model_of()
    whole, session = skimmer(model), skimmer(model)
    started = time.perf_counter()
    whole.read(long)
    # A part of what it just took, so that it comes in the middle on any machine.
    middle = (time.perf_counter() - started) / 4
    threading.Timer(middle, _thread.interrupt_main).start()
    with pytest.raises(KeyboardInterrupt):
        session.read(long)
    done = len(session)
    assert done < len(long) and done % MEMORY["exc_block_size"] == 0
    session.read(long[done:])
    expect_same(session, ranked(whole))


def test_it_holds_little_and_says_so() -> None:
    session = skimmer(kv_dtype="bfloat16")
    session.read(ids(512 * 4, 1))
    before = session.nbytes
    session.read(ids(512 * 40, 2))
    per_token = 2 * CONFIG["head_dim"] * 2  # two key heads, bfloat16
    assert session.nbytes - before <= 512 * 40 * per_token + 8 * 2 * 512 * 40 / MEMORY["block_size"]
    assert "skimming with 3 layers" in repr(session) and session.mode == "stream"
    assert core_session(model_of()).n_layers == 4


def test_read_is_feed_without_logits() -> None:
    model = model_of()
    session, other = core_session(model), core_session(model)
    assert session.read(TEXT, query_span=(3, 9)) is None
    other.feed(TEXT, query_span=(3, 9))
    np.testing.assert_array_equal(session.question_vector(2), other.question_vector(2))
    np.testing.assert_array_equal(session.feed([1]), other.feed([1]))


BAD_SESSIONS: list[tuple[dict[str, Any], type[ql.Error], str]] = [
    ({"mode": "infllm"}, ql.InvalidValue, "stream or infinite"),
    ({"mode": "full"}, ql.InvalidValue, "stream or infinite"),
    ({"skim_heads": [[4, 0]]}, ql.InvalidValue, "no head 0 in layer 4"),
    ({"skim_heads": []}, ql.InvalidType, "heads must be integers"),
    ({"skim_heads": [[0.5, 1]]}, ql.InvalidType, "heads must be integers"),
    ({"query_span": (0, 3)}, ql.InvalidValue, "qllm"),
]


@pytest.mark.parametrize(("changes", "kind", "words"), BAD_SESSIONS, ids=str)
def test_bad_sessions(changes: dict[str, Any], kind: type[ql.Error], words: str) -> None:
    with pytest.raises(kind, match=words):
        skimmer(**changes)


BAD_CALLS: list[tuple[Callable[[_core.Session], object], str]] = [
    (lambda s: s.feed(QUESTION), "3 of the model's 4 layers"),
    (lambda s: s.listen(QUESTION, [[3, 0]]), "no queries of head 0 in layer 3"),
    (lambda s: s.rank([[1, 0]], np.ones((1, 2, 16), np.float32), 0, 9, 3), "no keys of head 0"),
    (lambda s: s.mean_query(3), "layer"),
    (lambda s: s.pin([0]), "infllm or qllm"),
    (lambda s: s.excerpt([[0, 5]]), "infllm or qllm"),
    (lambda s: s.read([]), "ids is empty"),
    (lambda s: s.read(QUESTION, query_span=(0, 3)), "qllm"),
]


@pytest.mark.parametrize("number", range(len(BAD_CALLS)))
def test_bad_calls(number: int) -> None:
    call, words = BAD_CALLS[number]
    session = skimmer()
    session.read(TEXT)
    with pytest.raises(ql.InvalidValue, match=words):
        call(session)
    assert len(session) == 700
