"""Ways to answer a question about a text. Each reads a text once and is then asked."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import bm25s
import numpy as np

import quickllama as ql
from needles.cases import Question, Span
from quickllama.documents.answer import widen
from quickllama.documents.asking import rank_for
from quickllama.documents.judgement import judge, question_likelihood

MAX_NEW_TOKENS = 32
BEST = 8


@dataclasses.dataclass(frozen=True)
class Found:
    """What a system made of a question: the pieces of the text that it ranked first, as characters,
    best first (empty: it does not rank); its answer; whether it thinks that the text holds one
    (None: it cannot tell); seconds to the first token."""

    pieces: list[Span]
    answer: str
    found: bool | None
    confidence: float | None
    first_token: float


class System(Protocol):
    """Has read a text."""

    def ask(self, question: Question) -> Found:
        """Answer."""


class Heads:
    """Retrieval heads, on a document read in whatever way."""

    def __init__(self, document: ql.Document, use: str = "reread") -> None:
        self._document = document
        self._use = use
        self._model = document.model

    def ask(self, question: Question) -> Found:
        """The best pieces, and the answer of ``Document.ask``."""
        snapshot = self._document.snapshot()
        known = snapshot.skim or self._model.retrieval_heads
        if known is None:
            raise SystemExit("this model has no retrieval heads: calibrate it first")
        suffix, span = snapshot.form.suffix(self._model.tokenizer, question.text)
        ranking = rank_for(snapshot.fork_whole(), snapshot, suffix, span, known.heads)
        ranking = judge(
            ranking,
            lambda piece: question_likelihood(self._model, snapshot.passage(piece), question.text),
        ).ranking
        bounds = ranking.grid.bounds
        pieces = [snapshot.characters(*bounds[piece].tolist()) for piece in ranking.best(BEST)]
        answer = self._document.ask(
            question.text, use=self._use, always_answer=True, max_new_tokens=MAX_NEW_TOKENS
        )
        sure, rule = answer.confidence, known.found
        found = None if sure is None or rule is None else sure >= rule.threshold
        return Found(pieces, answer.text, found, sure, answer.first_token_seconds)


class Lookups:
    """The memory's own way: the paper's block scores, or none (mode stream)."""

    def __init__(self, document: ql.Document) -> None:
        self._document = document

    def ask(self, question: Question) -> Found:
        """The blocks that most lookups chose, and the answer."""
        paper = "paper" if self._document.memory.mode == "qllm" else None
        answer = self._document.ask(question.text, retrieval=paper, max_new_tokens=MAX_NEW_TOKENS)
        pieces = [(passage.start, passage.end) for passage in answer.evidence]
        return Found(pieces, answer.text, None, None, answer.first_token_seconds)


class QuestionFirst:
    """The paper's own way: the text is read anew for each question, with the question before and
    after it."""

    def __init__(self, model: ql.Model, text: str, memory: ql.MemoryConfig) -> None:
        self._model = model
        self._text = text
        self._memory = memory

    def ask(self, question: Question) -> Found:
        """Read, and answer; the blocks that most lookups chose."""
        document = self._model.read(self._text, question=question.text, memory=self._memory)
        answer = document.ask(max_new_tokens=MAX_NEW_TOKENS)
        pieces = [(passage.start, passage.end) for passage in answer.evidence]
        return Found(pieces, answer.text, None, None, answer.first_token_seconds)


def answer_from(model: ql.Model, passages: Sequence[str], question: str) -> tuple[str, float]:
    """The model's answer from passages, best last, with the prompt that ``use="reread"`` has; and
    seconds to the first token."""
    text = "\n\n".join(passages)
    document = model.read(text, question=question, memory=ql.MemoryConfig(mode="full"))
    answer = document.ask(max_new_tokens=MAX_NEW_TOKENS)
    return answer.text, answer.first_token_seconds


class RightPassage:
    """The limit: the model is handed the right passage alone."""

    def __init__(self, document: ql.Document) -> None:
        snapshot = document.snapshot()
        self._model = document.model
        self._text = document.text
        self._pieces = [snapshot.characters(*bound) for bound in snapshot.grid.bounds.tolist()]

    def ask(self, question: Question) -> Found:
        """The pieces that hold the facts, grown to whole sentences, and the answer from them."""
        held = [
            widen(
                self._text,
                min(a for a, b in self._pieces if b > place[0]),
                max(b for a, b in self._pieces if a < place[1]),
            )
            for place in question.places
        ]
        words = [self._text[start:end] for start, end in held]
        text, seconds = answer_from(self._model, words, question.text)
        return Found(held, text, None, None, seconds)


class BM25:
    """Words instead of heads: the pieces that score best by BM25 (English stop words left out), the
    best of which is re-read."""

    def __init__(self, document: ql.Document) -> None:
        snapshot = document.snapshot()
        self._model = document.model
        self._text = document.text
        self._pieces = [snapshot.characters(*bound) for bound in snapshot.grid.bounds.tolist()]
        words = [self._text[start:end] for start, end in self._pieces]
        self._index = bm25s.BM25(backend="numpy")
        self._index.index(bm25s.tokenize(words, show_progress=False), show_progress=False)

    def ask(self, question: Question) -> Found:
        """The best pieces, and the answer from the first one, grown to whole sentences."""
        asked = bm25s.tokenize(question.text, show_progress=False, return_ids=False)[0]
        scores = self._index.get_scores(asked)
        best = [self._pieces[i] for i in np.argsort(-scores, kind="stable")[:BEST]]
        passage = self._text[slice(*widen(self._text, *best[0]))]
        text, seconds = answer_from(self._model, [passage], question.text)
        return Found(best, text, None, None, seconds)


@dataclasses.dataclass(frozen=True)
class Reading:
    """A text read in one way, and what answers from it; ``seconds`` for reading."""

    seconds: float
    tokens: int
    systems: dict[str, System]


def _timed(read: Callable[[], ql.Document]) -> tuple[ql.Document, float]:
    started = time.perf_counter()
    document = read()
    return document, time.perf_counter() - started


def read_window(model: ql.Model, text: str) -> Reading:
    """By first tokens and window alone, the default."""
    document, seconds = _timed(lambda: model.read(text))
    return Reading(
        seconds,
        len(document),
        {
            "heads": Heads(document),
            "heads, reposition": Heads(document, "reposition"),
            "heads, memory": Heads(document, "memory"),
            "right passage": RightPassage(document),
            "bm25": BM25(document),
        },
    )


def read_lookups(model: ql.Model, text: str) -> Reading:
    """With lookups for what is being read (InfLLM's way, as there is no question yet)."""
    document, seconds = _timed(lambda: model.read(text, memory=ql.MemoryConfig()))
    systems = {"paper": Lookups(document), "heads on infllm reading": Heads(document)}
    return Reading(seconds, len(document), systems)


def read_stream(model: ql.Model, text: str) -> Reading:
    """First tokens and window, everything else forgotten."""
    memory = ql.MemoryConfig(mode="stream")
    document, seconds = _timed(lambda: model.read(text, memory=memory))
    return Reading(seconds, len(document), {"stream": Lookups(document)})


def read_skim(model: ql.Model, text: str) -> Reading:
    """Only as far as finding passages needs."""
    document, seconds = _timed(lambda: model.skim(text))
    return Reading(seconds, len(document), {"skim": Heads(document)})


def read_for_each_question(model: ql.Model, text: str) -> Reading:
    """Nothing is read beforehand. Few first tokens: the question is soon forgotten, as it is not
    kept for its own sake."""
    settings: dict[str, dict[str, Any]] = {
        "question first": {},
        "question first, authors' mask": {"mask": "authors"},
        "question first, 16 first tokens": {"n_init": 16},
        "question first, no lookups": {"topk": 0},
    }
    systems = {
        name: QuestionFirst(model, text, ql.MemoryConfig(**setting))
        for name, setting in settings.items()
    }
    return Reading(0.0, len(model.tokenizer.encode(text)), systems)


READINGS: dict[str, Callable[[ql.Model, str], Reading]] = {
    "window": read_window,
    "skim": read_skim,
    "lookups": read_lookups,
    "stream": read_stream,
    "question first": read_for_each_question,
}
