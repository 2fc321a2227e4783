"""Texts that grow, of tokenizers and kinds that no rule for cuts is known for."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from small_tokenizers import TRAINING, small_tokenizer
from test_document import MEMORY, assert_same_bits
from test_folder_tokenizer import (
    encoder_of,
    lowercase,
    metaspace_split,
    no_splitter,
    other_pattern,
    prefix_space,
    spaces_inside,
    write,
)

import quickllama as ql
from quickllama.documents.growing_text import GrowingText
from quickllama.tokenizer import CutRule, Tokenizer
from quickllama.tokenizer.cuts import NEAR, tried_cut

CHANGES: list[tuple[str, Callable[..., None]]] = [
    ("qwen2", lowercase),
    ("gpt-2", prefix_space),
    ("gpt-2", other_pattern),
    ("gpt-2", no_splitter),
    ("llama", metaspace_split),
    ("llama", spaces_inside),
]
JSON = json.dumps([f"{n:x}" for n in range(3000)], separators=(",", ":"))


def prose(seed: int, n: int = 400) -> str:
    draw = random.Random(seed)
    words = [word for line in TRAINING for word in line.split()]
    return "".join(draw.choice(words) + draw.choice(["", " ", " ", "  ", "\n"]) for _ in range(n))


def check(tokenizer: Tokenizer, text: str, seed: int) -> None:
    """The tokens of a text that comes in parts are those of the whole, and most become certain."""
    draw = random.Random(seed)
    cuts = sorted(draw.sample(range(len(text)), 6))
    growing = GrowingText(tokenizer)
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        growing.add(text[start:end])
    ids, offsets = tokenizer.encode_with_offsets(text, False, parse_special=False)
    tail, spans = growing.tail()
    np.testing.assert_array_equal(np.concatenate([growing.ids(), tail]), ids)
    np.testing.assert_array_equal(np.concatenate([growing.offsets(), spans]), offsets)
    assert len(tail) < len(ids) / 2 and growing.tail_characters < 6 * NEAR


@pytest.mark.parametrize(("kind", "change"), CHANGES)
def test_tokenizers_without_a_rule(tmp_path: Path, kind: str, change: Callable[..., None]) -> None:
    encoder = encoder_of(kind)
    changed = change(encoder)
    tokenizer = Tokenizer.from_folder(write(tmp_path, changed or encoder))
    assert tokenizer.cut_rule is CutRule.NOWHERE
    for seed in range(5):
        check(tokenizer, prose(seed, 5000), seed)


def test_texts_without_safe_places() -> None:
    tokenizer = small_tokenizer("smollm")
    assert tokenizer.cut_rule is CutRule.WORDS
    check(tokenizer, JSON, 1)


def test_places_that_change_tokens_are_not_taken() -> None:
    """An encoder with a token of two words, which no piece may begin or end within."""
    text = "ab cd " * 1000

    def doubles(part: str) -> list[int]:
        return [hash(token) for token in re.findall("ab cd|.", part)]

    found = tried_cut(text, doubles)
    assert found is not None and len(text) > found[0] > len(text) / 2
    assert text[: found[0]].endswith("ab cd") and found[1] == found[0]
    assert tried_cut(text, lambda part: [len(part)]) is None
    assert tried_cut(text[:NEAR], doubles) is None
    assert tried_cut("x" * 10_000, doubles) is None


def test_a_document_is_computed_while_it_is_read(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ql.Model.from_pretrained(folder, dtype="float32", n_threads=1)
    encoder = model.tokenizer.to_tokenizers()
    other_pattern(encoder)
    model.tokenizer = Tokenizer.from_folder(write(tmp_path, encoder))
    text = prose(7, 2000)
    document = model.read(text, memory=MEMORY)
    assert len(document._session) > len(document) / 2
    parts = [text[i : i + 3000] for i in range(0, len(text), 3000)]
    assert_same_bits(document, model.read(parts, memory=MEMORY))
    monkeypatch.setattr("quickllama.documents.growing_text._LONG_TAIL", 100)
    monkeypatch.setattr("quickllama.tokenizer.TRIED_CHARACTERS", 10**9)
    with pytest.warns(UserWarning, match=r"the last [\d,]+ characters of the text hold no place"):
        waiting = model.read(text, memory=MEMORY)
    assert len(waiting._session) <= MEMORY.exc_block_size  # the prompt
    assert_same_bits(waiting, document)
