"""Cutting a text never changes its tokens or offsets; offsets point into the text."""

from __future__ import annotations

import random
import tracemalloc

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tokenizers import KINDS, PRES, pieces, small_tokenizer, texts

from quickllama import tokenizer as tokenizer_module
from quickllama.tokenizer import Tokenizer
from quickllama.tokenizer.cuts import AddedTokens, CutRule, cut_text

Spans = list[tuple[int, int]]


def encode_cut(
    tokenizer: Tokenizer, text: str, size: int, special: bool
) -> tuple[list[int], Spans]:
    """Encoded in pieces of at least ``size`` characters."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer_module, "PIECE_CHARACTERS", size)
        ids, offsets = tokenizer.encode_with_offsets(text, parse_special=special)
        assert tokenizer.encode(text, parse_special=special) == ids.tolist()
    return ids.tolist(), [(int(start), int(end)) for start, end in offsets]


def check_cuts(tokenizer: Tokenizer, text: str, size: int, special: bool) -> None:
    whole = encode_cut(tokenizer, text, 1 << 30, special)
    assert encode_cut(tokenizer, text, size, special) == whole


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150, deadline=None)
@given(
    text=st.one_of(texts, pieces),
    size=st.integers(min_value=1, max_value=12),
    special=st.booleans(),
)
def test_cutting_changes_nothing(kind: str, text: str, size: int, special: bool) -> None:
    check_cuts(small_tokenizer(kind), text, size, special)


@settings(max_examples=150, deadline=None)
@given(
    text=st.one_of(texts, pieces),
    size=st.integers(min_value=1, max_value=12),
    special=st.booleans(),
)
def test_cutting_changes_nothing_for_the_real_model(
    smollm2: Tokenizer, text: str, size: int, special: bool
) -> None:
    check_cuts(smollm2, text.replace("<|end|>", "<|im_end|>"), size, special)


@pytest.mark.parametrize("kind", KINDS)
def test_ordinary_text_is_cut_often(kind: str) -> None:
    tokenizer = small_tokenizer(kind)
    text = "It was the best of times, it was the worst of times.\n\n" * 20
    tokenizer.encode("")
    rule = tokenizer.cut_rule
    cut = list(cut_text(text, rule, AddedTokens(["<|end|>"]), 10))
    assert len(cut) > 50
    if rule is not CutRule.DROP_SPACE:
        assert "".join(piece.text for piece in cut) == text
    for piece in cut:
        assert text.startswith(piece.text, piece.start)


@pytest.mark.parametrize("kind", PRES)
def test_text_without_spaces_is_cut_at_its_punctuation(kind: str) -> None:
    text = "これは長い文章です。空白はありません、" * 300
    cut = list(cut_text(text, small_tokenizer(kind).cut_rule, AddedTokens([]), 50))
    assert len(cut) > 50
    check_cuts(small_tokenizer(kind), text, 50, True)


def test_no_safe_place_gives_one_piece() -> None:
    text = "word word " * 100
    assert [piece.text for piece in cut_text(text, CutRule.NOWHERE, AddedTokens([]), 5)] == [text]
    alone = "x" * 500
    assert [piece.text for piece in cut_text(alone, CutRule.WORDS, AddedTokens([]), 5)] == [alone]
    assert list(cut_text("", CutRule.WORDS, AddedTokens([]), 5)) == []


def test_no_cut_in_or_beside_an_added_token() -> None:
    added = AddedTokens(["<new line>", "ab cd ef"])
    cut = list(cut_text("xx ab cd ef yy <new line> zz", CutRule.WORDS, added, 1))
    assert [piece.text for piece in cut] == ["xx", " ab cd ef yy", " <new line> zz"]
    free = list(cut_text("xx ab cd eg yy <new lime> zz", CutRule.WORDS, added, 1))
    assert len(free) == 8


def test_a_text_full_of_special_tokens_is_cut_in_time() -> None:
    added = AddedTokens([f"<|{index}|>" for index in range(300)])
    text = "a <|7|> b " * 5_000
    assert len(list(cut_text(text, CutRule.WORDS, added, 1 << 14))) <= 4


def test_cuts_take_the_space_of_a_token_that_strips_it(smollm2: Tokenizer) -> None:
    greedy = tokenizers.AddedToken("<x>", lstrip=True, rstrip=True, normalized=False)
    backend = smollm2._backend().encoder
    other = tokenizers.Tokenizer.from_str(backend.to_str())
    other.add_tokens([greedy])
    text = "word <x>  more  <x>\n<x> end"
    whole = other.encode(text, add_special_tokens=False).ids
    for size in range(1, 12):
        cut = cut_text(text, CutRule.WORDS, AddedTokens(["<x>"]), size)
        encoded = [other.encode(piece.text, add_special_tokens=False).ids for piece in cut]
        assert [index for ids in encoded for index in ids] == whole


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=100, deadline=None)
@given(text=st.one_of(texts, pieces))
def test_offsets_cover_the_text(kind: str, text: str) -> None:
    tokenizer = small_tokenizer(kind)
    ids, offsets = tokenizer.encode_with_offsets(text)
    assert ids.dtype == np.int32 and offsets.dtype == np.int64
    assert offsets.shape == (len(ids), 2)
    assert (offsets[:, 0] <= offsets[:, 1]).all()
    assert (np.diff(offsets[:, 0]) >= 0).all()
    covered = np.zeros(len(text), dtype=bool)
    for start, end in offsets:
        covered[start:end] = True
    assert covered.all()
    for index, (start, end) in zip(ids.tolist(), offsets.tolist(), strict=True):
        token = tokenizer.decode([index], skip_special_tokens=False)
        if kind in PRES and index not in tokenizer.special_ids and "\ufffd" not in token:
            assert text[start:end] == token


def test_offsets_of_known_text(smollm2: Tokenizer) -> None:
    text = "Über 42 😀 <|im_end|> ok"
    ids, offsets = smollm2.encode_with_offsets(text)
    spans = [text[start:end] for start, end in offsets]
    assert spans[-2:] == ["<|im_end|>", " ok"]
    assert "4" in spans and "2" in spans
    assert "".join(dict.fromkeys(spans)).count("😀") >= 1
    assert smollm2.encode(text) == ids.tolist()


def test_special_tokens_around_have_empty_spans() -> None:
    ids, offsets = small_tokenizer("llama").encode_with_offsets("the end")
    assert ids[0] == 1 and offsets[0].tolist() == [0, 0]
    assert offsets[1, 0] == 0 and offsets[-1, 1] == 7
    empty, spans = small_tokenizer("gpt-2").encode_with_offsets("")
    assert empty.shape == (0,) and spans.shape == (0, 2)


def test_megabytes_take_little_memory(smollm2: Tokenizer) -> None:
    """The pieces handed to the encoder stay small, whatever the length."""
    random.seed(5)
    words = ["alpha", "beta,", "gamma.\n", "12", "délta", "日本。"]
    text = " ".join(random.choice(words) for _ in range(60_000))
    sizes = [len(p.text) for p in cut_text(text, smollm2.cut_rule, AddedTokens([]), 1 << 16)]
    assert len(sizes) > 4 and max(sizes) < (1 << 16) + 100
    tracemalloc.start()
    ids, offsets = smollm2.encode_with_offsets(text, parse_special=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * (ids.nbytes + offsets.nbytes) + (30 << 20)
    for index, (start, end) in zip(ids[::500].tolist(), offsets[::500].tolist(), strict=True):
        token = smollm2.decode([index])
        assert token == text[start:end] or "\ufffd" in token
