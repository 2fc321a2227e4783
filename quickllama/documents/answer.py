"""What a question gets: an answer, and the passages of the text that it rests on."""

from __future__ import annotations

import dataclasses
import re
import threading
from collections.abc import Generator, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Self

from quickllama.errors import Busy, InvalidValue

if TYPE_CHECKING:
    from quickllama.documents.retrieval import Ranking

__all__ = ["NOT_FOUND", "Answer", "AnswerStream", "Passage", "Span", "merge", "sentences", "widen"]

NOT_FOUND = "Not found in the document."
"""The text of an answer when no passage stands out."""

Span = tuple[int, int]
"""Characters [start, end) of a text."""

_FURTHEST = 300  # characters that a passage grows by at each side to end with a sentence
_LONGEST = 300  # and by so many more to end with a word: minified JSON, say, has no white space
_SENTENCE_END = re.compile(r"(?<=[.!?…])[\"'”’»)\]]*\s+|(?<=[。！？])|\n\s*\n")
_SPACE = re.compile(r"\s")
_NO_END = re.compile(r"\b(?:[A-Z]|Mr|Mrs|Ms|Dr|Prof|St|No|vs|cf|e\.g|i\.e)\.$")  # not a sentence's


@dataclasses.dataclass(frozen=True)
class Passage:
    """Characters [start, end) of a document's text that an answer rests on.

    ``score`` says how far it stands out: with retrieval heads, standard deviations above the
    document's mean, averaged over the heads (:mod:`quickllama.documents.retrieval`), more for the
    question's names (:mod:`quickllama.documents.names`), less how much
    better the sentence of another passage suits the question
    (:mod:`quickllama.documents.judgement`); with the paper's lookups the share of them (layers
    times tokens) that chose it, 0 to 1. ``layers``: the layers whose heads or lookups chose it.
    ``sentence``: characters [start, end) of the sentence that the retrieval heads point at most;
    None if there is only one, and with the paper's lookups, which tell blocks apart and nothing
    smaller.
    """

    start: int
    end: int
    text: str
    score: float
    layers: tuple[int, ...]
    sentence: Span | None = None


@dataclasses.dataclass(frozen=True)
class Answer:
    """An answer to one question.

    * ``text``; ``tokens``: the ids of all that the model wrote, without the one that ended it.
    * ``finish_reason``: ``"stop"``, ``"length"`` (``max_new_tokens`` were not enough) or
      ``"repetition"`` (the model went round in a circle).
    * ``history``: the questions before it by which passages were sought, too.
    * ``seconds`` from the question to the last token, ``first_token_seconds`` to the first one.
    * ``evidence``: passages, best first. ``confidence``: how likely it is that the document holds
      the answer, 0 to 1, from how far the best passage stands out; None if nothing was calibrated
      to tell, or the text is too short. ``notes``: what a reader of the answer should know.
    * ``retrieval``: how the evidence was found: ``"heads"`` (retrieval heads) or ``"paper"`` (the
      memory's own lookups).
    * ``ranking``: all pieces of the document as they were ranked for the question
      (:class:`quickllama.documents.retrieval.Ranking`); None by the paper's lookups. It is neither
      shown, nor compared, nor part of :meth:`to_dict`.

    Notebooks show the answer and its evidence.
    """

    question: str
    text: str
    tokens: list[int]
    seconds: float
    first_token_seconds: float
    notes: tuple[str, ...]
    confidence: float | None
    evidence: list[Passage]
    retrieval: str = "heads"
    finish_reason: str = "stop"
    history: tuple[str, ...] = ()
    ranking: Ranking | None = dataclasses.field(default=None, repr=False, compare=False)

    @property
    def found(self) -> bool:
        """Whether the document was taken to hold an answer."""
        return self.text != NOT_FOUND

    def to_dict(self) -> dict[str, Any]:
        """The same as dicts, lists, strings and numbers, for JSON."""
        plain = dataclasses.asdict(dataclasses.replace(self, ranking=None))
        del plain["ranking"]
        plain["notes"] = list(self.notes)
        plain["history"] = list(self.history)
        plain["found"] = self.found
        for passage in plain["evidence"]:
            passage["layers"] = list(passage["layers"])
            passage["sentence"] = passage["sentence"] and list(passage["sentence"])
        return plain

    def _repr_html_(self) -> str:
        from quickllama.documents.html import answer_html

        return answer_html(self)

    def __str__(self) -> str:
        """The answer's text."""
        return self.text


class AnswerStream(Iterator[str]):
    """An answer while it comes, made by :meth:`quickllama.Document.stream`: an iterator over the
    pieces of its text. One thread at a time: another one gets Busy."""

    def __init__(self, pieces: Generator[str, None, Answer]) -> None:
        self._pieces = pieces
        self._answer: Answer | None = None
        self._lock = threading.Lock()
        self._given_up = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        if not self._lock.acquire(blocking=False):
            raise Busy("another thread waits for the next piece of this answer; let it finish")
        try:
            return next(self._pieces)
        except StopIteration as end:
            self._answer = self._answer or end.value
            raise
        finally:
            self._lock.release()
            if self._given_up:
                self.close()

    @property
    def answer(self) -> Answer:
        """The whole answer; what was not iterated over yet is waited for. Raises InvalidValue if
        the iteration was given up before, by :meth:`close` or an error."""
        for _ in self:
            pass
        if self._answer is None:
            raise InvalidValue("the answer was given up before its end; ask again")
        return self._answer

    def close(self) -> None:
        """Give up what is left of the answer, and what it keeps of the document; while another
        thread waits for a piece, as soon as it has it."""
        self._given_up = True
        if self._lock.acquire(blocking=False):
            try:
                self._pieces.close()
            finally:
                self._lock.release()


def widen(text: str, start: int, end: int) -> Span:
    """Characters [start, end) of ``text`` grown to whole sentences, or at least to whole words.

    Each side grows by at most 300 characters to reach the next end of a sentence or paragraph; if
    there is none so near, to the next white space, and by 600 characters if there is none so near
    either. White space at the edges is left out.
    """
    start, end = _stripped(text, start, end)
    return _sentence_start(text, start), _sentence_end(text, end)


def _sentence_start(text: str, place: int) -> int:
    low = max(place - _FURTHEST, 0)
    for pattern in (_SENTENCE_END, _SPACE):
        found = [match.end() for match in pattern.finditer(text, low, place)]
        if found:
            return found[-1]
        if low == 0:
            return 0
    return _word_start(text, low)


def _sentence_end(text: str, place: int) -> int:
    high = min(place + _FURTHEST, len(text))
    limit = min(high + _LONGEST, len(text))
    found = _SENTENCE_END.search(text, place, high) or _SPACE.search(text, high, limit)
    last = limit if found is None else found.end()
    while last > place and text[last - 1].isspace():
        last -= 1
    return last


def _word_start(text: str, place: int) -> int:
    """Where the word at ``place`` begins, or is cut because it is too long."""
    limit = max(place - _LONGEST, 0)
    while place > limit and not text[place - 1].isspace():
        place -= 1
    return place


def sentences(text: str, start: int, end: int) -> list[Span]:
    """The sentences of ``text`` between the characters ``start`` and ``end``, without the white
    space around them."""
    found: list[Span] = []
    first = start
    for match in _SENTENCE_END.finditer(text, start, end):
        if not _NO_END.search(text, max(match.start() - 8, first), match.start()):
            found.append(_stripped(text, first, match.end()))
            first = match.end()
    found.append(_stripped(text, first, end))
    return [span for span in found if span[1] > span[0]]


def _stripped(text: str, start: int, end: int) -> Span:
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return start, end


def merge(spans: Iterable[Span], gap: int = 1) -> list[Span]:
    """Spans in order, those that overlap or lie at most ``gap`` apart made into one."""
    merged: list[Span] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1] + gap:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((start, end))
    return merged
