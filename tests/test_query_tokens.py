"""The question's tokens, attended to wherever they lie: the paper's Q in M = [G, Q, R, L]."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from oracle_cases import check_close
from reference import Reference
from tiny_core import CONFIG, EXC, MEMORY, core_model, core_session, ids
from tiny_models import random_weights

from quickllama import _core

# In one layer a token's logits depend on nothing but itself and on what it attends to.
ONE = {**CONFIG, "num_hidden_layers": 1}
LENGTH = 9 * EXC
WINDOW = MEMORY["n_local"]
FRONT = (6, 19)  # begins and ends inside blocks, and fills one
SETTINGS: dict[str, Any] = {"n_init": 3, "topk": 0}


@pytest.fixture(scope="module")
def one_layer() -> _core.Model:
    return core_model(ONE)


def last(model: _core.Model, tokens: Any, span: tuple[int, int], **settings: Any) -> Any:
    """Logits of the last token, which comes alone; the question in front, or in a later call."""
    session = core_session(model, **{**SETTINGS, **settings})
    cut = span[0] // EXC * EXC
    if cut:
        session.feed(tokens[:cut])
    question = (span[0] - cut, span[1] - cut)
    session.feed(tokens[cut:-1], query_span=question)
    return session.feed(tokens[-1:])


@pytest.mark.parametrize("mask", ["exact", "authors"])
@pytest.mark.parametrize("span", [FRONT, (3 * EXC + 5, 3 * EXC + 19)])
def test_a_question_is_attended_to_after_it_left_the_window(
    one_layer: _core.Model, span: tuple[int, int], mask: str
) -> None:
    text, other = ids(LENGTH), ids(LENGTH)
    assert span[1] < LENGTH - WINDOW - MEMORY["block_size"]
    for token in range(span[0] - 2, span[1] + 2):
        other[token] = (text[token] + 1) % CONFIG["vocab_size"]
        kept = span[0] <= token < span[1]
        for keep in (False, True):
            settings = {"mask": mask, "keep_query_tokens": keep}
            same = np.array_equal(
                last(one_layer, text, span, **settings), last(one_layer, other, span, **settings)
            )
            assert same != (keep and kept), (token, keep)
        other[token] = text[token]


def test_every_key_is_attended_to_once() -> None:
    """A question in blocks that are retrieved, or among the first tokens, is there already."""
    model, text = core_model(), ids(LENGTH)
    first = {"n_init": FRONT[1], "topk": 2}
    for settings in ({"topk": 99}, {"topk": 99, "mask": "authors"}, first):
        without, kept = (
            last(model, text, FRONT, keep_query_tokens=keep, **settings) for keep in (False, True)
        )
        np.testing.assert_array_equal(kept, without)
    for blocks in ([0, 1, 2], [1], [0, 2, 5], [5]):  # pinned ones count as retrieved
        spans = [(3 + 8 * b, 11 + 8 * b) for b in blocks]
        tokens = {t for a, b in spans for t in range(a, b)} | set(range(3))
        attended = tokens | set(range(*FRONT))
        assert attention_to(blocks, keep=False) == tokens
        assert attention_to(blocks, keep=True) == attended


def attention_to(blocks: list[int], keep: bool) -> set[int]:
    """Tokens far away that the last token of a text attends to, found by their values: each
    token's value is its own direction, and the weight that it gets must be that of one key."""
    config = {**ONE, "vocab_size": 128, "hidden_size": 128, "head_dim": 128}
    config |= {"num_attention_heads": 1, "num_key_value_heads": 1}
    weights = {name: np.zeros_like(a) for name, a in random_weights(config, 0).items()}
    own = np.eye(128, dtype=np.float32)
    for name in weights:
        if name.endswith(("embed_tokens.weight", "v_proj.weight", "o_proj.weight", "head.weight")):
            weights[name][:] = own
        elif name.endswith("norm.weight"):
            weights[name][:] = 1
    session = core_session(core_model(config, weights), **{**SETTINGS, "keep_query_tokens": keep})
    text = np.arange(100)  # keys and queries are 0: all weights are alike
    session.feed(text[:-1], query_span=FRONT)
    session.pin(blocks)
    logits = session.feed(text[-1:])
    far = logits[: len(text) - WINDOW]
    remainder = 3 + 8 * session.n_blocks
    seen = {int(token) for token in np.flatnonzero(far > 1e-3)}
    np.testing.assert_allclose(far[sorted(seen)], logits[len(text) - 2], rtol=1e-4)
    return seen - set(range(remainder, len(text)))


@pytest.mark.parametrize(
    ("kv_dtype", "topk"), [("float32", 0), ("float32", 2), ("bfloat16", 0), ("int8", 0)]
)
def test_the_core_equals_the_specification(kv_dtype: str, topk: int) -> None:
    """Where questions come in front and behind, one after the other; and forked on the way."""
    memory = {**MEMORY, **SETTINGS, "topk": topk, "keep_query_tokens": True, "kv_dtype": kv_dtype}
    weights = random_weights(CONFIG, 0)
    ours = core_session(core_model(CONFIG, weights), **memory)
    theirs = Reference(CONFIG, weights).session(memory)
    without = core_session(core_model(CONFIG, weights), **{**memory, "keep_query_tokens": False})
    tolerance = 1e-4 if kv_dtype == "float32" else 2e-2
    differs = 0
    for number, span in enumerate([FRONT, None, (30, 41), None, None, (0, 5), None, None, None]):
        tokens = ids(61 if number % 4 else 1 + EXC * 3, seed=number)
        expected = theirs.feed(tokens, True, span)
        logits = ours.feed(tokens, True, span)
        check_close(logits, expected, tolerance, f"call {number}")
        differs += not np.array_equal(without.feed(tokens, True, span), logits)
        ours = ours.fork()
    assert differs >= 6


def test_a_session_says_whether_it_keeps_them(one_layer: _core.Model) -> None:
    for keep in (False, True):
        session = core_session(one_layer, keep_query_tokens=keep)
        assert session.keep_query_tokens is session.fork().keep_query_tokens is keep
