"""What a task is made of: a text, the questions about it, and what its maker is told."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from quickllama.documents.answer import Span
from quickllama.errors import InvalidValue
from quickllama.eval.haystack import Haystack

__all__ = ["Case", "Draft", "Question", "fit", "insert", "places_among"]

T = TypeVar("T")

TOLERANCE = 0.02
"""A text may be so much shorter or longer than was asked for."""

_SPREAD = 4  # points of depth, at each side, over which several sentences of one depth are spread
_FURTHEST = 0.01  # of the text: so far behind its depth a sentence may come to end another one


@dataclasses.dataclass(frozen=True)
class Question:
    """A question about a text.

    * ``kind``: which of the task's kinds of question it is.
    * ``expected``: what the task's ``score`` compares an answer with; empty if the text does not
      answer the question.
    * ``places``: characters [start, end) of the text that answer it; empty if none or all do.
    * ``depth``: where that is, in percent of the text; None if it has no place.
    * ``more``: what else the score needs to know.
    """

    kind: str
    text: str
    expected: tuple[str, ...]
    places: tuple[Span, ...] = ()
    depth: int | None = None
    more: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Case:
    """A text of ``tokens`` tokens and its questions; ``length`` is what was asked for."""

    text: str
    questions: tuple[Question, ...]
    length: int
    tokens: int


@dataclasses.dataclass(frozen=True)
class Draft:
    """What a maker of data is told.

    * ``length``: tokens of the text; ``count``: the number of tokens that a text has.
    * ``depths``: percent of the text, one for each thing to be asked about, ascending.
    * ``index``: which of the texts of this length it is, from 0; ``kinds``: of questions, wanted.
    * ``rng``: all that is drawn comes from it; ``shared``: the same one for all texts of a length.
    * ``haystack``: ordinary text; ``facts``: a file of facts to take in place of the task's own.
    """

    length: int
    depths: tuple[int, ...]
    index: int
    kinds: tuple[str, ...]
    rng: np.random.Generator
    shared: np.random.Generator
    count: Callable[[str], int]
    haystack: Haystack
    facts: Path | None = None

    def case(self, build: Callable[[int], tuple[str, Sequence[Question]]], guess: int) -> Case:
        """``build`` called with so many units (characters, sentences, ...) that its text has the
        length asked for. It must give the same for the same number."""
        (text, questions), tokens = fit(build, self.length, guess, self._size)
        return Case(text, tuple(questions), self.length, tokens)

    def _size(self, built: tuple[str, Sequence[Question]]) -> int:
        return self.count(built[0])


def fit(
    build: Callable[[int], T], length: int, guess: int, size: Callable[[T], int]
) -> tuple[T, int]:
    """``build(units)`` whose size is nearest to ``length``, and its size; ``guess``: units to begin
    with. Raises InvalidValue if none is within 2 % of it."""
    best: tuple[int, T, int] | None = None
    last: tuple[int, int] | None = None
    units = max(guess, 1)
    tried: set[int] = set()
    for _ in range(12):
        built = build(units)
        tokens = size(built)
        tried.add(units)
        if best is None or abs(tokens - length) < best[0]:
            best = abs(tokens - length), built, tokens
        if best[0] <= length * TOLERANCE / 10:
            break
        if last is None or last[1] == tokens:
            step = units * length / max(tokens, 1) - units
        else:
            step = (length - tokens) * (units - last[0]) / (tokens - last[1])
        last = units, tokens
        units = max(round(units + step), 1)
        if units in tried:
            break
    assert best is not None
    if best[0] > length * TOLERANCE:
        raise InvalidValue(
            f"no text of {length:,} tokens can be made for this task, the nearest has "
            f"{best[2]:,}; ask for a longer one, or for fewer questions in a text"
        )
    return best[1], best[2]


def insert(
    text: str, sentences: Sequence[str], depths: Sequence[int]
) -> tuple[str, tuple[Span, ...]]:
    """``text`` with each sentence between its own, at a depth in percent, and the places where they
    stand. ``depths`` ascend; sentences of one depth are spread around it."""
    pieces: list[str] = []
    places: list[Span] = []
    done = length = 0
    for sentence, share in zip(sentences, _shares(depths), strict=True):
        place = _sentence_end(text, max(round(share * len(text)), done))
        before = text[done:place]
        lead = "" if not before or before[-1].isspace() else " "
        pieces += [before, lead, sentence, " "]
        length += len(before) + len(lead)
        places.append((length, length + len(sentence)))
        length += len(sentence) + 1
        done = place
    return "".join([*pieces, text[done:]]), tuple(places)


def _shares(depths: Sequence[int]) -> list[float]:
    """The depths as shares of the text, equal ones apart."""
    shares: list[float] = []
    for depth in dict.fromkeys(depths):
        many = depths.count(depth)
        middle = min(max(depth, _SPREAD), 100 - _SPREAD) if many > 1 else depth
        away = np.linspace(-_SPREAD, _SPREAD, many) if many > 1 else np.zeros(1)
        shares += ((middle + away) / 100).tolist()
    return shares


def _sentence_end(text: str, place: int) -> int:
    """The first place from ``place`` on where a sentence has ended, or a line, or a word."""
    if place == 0:
        return 0
    high = min(place + max(round(_FURTHEST * len(text)), 40), len(text))
    for sign in (". ", ".\n", "\n", " "):
        found = text.find(sign, max(place - len(sign), 0), high)
        if found >= 0:
            return found + len(sign)
    return high


def places_among(depths: Sequence[int], count: int) -> list[int]:
    """Which of ``count`` things in a row stand at ``depths``: ascending, no two the same; there
    must be at least as many things as depths."""
    found: list[int] = []
    for number, share in enumerate(_shares(depths)):
        low = found[-1] + 1 if found else 0
        high = count - (len(depths) - number)
        found.append(min(max(round(share * count), low), high))
    return found
