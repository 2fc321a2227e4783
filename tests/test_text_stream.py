"""Streamed text is the text of all ids, and no piece splits a character."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tokenizers import KINDS, PRES, small_tokenizer

from quickllama.errors import InvalidType, InvalidValue
from quickllama.tokenizer import Tokenizer
from quickllama.tokenizer.stream import TextStream

TEXTS = (
    "plain words, and more",
    "emoji 😀😀 👩‍👩‍👧 🇩🇪 end",
    "日本語のテスト。你好，世界",
    "cafe\u0301 n\u0303 नमस्ते สวัสดี",
    " leading and   inner  spaces ",
    "a real \ufffd replacement \ufffd",
    "\n\n\tcode {\n    x = 1;\n}\n",
)


def streamed(tokenizer: Tokenizer, ids: list[int], skip: bool = True) -> list[str]:
    stream = tokenizer.stream(skip_special_tokens=skip)
    return [*(stream.push(index) for index in ids), stream.finish()]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", TEXTS)
def test_pieces_are_the_text(kind: str, text: str) -> None:
    tokenizer = small_tokenizer(kind)
    ids = tokenizer.encode(text)
    found = streamed(tokenizer, ids)
    assert "".join(found) == tokenizer.decode(ids)
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in found)


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_are_the_text_for_the_real_model(smollm2: Tokenizer, text: str) -> None:
    ids = smollm2.encode(text)
    found = streamed(smollm2, ids)
    assert "".join(found) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in found)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150, deadline=None)
@given(data=st.data(), skip=st.booleans())
def test_any_ids_give_the_text_of_all(kind: str, data: Any, skip: bool) -> None:
    """Any ids: parts of characters, bytes that are no text, special tokens, unknown ids."""
    tokenizer = small_tokenizer(kind)
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 3), max_size=25))
    assert "".join(streamed(tokenizer, ids, skip)) == tokenizer.decode(ids, skip)


def test_random_ids_of_the_real_model(smollm2: Tokenizer) -> None:
    random.seed(3)
    for _ in range(60):
        ids = [random.randrange(smollm2.vocab_size) for _ in range(40)]
        assert "".join(streamed(smollm2, ids)) == smollm2.decode(ids)


@pytest.mark.parametrize("kind", KINDS)
def test_words_come_at_once(kind: str) -> None:
    """Ordinary words do not wait for the next token."""
    tokenizer = small_tokenizer(kind)
    stream = TextStream(tokenizer)
    text = "the quick brown fox"
    ids = tokenizer.encode(text, add_special_tokens=False)
    so_far = ""
    for count, index in enumerate(ids, 1):
        so_far += stream.push(index)
        assert so_far == tokenizer.decode(ids[:count])


def test_the_end_of_an_incomplete_character() -> None:
    for kind in ("gpt-2", "llama"):
        tokenizer = small_tokenizer(kind)
        ids = tokenizer.encode("ok 🛸")[:-1]
        assert tokenizer.decode(ids).endswith("\ufffd")
        stream = TextStream(tokenizer)
        assert "\ufffd" not in stream.push(ids)
        assert "\ufffd" in stream.finish()
        assert stream.finish() == ""


def test_pushes_of_several_and_wrong_ids() -> None:
    tokenizer = small_tokenizer(PRES[0])
    ids = tokenizer.encode("several ids at once")
    stream = TextStream(tokenizer)
    text = stream.push(np.array(ids[:4])) + stream.push(ids[4:])
    assert text + stream.finish() == "several ids at once"
    with pytest.raises(InvalidValue, match="finished"):
        stream.push(1)
    for wrong in (1.5, "a", [-1]):
        with pytest.raises((InvalidType, InvalidValue)):
            TextStream(tokenizer).push(wrong)
