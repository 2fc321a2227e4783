"""What a document is read from: a text, parts of one, or token ids."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from quickllama.arrays import token_ids
from quickllama.errors import InvalidType, InvalidValue
from quickllama.tokenizer import checked_text

if TYPE_CHECKING:
    from quickllama.documents.growing_text import GrowingText
    from quickllama.tokenizer import Tokenizer

__all__ = ["Source", "expected_tokens", "parts_of", "unread"]

Source = str | Iterable[str] | Iterable[int] | NDArray[np.integer]
"""A text, parts of a text, or token ids."""

_SAMPLE = 1 << 16  # characters by which the tokens of a text are estimated


def parts_of(source: object) -> Iterator[str | object]:
    """Texts one after the other, or all token ids at once. Raises InvalidType, and InvalidValue for
    a part with half of a character, whose place counts from the beginning of the first part."""
    if isinstance(source, np.ndarray):
        yield source
        return
    if isinstance(source, str):
        yield checked_text(source)
        return
    if isinstance(source, bytes | bytearray | Mapping) or not isinstance(source, Iterable):
        remedy = ""
        if isinstance(source, bytes | bytearray):
            remedy = "; decode bytes first"
        elif isinstance(source, os.PathLike):
            remedy = "; give what the file holds: path.read_text(encoding='utf-8')"
        raise InvalidType(
            "a document is a str, an iterable of str, or token ids, not "
            f"{type(source).__name__}{remedy}"
        )
    items = iter(source)
    for first in items:
        if isinstance(first, bytes | bytearray):
            raise InvalidType(
                "a part of a text is a str, not bytes: open the file as text, for instance "
                "open(path, encoding='utf-8')"
            )
        if not isinstance(first, str):
            yield list(chain([first], items))
            return
        place = 0
        for item in chain([first], items):
            if not isinstance(item, str):
                raise InvalidType(f"a part of a text is a str, not {type(item).__name__}")
            yield checked_text(item, place)
            place += len(item)


def unread(source: object, known: GrowingText, name: str, vocab_size: int) -> Iterator[str | Any]:
    """The parts of ``source`` behind what the document ``name`` holds of it already: str, or token
    ids int64 [n].

    Raises InvalidValue if it does not begin with that, InvalidType or InvalidValue for what are no
    token ids.
    """
    text, ids, place = known.text, known.ids(), 0
    of_ids = known.is_ids
    for part in parts_of(source):
        length = len(ids) if of_ids else len(text)
        if isinstance(part, str) == of_ids and length:
            kinds = ("token ids", "text") if of_ids else ("text", "token ids")
            raise InvalidValue(f"{name} was read from {kinds[0]}, and {kinds[1]} came")
        whole: Any = part
        if not isinstance(part, str):
            whole, _ = token_ids(part, vocab_size, "the token ids to read")
        here = min(len(whole), length - place)
        old: Any = ids if of_ids else text
        if not _same(whole[:here], old[place : place + here]):
            raise InvalidValue(
                f"{name} holds another text: it differs from this one within "
                f"{'ids' if of_ids else 'characters'} {place} to {place + here}; give another file"
            )
        place += here
        if here < len(whole) or not length:
            yield whole[here:]
    if place < (len(ids) if of_ids else len(text)):
        raise InvalidValue(
            f"{name} holds a text that goes on behind this one; load it with model.load_document, "
            "or give another file"
        )


def _same(part: Any, old: Any) -> bool:
    return bool(part == old) if isinstance(part, str) else bool(np.array_equal(part, old))


def expected_tokens(source: object, tokenizer: Tokenizer) -> int | None:
    """About how many tokens a source has; None if only reading it can tell."""
    if isinstance(source, np.ndarray):
        return int(source.size)
    texts = [source] if isinstance(source, str) else source
    if not isinstance(texts, list | tuple) or not texts:
        return None
    if not all(isinstance(text, str) for text in texts):
        return len(texts)
    sample = "".join(texts)[:_SAMPLE] if len(texts[0]) < _SAMPLE else texts[0][:_SAMPLE]
    if not sample or any("\ud800" <= sign <= "\udfff" for sign in sample):
        return None
    tokens = len(tokenizer.encode(sample, add_special_tokens=False, parse_special=False))
    return tokens * sum(map(len, texts)) // len(sample)
