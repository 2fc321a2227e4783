"""Ways to answer questions about a text. Each reads it, once or for every question, and is asked.

| method | reads | answers from |
| --- | --- | --- |
| ``heads`` | once, first tokens and window alone | passages that retrieval heads find, re-read |
| ``heads-reposition`` | the same reading | their keys and values, before the question |
| ``heads-memory`` | the same reading | their blocks, from afar |
| ``heads-infllm`` | once, with look-ups (mode infllm) | as ``heads`` |
| ``skim`` | once, the first layers alone | passages that those heads find, re-read |
| ``qllm``, ``infllm``, ``stream``, ``infinite``, ``full`` | anew for each question, which stands \
before and after the text; or once (``question_position="after"``) | the memory of that mode |
| ``given`` | nothing | the right passage alone, no sentence pointed out |
| ``bm25`` | nothing | the passage that shares the question's rare words |
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from quickllama import checks
from quickllama.config import MemoryConfig
from quickllama.documents.answer import Answer, Span, widen
from quickllama.documents.names import MENTIONED, USED
from quickllama.errors import InvalidValue, MissingPackage
from quickllama.eval.case import Question
from quickllama.eval.settings import Settings
from quickllama.prompt import DOCUMENT_PROMPT, PASSAGES_PROMPT, POINTED_OUT, text_tokens

if TYPE_CHECKING:
    from quickllama.documents.document import Document
    from quickllama.model import Model

__all__ = ["METHODS", "Method", "Prediction", "Reading", "find_methods"]

PIECE = 64  # tokens of a passage of the controls, as of a memory block
BEST = 8  # passages whose places are kept


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a method made of a question.

    * ``answer``: whatever it says when it must; ``found``: whether it thinks that the text holds an
      answer (None: it cannot tell), ``confidence`` how sure it is.
    * ``pieces``: characters of the text that it ranked first, best first; None: it does not rank.
    """

    answer: str
    found: bool | None = None
    confidence: float | None = None
    pieces: Sequence[Span] | None = None
    seconds: float = 0.0
    first_token_seconds: float = 0.0
    notes: tuple[str, ...] = ()


class Reading:
    """A text, read in one way by whoever is first to need it; ``seconds``: for that."""

    def __init__(self, model: Model, text: str, settings: Settings) -> None:
        self.model = model
        self.text = text
        self.settings = settings
        self.seconds = 0.0
        self._document: Document | None = None

    def document(self, read: Callable[[Reading], Document]) -> Document:
        """The text as a document; ``read`` is called the first time."""
        if self._document is None:
            started = time.perf_counter()
            self._document = read(self)
            self.seconds = time.perf_counter() - started
        return self._document

    @cached_property
    def cut(self) -> list[Span]:
        """The text in pieces of :data:`PIECE` tokens, as characters."""
        _, offsets = text_tokens(self.model.tokenizer, self.text)
        firsts = range(0, len(offsets), PIECE)
        return [(int(offsets[i, 0]), int(offsets[i : i + PIECE, 1].max())) for i in firsts]

    def by_words(self, question: str) -> list[Span]:
        """The pieces that share the question's rare words, by BM25 without English stop words, best
        first. Raises MissingPackage without the library."""
        scores = self._index.get_scores(_words([question])[0])
        return [self.cut[i] for i in np.argsort(-scores, kind="stable")[:BEST].tolist()]

    @cached_property
    def _index(self) -> Any:
        words = _words([self.text[start:end] for start, end in self.cut])
        import bm25s

        index = bm25s.BM25(backend="numpy")
        index.index(words, show_progress=False)
        return index


def _words(texts: Sequence[str]) -> Any:
    try:
        import bm25s
    except ModuleNotFoundError:
        raise MissingPackage(
            'the method bm25 needs the library bm25s: pip install "quickllama[eval]"'
        ) from None
    return bm25s.tokenize(list(texts), show_progress=False, return_ids=False)


Ask = Callable[[Reading, Question, int], Prediction]


@dataclasses.dataclass(frozen=True)
class Method:
    """A method; ``reading``: those of the same one share a text that was read.

    ``cost``: of reading a token, as part of that of reading once; ``anew``: for each question.
    ``ranks``: it needs heads; ``refuses``: it can say that a text holds no answer; ``placed``: it
    needs to know where the answer is. ``identity``: all that its answers depend on.
    """

    name: str
    reading: str
    ask: Ask
    identity: Callable[[Model, Settings], dict[str, Any]]
    cost: float = 1.0
    anew: bool = False
    ranks: bool = False
    refuses: bool = False
    placed: bool = False


# Retrieval heads ----------------------------------------------------------------------------------


def _read(reading: Reading, memory: MemoryConfig) -> Document:
    settings = reading.settings
    return reading.model.read(
        reading.text,
        memory=memory,
        kv_dtype=settings.kv_dtype,
        prompt=_prompt(settings, DOCUMENT_PROMPT),
    )


def _read_skimming(reading: Reading) -> Document:
    settings = reading.settings
    return reading.model.skim(
        reading.text, kv_dtype=settings.kv_dtype, prompt=_prompt(settings, DOCUMENT_PROMPT)
    )


def _heads(use: str, read: Callable[[Reading], Document]) -> Ask:
    def ask(reading: Reading, question: Question, new_tokens: int) -> Prediction:
        document = reading.document(read)
        answer = document.ask(question.text, use=use, always_answer=True, max_new_tokens=new_tokens)
        snapshot = document._snapshot()
        known = snapshot.skim or reading.model.retrieval_heads
        rule = None if known is None else known.found
        found = None
        if answer.confidence is not None and rule is not None:
            found = answer.confidence >= rule.threshold
        ranking = answer.ranking
        assert ranking is not None
        bounds = ranking.grid.bounds
        best = [snapshot.characters(*bounds[piece].tolist()) for piece in ranking.best(BEST)]
        return _prediction(answer, found, best)

    return ask


def _settings_of(memory: MemoryConfig, model: Model) -> dict[str, Any]:
    """The fields of ``memory``. ``keep_query_tokens`` only where it is set, so that results from
    before there was such a choice are still found."""
    table = dataclasses.asdict(memory.resolved(model.config))
    if not memory.keep_query_tokens:
        del table["keep_query_tokens"]
    return table


def _heads_identity(
    memory: MemoryConfig, use: str, skim: bool = False
) -> Callable[[Model, Settings], dict[str, Any]]:
    def identity(model: Model, settings: Settings) -> dict[str, Any]:
        known = model.retrieval_heads
        assert known is not None
        rereads_with_ours = use == "reread" and settings.prompt is None
        return {
            "query_aware": False,
            "question_position": "after",
            "prompt": _prompt(settings, DOCUMENT_PROMPT),
            "memory": _settings_of(memory, model),
            **({"passages": [PASSAGES_PROMPT, POINTED_OUT]} if rereads_with_ours else {}),
            "names": [MENTIONED, USED],
            "heads": {**known.to_dict(), "source": None, "skim": None}
            if not skim or known.skim is None
            else dataclasses.asdict(known.skim),
        }

    return identity


# The memory's own lookups, or none ----------------------------------------------------------------


def _by_memory(mode: str) -> Ask:
    def ask(reading: Reading, question: Question, new_tokens: int) -> Prediction:
        settings = reading.settings
        started = time.perf_counter()
        if settings.question_position == "both":
            document = reading.model.read(
                reading.text,
                question=question.text,
                memory=settings.memory(mode),
                kv_dtype=settings.kv_dtype,
                prompt=_prompt(settings, PASSAGES_PROMPT),
            )
            reading.seconds = time.perf_counter() - started
            answer = document.ask(max_new_tokens=new_tokens)
        else:
            document = reading.document(partial(_read_unasked, mode=mode))
            paper = "paper" if document.memory.mode == "qllm" else None
            answer = document.ask(question.text, retrieval=paper, max_new_tokens=new_tokens)
        looks_up = mode in ("qllm", "infllm")
        return _prediction(answer, None, _spans(answer) if looks_up else None)

    return ask


def _read_unasked(reading: Reading, mode: str) -> Document:
    settings = reading.settings
    memory = settings.memory(mode)
    if mode == "infllm":  # the same numbers, and a document that may be asked by its own lookups
        memory = settings.memory("qllm", question_weight=0.0)
    return reading.model.read(
        reading.text,
        memory=memory,
        kv_dtype=settings.kv_dtype,
        prompt=_prompt(settings, DOCUMENT_PROMPT),
    )


def _memory_identity(mode: str) -> Callable[[Model, Settings], dict[str, Any]]:
    def identity(model: Model, settings: Settings) -> dict[str, Any]:
        both = settings.question_position == "both"
        memory = _settings_of(settings.memory(mode), model)
        if mode == "full":
            memory = {"mode": mode}
        return {
            "query_aware": both,
            "question_position": settings.question_position,
            "prompt": _prompt(settings, PASSAGES_PROMPT if both else DOCUMENT_PROMPT),
            "window": settings.window if mode != "full" else None,
            "memory": memory,
        }

    return identity


# Controls -----------------------------------------------------------------------------------------


def _answer_from(reading: Reading, words: str, question: Question, new_tokens: int) -> Answer:
    """The model's answer from a passage, with the prompt in which passages are re-read."""
    document = reading.model.read(
        words,
        question=question.text,
        memory=MemoryConfig(mode="full"),
        kv_dtype=reading.settings.kv_dtype,
        prompt=_prompt(reading.settings, PASSAGES_PROMPT),
    )
    return document.ask(max_new_tokens=new_tokens)


def _given(reading: Reading, question: Question, new_tokens: int) -> Prediction:
    held = []
    for begin, end in question.places:
        first = min(a for a, b in reading.cut if b > begin)
        last = max(b for a, b in reading.cut if a < end)
        held.append(widen(reading.text, first, last))
    words = "\n\n".join(reading.text[a:b] for a, b in dict.fromkeys(held))
    return _prediction(_answer_from(reading, words, question, new_tokens), None, held)


def _bm25(reading: Reading, question: Question, new_tokens: int) -> Prediction:
    best = reading.by_words(question.text)
    words = reading.text[slice(*widen(reading.text, *best[0]))]
    return _prediction(_answer_from(reading, words, question, new_tokens), None, best)


def _control_identity(model: Model, settings: Settings) -> dict[str, Any]:
    return {
        "query_aware": True,
        "question_position": "both",
        "prompt": _prompt(settings, PASSAGES_PROMPT),
        "memory": {"mode": "full"},
    }


# All of them --------------------------------------------------------------------------------------


def _prediction(answer: Answer, found: bool | None, pieces: Sequence[Span] | None) -> Prediction:
    return Prediction(
        answer.text,
        found,
        answer.confidence,
        pieces,
        answer.seconds,
        answer.first_token_seconds,
        answer.notes,
    )


def _spans(answer: Answer) -> list[Span]:
    return [(passage.start, passage.end) for passage in answer.evidence]


def _prompt(settings: Settings, usual: str) -> str:
    return usual if settings.prompt is None else settings.prompt


def _all() -> Mapping[str, Method]:
    plain, looking = MemoryConfig(mode="infllm", topk=0), MemoryConfig(mode="infllm")
    found = [
        Method(
            name,
            reading,
            _heads(use, read),
            _heads_identity(memory, use, skim=reading == "skim"),
            cost=0.3 if reading == "skim" else 1.0,
            ranks=True,
            refuses=True,
        )
        for name, reading, use, read, memory in (
            ("heads", "window", "reread", partial(_read, memory=plain), plain),
            ("heads-reposition", "window", "reposition", partial(_read, memory=plain), plain),
            ("heads-memory", "window", "memory", partial(_read, memory=plain), plain),
            ("heads-infllm", "look-ups", "reread", partial(_read, memory=looking), looking),
            ("skim", "skim", "reread", _read_skimming, MemoryConfig.skim()),
        )
    ]
    found += [
        Method(mode, mode, _by_memory(mode), _memory_identity(mode), anew=True)
        for mode in ("qllm", "infllm", "stream", "infinite", "full")
    ]
    for name, ask, placed in (("given", _given, True), ("bm25", _bm25, False)):
        found.append(Method(name, "none", ask, _control_identity, cost=0.0, placed=placed))
    return {method.name: method for method in found}


METHODS: Mapping[str, Method] = _all()


def find_methods(names: Sequence[str], model: Model, settings: Settings) -> list[Method]:
    """The methods ``names``, checked against what ``model`` can. Raises InvalidValue."""
    chosen = []
    for name in names:
        checks.choice("a method", name, tuple(METHODS))
        method = METHODS[name]
        known = model.retrieval_heads if method.ranks else None
        if method.ranks and (known is None or (name == "skim" and known.skim is None)):
            raise InvalidValue(
                f"method {name!r} needs the model's retrieval heads, and none are known: run "
                "model.calibrate() or quickllama calibrate once"
            )
        if settings.prompt is not None and method.ranks and "{question}" in _before(settings):
            raise InvalidValue(
                f"method {name!r} reads a text before anyone asks, so that its prompt has no "
                "{question} before {text}"
            )
        chosen.append(method)
    return chosen


def _before(settings: Settings) -> str:
    return (settings.prompt or "").split("{text}")[0]
