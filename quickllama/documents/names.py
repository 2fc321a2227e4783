"""Names in a question, such as functions, options and keys: where the text has them, to the letter.

Retrieval heads tell what a passage is about. Of a name that the model has never met they see a few
meaningless tokens, and those of ``testzip`` are in many places. So a piece that holds a name of the
question counts for more, the rarer the name is:

    named(b) = 2 max over names w in b of r(w)^2 + max over names w used in b of u(w)^2
    r(w) = log(n / pieces that hold w) / log n, u(w) the same of pieces that use w

A word is a name if it looks like one (``make_archive``, ``ZipFile``, ``--dtype``), or if a third of
its places in the text use it as one: ``testzip(``, ``class Session``, quoted. Of an ordinary word
that the question uses so (``shutil.which``, ``which()``), only uses count. All other words are left
to the heads: pieces that share them with a question in other words mislead more than they help
(docs/retrieval.md has the numbers).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

__all__ = ["MENTIONED", "USED", "named"]

MENTIONED, USED = 2.0, 1.0
"""What a piece is worth that holds a name which no other one holds, and that alone uses it, in
standard deviations of a head's scores."""

_USES = 3  # of this many places of an ordinary-looking word at least one uses it
_SHORTEST = 3  # letters
_MOST_PLACES = 2000
_JOINT = r"\.|::|->"
_NAME = re.compile(rf"(?:--)?[^\W\d][\w-]*(?:(?:{_JOINT})[^\W\d]\w*)*")
_LOOKS_LIKE_ONE = re.compile(rf"_|\d|[a-z][A-Z]|^--|{_JOINT}")
_BEFORE = re.compile(  # a definition, at the beginning of a line
    r"[\s|]*(?:(?:abstract|async|const|default|export|final|inline|private|protected|pub|public"
    r"|static|unsafe)\s+)*(?:class|def|enum|fn|func|function|interface|namespace|struct|trait"
    r"|#define)\s+"
)
_LONGEST_BEFORE = 60  # characters of that
_QUOTES = "`'\""


def named(question: str, text: str, starts: NDArray[np.int64]) -> NDArray[np.float64]:
    """What the names of ``question`` add to the score of each piece of ``text``: float64 [n].

    ``starts`` int64 [n]: the first character of each piece, ascending.
    """
    mentioned, used = np.zeros(len(starts)), np.zeros(len(starts))
    small: str | None = None
    for name, used_there in _names(question):
        places, uses = _places(name, text)
        if not places:  # with other capitals perhaps
            small = _small(text) if small is None else small
            places, uses = _places(_small(name), small)
        if not _LOOKS_LIKE_ONE.search(name) and len(uses) * _USES < len(places):
            if not used_there:
                continue
            places = uses = _calls(name, text)
        for found, rarest in ((places, mentioned), (uses, used)):
            pieces = np.unique(np.searchsorted(starts, found, side="right") - 1)
            if len(pieces):
                rarest[pieces] = np.maximum(rarest[pieces], _rarity(len(pieces), len(starts)))
    return MENTIONED * mentioned + USED * used


def _small(text: str) -> str:
    """In small letters, with every character in its place: of one they would be two."""
    return text.replace("İ", "i").lower()


def _rarity(pieces: int, of: int) -> float:
    return float(np.log(of / pieces) / np.log(of)) ** 2 if of > 1 else 0.0


def _names(question: str) -> Iterator[tuple[str, bool]]:
    """The words of a question that may be names, of joined ones also the parts, and whether the
    question uses them as names."""
    for match in _NAME.finditer(question):
        name = match[0].rstrip("-")
        parts = re.split(_JOINT, name)
        whole = (name,) if max(map(len, parts)) >= _SHORTEST else ()  # not "p.m" and "e.g"
        for part in dict.fromkeys((*whole, *parts)):
            if len(part) >= _SHORTEST:
                yield part, len(parts) > 1 or _is_use(question, *match.span())


def _places(name: str, text: str) -> tuple[list[int], list[int]]:
    """Where the text holds a name, and where it uses it. Of what is everywhere the first places are
    enough: it is no name."""
    places: list[int] = []
    uses: list[int] = []
    at = text.find(name)
    while at >= 0 and len(places) < _MOST_PLACES:
        end = at + len(name)
        if not _goes_on(text[at - 1 : at]) and not _goes_on(text[end : end + 1].replace("-", "")):
            places.append(at)
            if _is_use(text, at, end):
                uses.append(at)
        at = text.find(name, end)
    return places, uses


def _calls(name: str, text: str) -> list[int]:
    """Where the text calls a function of this name."""
    found, at = [], text.find(f"{name}(")
    while at >= 0:
        if not _goes_on(text[at - 1 : at]):
            found.append(at)
        at = text.find(f"{name}(", at + 1)
    return found


def _goes_on(sign: str) -> bool:
    """Whether a word goes on with ``sign``, a character or none."""
    return sign == "_" or sign == "-" or sign.isalnum()


def _is_use(text: str, start: int, end: int) -> bool:
    behind = text[end : end + 1]
    if behind == "(" or (behind != "" and behind in _QUOTES and text[start - 1 : start] == behind):
        return True
    line = text.rfind("\n", max(start - _LONGEST_BEFORE, 0), start) + 1
    if line == 0 and start > _LONGEST_BEFORE:
        return False
    return _BEFORE.fullmatch(text, line, start) is not None
