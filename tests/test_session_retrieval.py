"""Methods of a session that find passages and use them again: listen, mean_query, rank, pin,
excerpt. The keys and queries of layer 0 follow from the embeddings alone, so that NumPy can say
what they are."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_core import CONFIG, EXC, MODES, core_model, core_session, ids
from tiny_models import random_weights

import quickllama as ql
from quickllama import _core

WEIGHTS = random_weights(CONFIG, 0)
MODEL = core_model(weights=WEIGHTS)
HEADS = [[0, 1], [1, 3], [0, 2]]
TEXT, QUESTION = ids(300), ids(10, seed=5)
Floats = NDArray[np.float32]


def projected(tokens: NDArray[Any], which: str, weights: Any = None, dim: int = 16) -> Floats:
    """Queries or keys of layer 0, not rotated: [T, heads, dim]."""
    weights = weights or WEIGHTS
    x = weights["model.embed_tokens.weight"][tokens]
    x = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5)
    x = x * weights["model.layers.0.input_layernorm.weight"]
    y = x @ weights[f"model.layers.0.self_attn.{which}_proj.weight"].T
    return np.asarray(y.reshape(len(tokens), -1, dim))


def begun(**changes: Any) -> _core.Session:
    session = core_session(MODEL, **{"trace": True, **changes})
    session.feed(TEXT)
    return session


def test_listen_reads_and_gives_queries() -> None:
    session, other = begun(), begun()
    queries = session.listen(QUESTION, HEADS)
    assert queries.shape == (3, 10, 16) and queries.dtype == np.float32
    expected = projected(QUESTION, "q")
    np.testing.assert_allclose(queries[0], expected[:, 1], atol=1e-5)
    np.testing.assert_allclose(queries[2], expected[:, 2], atol=1e-5)
    other.feed(QUESTION)
    assert len(session) == len(other) == 310
    np.testing.assert_array_equal(session.feed([7]), other.feed([7]))


def test_listen_takes_a_question() -> None:
    session, other = begun(), begun()
    session.listen(QUESTION, HEADS, query_span=(2, 8))
    other.feed(QUESTION, query_span=(2, 8))
    for layer in (0, 1):
        found, expected = (s.question_vector(layer) for s in (session, other))
        np.testing.assert_array_equal(found, expected)


def test_mean_query() -> None:
    session = begun()
    session.listen(QUESTION, HEADS)
    expected = projected(np.concatenate([TEXT, QUESTION]), "q").mean(0).ravel()
    np.testing.assert_allclose(session.mean_query(0), expected, atol=1e-5)


@pytest.mark.parametrize(("begin", "end", "piece"), [(0, 300, 8), (4, 200, 7), (33, 34, 1000)])
def test_rank(begin: int, end: int, piece: int) -> None:
    session = begun()
    queries = session.fork().listen(QUESTION, HEADS)
    scores = session.rank(HEADS, queries, begin, end, piece)
    pieces = math.ceil((end - begin) / piece)
    assert scores.shape == (3, pieces) and scores.dtype == np.float32
    keys = projected(TEXT, "k")
    for row, head in ((0, 1), (2, 2)):
        products = queries[row] @ keys[:, head // 2].T  # two query heads share a key head
        best = [
            products[:, start : min(start + piece, end)].max(1).mean()
            for start in range(begin, end, piece)
        ]
        np.testing.assert_allclose(scores[row], best, atol=1e-3)


@pytest.mark.parametrize("kv_dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize(("dim", "block", "piece"), [(16, 8, 29), (64, 64, 150), (320, 64, 64)])
@pytest.mark.parametrize("variant", ql.cpu_variants())
def test_rank_by_every_kernel(
    variant: str, dim: int, block: int, piece: int, kv_dtype: str
) -> None:
    """Few queries, a panel that is nearly full, several panels and a few more."""
    ql.set_cpu_variant(variant)
    config = {**CONFIG, "head_dim": dim}
    weights = random_weights(config, 0)
    session = core_session(core_model(config, weights), kv_dtype=kv_dtype, block_size=block)
    session.feed(TEXT)
    keys = projected(TEXT, "k", weights, dim)[:, 1]
    relative = {"float32": 1e-5, "bfloat16": 2**-7, "int8": 2**-6}[kv_dtype]
    for n_queries in (1, 3, 12, 30, 64, 70, 133):
        queries = np.random.default_rng(n_queries).standard_normal((1, n_queries, dim), np.float32)
        found = session.rank([(0, 3)], queries, 5, 295, piece)[0]
        products = queries[0] @ keys.T
        best = [products[:, i : min(i + piece, 295)].max(1).mean() for i in range(5, 295, piece)]
        norms = np.linalg.norm(queries[0], axis=1).mean() * np.linalg.norm(keys, axis=1).max()
        np.testing.assert_allclose(found, best, atol=relative * norms)


def test_pinned_blocks_are_the_ones_looked_up() -> None:
    session = begun()
    for blocks in ([3, 5, 20], [], np.array([0], "u1")):
        session.pin(blocks)
        session.feed(ids(2 * EXC, 8))
        assert [r.block_ids.tolist() for r in session.trace[-4:]] == [list(blocks)] * 4
    session.pin(None)
    session.feed(ids(EXC, 9))
    best = [np.sort(np.argsort(-r.scores, kind="stable")[:2]) for r in session.trace[-2:]]
    np.testing.assert_array_equal([r.block_ids for r in session.trace[-2:]], best)


def test_an_excerpt_of_everything_goes_on_as_full_attention_does() -> None:
    """As long as the text has not left the window, its keys are those of full attention."""
    session = core_session(MODEL)
    session.feed(TEXT[:30])
    excerpt = session.excerpt([[0, 30]])
    full = core_session(MODEL, mode="full")
    full.feed(TEXT[:30])
    assert excerpt.mode == "full" and len(excerpt) == 30 and excerpt.model is MODEL
    np.testing.assert_allclose(excerpt.feed(QUESTION), full.feed(QUESTION), atol=2e-5)
    assert len(session) == 30  # and it is not disturbed


def test_an_excerpt_holds_the_ranges_and_outlives_its_session() -> None:
    session = begun()
    whole = session.excerpt([[10, 40]])
    parts = session.excerpt(np.array([[10, 25], [25, 40]], "i4"))
    fork = session.excerpt([[10, 30], [100, 120]])
    del session
    assert (len(whole), len(parts), len(fork)) == (30, 30, 40)
    np.testing.assert_array_equal(whole.feed(QUESTION), parts.feed(QUESTION))
    assert not np.array_equal(fork.feed([5]), whole.feed([5]))


BAD_HEADS = [
    ([[0, 4]], ql.InvalidValue, "no head 4 in layer 0"),
    ([[2, 0]], ql.InvalidValue, "no head 0 in layer 2"),
    ([[-1, 0]], ql.InvalidValue, "no head"),
    ([[2**40, 0]], ql.InvalidValue, "no head"),
    ([[0, 1, 2]], ql.InvalidValue, r"shape \[n, 2\]"),
    (np.zeros((0, 2), int), ql.InvalidValue, r"shape \[n, 2\]"),
    ([0, 1], ql.InvalidType, "heads must be integers"),
    ([[0.0, 1.0]], ql.InvalidType, "heads must be integers"),
    ([[True, True]], ql.InvalidType, "heads must be integers"),
    ([[2**70, 0]], ql.InvalidType, "heads must be integers"),
    ("01", ql.InvalidType, "heads must be integers"),
    (None, ql.InvalidType, "heads must be integers"),
]


@pytest.mark.parametrize(("heads", "kind", "words"), BAD_HEADS, ids=str)
def test_bad_heads(heads: Any, kind: type[ql.Error], words: str) -> None:
    session = begun()
    with pytest.raises(kind, match=words):
        session.listen(QUESTION, heads)
    with pytest.raises(ql.Error):
        session.rank(heads, np.ones((1, 2, 16), np.float32), 0, 10, 5)
    assert len(session) == 300


BAD_CALLS: list[tuple[Callable[[_core.Session], object], type[ql.Error], str]] = [
    (lambda s: s.listen([], HEADS), ql.InvalidValue, "ids is empty"),
    (lambda s: s.listen([1], HEADS, (0, 2)), ql.InvalidValue, "question"),
    (lambda s: s.mean_query(2), ql.InvalidValue, "layer"),
    (lambda s: s.mean_query(0.0), ql.InvalidType, "layer must be an int"),
    (lambda s: s.pin([1, 0]), ql.InvalidValue, "ascend"),
    (lambda s: s.pin([1, 1]), ql.InvalidValue, "ascend"),
    (lambda s: s.pin([33]), ql.InvalidValue, "below 33"),
    (lambda s: s.pin([2**40]), ql.InvalidValue, "ascend"),
    (lambda s: s.pin([1.0]), ql.InvalidType, "blocks must be integers"),
    (lambda s: s.pin([True]), ql.InvalidType, "blocks must be integers"),
    (lambda s: s.pin([[1]]), ql.InvalidType, "blocks must be integers"),
    (lambda s: s.excerpt([[0, 301]]), ql.InvalidValue, "ranges"),
    (lambda s: s.excerpt([[5, 5]]), ql.InvalidValue, "ranges"),
    (lambda s: s.excerpt([[-1, 5]]), ql.InvalidValue, "ranges"),
    (lambda s: s.excerpt([[9, 12], [3, 5]]), ql.InvalidValue, "ascend"),
    (lambda s: s.excerpt([[1, 2, 3]]), ql.InvalidValue, "ranges"),
    (lambda s: s.excerpt([[0.0, 5.0]]), ql.InvalidType, "ranges must be integers"),
    (lambda s: s.excerpt(None), ql.InvalidType, "ranges must be integers"),
]


@pytest.mark.parametrize("number", range(len(BAD_CALLS)))
def test_bad_calls(number: int) -> None:
    call, kind, words = BAD_CALLS[number]
    session = begun()
    with pytest.raises(kind, match=words):
        call(session)
    assert len(session) == 300


@pytest.mark.parametrize(
    ("begin", "end", "piece", "kind"),
    [
        (4, 4, 8, ql.InvalidValue),
        (-1, 4, 8, ql.InvalidValue),
        (4, 301, 8, ql.InvalidValue),
        (4, 2**62, 1, ql.InvalidValue),
        (4, 2**80, 1, ql.InvalidValue),
        (4, 20, 0, ql.InvalidValue),
        (4.0, 20, 1, ql.InvalidType),
        (4, 20, True, ql.InvalidType),
    ],
)
def test_bad_pieces(begin: Any, end: Any, piece: Any, kind: type[ql.Error]) -> None:
    queries = np.ones((3, 2, 16), np.float32)
    with pytest.raises(kind):
        begun().rank(HEADS, queries, begin, end, piece)


@pytest.mark.parametrize("shape", [(2, 2, 16), (3, 2, 15), (3, 0, 16)])
def test_bad_shapes_of_queries(shape: tuple[int, ...]) -> None:
    with pytest.raises(ql.InvalidValue, match="quer"):
        begun().rank(HEADS, np.ones(shape, np.float32), 0, 10, 5)


def test_bad_dtypes_of_queries() -> None:
    for queries in (np.ones((3, 2, 16)), np.ones((3, 2, 16), complex), "queries", None):
        with pytest.raises(ql.InvalidType, match="queries must be float32"):
            begun().rank(HEADS, queries, 0, 10, 5)


@pytest.mark.parametrize("mode", MODES[:3])
def test_modes_that_forget_tokens_say_so(mode: str) -> None:
    session = begun(mode=mode)
    queries = np.ones((3, 2, 16), np.float32)
    calls: list[Callable[[], object]] = [
        lambda: session.listen([1], HEADS),
        lambda: session.mean_query(0),
        lambda: session.rank(HEADS, queries, 0, 10, 5),
        lambda: session.pin([0]),
        lambda: session.excerpt([[0, 5]]),
    ]
    for call in calls:
        with pytest.raises(ql.InvalidValue, match="infllm or qllm"):
            call()
    assert len(session) == 300
