"""Evaluation: make a task's texts, read each once for all who share a reading, ask, score, keep."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

import quickllama
from quickllama import checks
from quickllama.config import KV_DTYPE
from quickllama.dtypes import kv_dtype_name
from quickllama.errors import InvalidType, InvalidValue, warn
from quickllama.eval.case import Case, Draft, Question
from quickllama.eval.facts import load_facts
from quickllama.eval.haystack import Haystack, load_haystack
from quickllama.eval.methods import Method, Prediction, Reading, find_methods
from quickllama.eval.results import Store
from quickllama.eval.settings import Options, Settings
from quickllama.eval.summary import Results
from quickllama.eval.tasks import Task, find_task
from quickllama.progress import Progress, showing

if TYPE_CHECKING:
    from quickllama.model import Model

__all__ = ["cases_of", "evaluate"]

MOST_FULL = 131_072  # tokens that the mode full reads
NO_TEXT = Haystack("none", " ")  # for tasks that hide nothing in ordinary text
PROMPT_ROOM = 1024  # tokens of question, prompt and answer

Key = tuple[str, int, str, str, str, tuple[str, ...]]
"""Settings, length, text, kind and words of a question, expected answers."""


def evaluate(
    model: Model,
    task: str,
    *,
    out: str | Path | None = None,
    progress: bool | Progress | None = None,
    **settings: Unpack[Options],
) -> Results:
    """Ask ``model`` the questions of a task, by one or several methods, and score the answers.

    * ``task``: a name of :data:`quickllama.eval.tasks.MADE` or ``READ``.
    * ``out``: a folder; results are kept there in ``TASK.jsonl`` as they come, and what the file
      holds already, of the same settings, is not asked again. None: nothing is kept.
    * ``progress``: True: a bar on standard error with the time left; or called with (tokens read,
      tokens to read).
    * ``settings``: the fields of :class:`quickllama.eval.settings.Settings`.

    All methods get the same texts and questions. Raises InvalidType, InvalidValue, FileProblem, or
    MissingPackage.
    """
    if not isinstance(model, quickllama.Model):
        raise InvalidType(f"model must be a quickllama.Model, not {type(model).__name__}")
    if out is not None and not isinstance(out, str | Path):
        raise InvalidType(f"out must be the path of a folder, not {out!r}")
    unknown = [name for name in settings if name not in Settings.__dataclass_fields__]
    if unknown:
        known = list(Settings.__dataclass_fields__)
        raise InvalidType(
            f"evaluate has no setting {unknown[0]!r}"
            f"{checks.nearest(unknown[0], known) or '; it has ' + ', '.join(known)}"
        )
    chosen = Settings(**settings)
    found = find_task(task)
    methods = find_methods(chosen.methods, model, chosen)
    _check(found, chosen, methods)
    store = Store(None if out is None else Path(out) / f"{found.name}.jsonl")
    evaluation = Evaluation(model, found, chosen, methods, store)
    with showing(progress, found.name) as show:
        evaluation.run(show)
    return Results(evaluation.wanted_rows(), store.headers)


def _check(task: Task, settings: Settings, methods: Sequence[Method]) -> None:
    for kind in settings.kinds or ():
        checks.choice(f"a kind of question of task {task.name!r}", kind, task.kinds)
    if (task.read is None) != (settings.data is None):
        raise InvalidValue(
            f"task {task.name!r} makes its data; leave data out"
            if task.read is None
            else f"task {task.name!r} reads a file of that benchmark: give data=, its path"
        )
    longest = settings.lengths[-1] if task.read is None else 0
    if any(method.name == "full" for method in methods) and (
        tokens(longest) + PROMPT_ROOM > MOST_FULL
    ):
        raise InvalidValue(
            f"method 'full' reads at most {MOST_FULL:,} tokens, question and prompt included; "
            f"leave the length {tokens(longest):,} out, or the method"
        )


def tokens(length: int | str) -> int:
    """A checked length."""
    return int(length)


# Data ---------------------------------------------------------------------------------------------


def cases_of(
    task: Task, settings: Settings, count: Callable[[str], int], haystack: Haystack
) -> Iterator[Case]:
    """The texts of a task, short ones first."""
    kinds = tuple(settings.kinds or task.usual)
    if task.read is not None:
        assert settings.data is not None
        yield from _wanted(task.read(Path(settings.data), count), kinds)
        return
    assert task.make is not None
    slots = [int(depth) for depth in settings.depths for _ in range(settings.n)]
    texts = -(-len(slots) // task.per_text)
    name = list(task.name.encode())
    for length in map(tokens, settings.lengths):
        for index in range(texts):
            draft = Draft(
                length=length,
                depths=tuple(slots[index::texts]),
                index=index,
                kinds=kinds,
                rng=np.random.default_rng([settings.seed, length, index, *name]),
                shared=np.random.default_rng([settings.seed, length, *name]),
                count=count,
                haystack=haystack,
                facts=None if settings.facts is None else Path(settings.facts),
            )
            yield from task.make(draft)


def _wanted(cases: Iterator[Case], kinds: Sequence[str]) -> Iterator[Case]:
    for case in cases:
        questions = tuple(question for question in case.questions if question.kind in kinds)
        if questions:
            yield dataclasses.replace(case, questions=questions)


class Evaluation:
    """One task, its settings and its methods."""

    def __init__(
        self,
        model: Model,
        task: Task,
        settings: Settings,
        methods: Sequence[Method],
        store: Store,
    ) -> None:
        self.model = model
        self.task = task
        self.settings = settings
        self.methods = methods
        self.store = store
        self.haystack = load_haystack(settings.texts) if "texts" in task.needs else NO_TEXT
        about = {"threads": model.n_threads, "cpu_variant": quickllama.cpu_variant()}
        self.ids = {method.name: store.header(self._identity(method), about) for method in methods}
        self.done = {_key(row): row for row in store.rows}
        self.wanted: list[Key] = []

    def run(self, show: Progress | None) -> None:
        """Ask what was not asked yet."""
        work = list(self._work())
        total = sum(cost for *_, cost in work)
        passed = 0.0
        for case, group, cost in work:
            reading = Reading(self.model, case.text, self.settings)
            pairs = [(q, m) for q in case.questions for m in group if _suits(m, q)]
            missing = [pair for pair in pairs if self._key(case, pair[1], pair[0]) not in self.done]
            self.wanted += [self._key(case, method, question) for question, method in pairs]
            for question, method in missing:
                self._ask(case, method, question, reading)
                passed += cost / len(missing)
                if show is not None:
                    show(round(passed), total)
        asked = {key[0] for key in self.wanted}
        for method in self.methods:
            if self.ids[method.name] not in asked:
                warn(
                    f"method {method.name!r} was asked nothing: it needs to know where an answer "
                    "lies, or questions that have one, and these are not of that kind"
                )

    def wanted_rows(self) -> list[dict[str, Any]]:
        """The results of this evaluation, those from before included."""
        return [self.done[key] for key in self.wanted]

    def _work(self) -> Iterator[tuple[Case, list[Method], int]]:
        """Texts and those methods that share a reading, with the tokens still to be read."""
        for case in cases_of(self.task, self.settings, self._count, self.haystack):
            groups: dict[str, list[Method]] = {}
            for method in self.methods:
                groups.setdefault(method.reading, []).append(method)
            for group in groups.values():
                asked = [q for q in case.questions if any(_suits(m, q) for m in group)]
                if not asked:
                    continue
                part = dataclasses.replace(case, questions=tuple(asked))
                yield part, group, self._cost(part, group)

    def _cost(self, case: Case, group: Sequence[Method]) -> int:
        """Tokens to be read, those of a cheap reading counted in part."""
        method = group[0]
        missing = sum(
            self._key(case, method, question) not in self.done
            for method in group
            for question in case.questions
            if _suits(method, question)
        )
        anew = method.anew and self.settings.question_position == "both"
        return round(case.tokens * method.cost * (missing if anew else min(missing, 1)))

    # One question ---------------------------------------------------------------------------------

    def _ask(self, case: Case, method: Method, question: Question, reading: Reading) -> None:
        new_tokens = self.task.new_tokens(question.kind)
        found = method.ask(reading, question, new_tokens)
        row = self._row(case, method, question, found)
        row["reading_seconds"] = round(reading.seconds, 3)
        self.store.add(row)
        self.done[_key(row)] = row

    def _row(
        self, case: Case, method: Method, question: Question, found: Prediction
    ) -> dict[str, Any]:
        score = self.task.score(question, found.answer)
        said = bool(question.expected) and score >= self.task.right_from
        right = said and found.found is not False
        if not question.expected:
            right = found.found is False
            score = float(right)
        return {
            "settings": self.ids[method.name],
            "task": self.task.name,
            "method": method.name,
            "length": case.length,
            "tokens": case.tokens,
            "depth": question.depth,
            "text": _digest(case.text),
            "kind": question.kind,
            "question": question.text,
            "expected": list(question.expected),
            "answer": found.answer,
            "correct": right,
            "right_words": said,
            "score": round(score, 4),
            "found": found.found,
            "confidence": None if found.confidence is None else round(found.confidence, 4),
            "ranks": None if found.pieces is None else _ranks(question, found.pieces),
            "seconds": round(found.seconds, 3),
            "first_token_seconds": round(found.first_token_seconds, 3),
            "notes": list(found.notes),
        }

    def _key(self, case: Case, method: Method, question: Question) -> Key:
        asked = question.kind, question.text, question.expected
        return self.ids[method.name], case.length, _digest(case.text), *asked

    def _count(self, text: str) -> int:
        return len(self.model.tokenizer.encode(text, add_special_tokens=False))

    def _identity(self, method: Method) -> dict[str, Any]:
        """All that the answers depend on, but for the text and the question."""
        model, settings, task = self.model, self.settings, self.task
        facts = None
        if "facts" in task.needs:
            facts = load_facts(None if settings.facts is None else Path(settings.facts))
        return {
            "task": task.name,
            "data_format": task.data_format,
            "seed": settings.seed,
            "texts": f"{self.haystack.name} {self.haystack.digest}" if task.needs else None,
            "facts": None if facts is None else _digest(repr(facts)),
            "data": None if settings.data is None else Path(settings.data).name,
            "method": method.name,
            "model": model.config.model_type,
            "parameters": model.config.parameters,
            "fingerprint": f"{model.fingerprint.sizes}-{model.fingerprint.signs}",
            "dtype": model.dtype,
            "kv_dtype": kv_dtype_name(KV_DTYPE if settings.kv_dtype is None else settings.kv_dtype),
            "version": quickllama.__version__,
            **method.identity(model, settings),
        }


def _suits(method: Method, question: Question) -> bool:
    """Whether a method can be asked a question."""
    if not question.expected:
        return method.refuses
    return bool(question.places) or not method.placed


def _ranks(question: Question, pieces: Sequence[tuple[int, int]]) -> list[int | None]:
    """For each place of the answer: which of the pieces, from 1, is the first to share a character
    with it; None if none does."""
    ranks: list[int | None] = []
    for begin, end in question.places:
        hits = [i for i, (a, b) in enumerate(pieces, 1) if a < end and begin < b]
        ranks.append(hits[0] if hits else None)
    return ranks


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _key(row: dict[str, Any]) -> Key:
    asked = row["kind"], row["question"], tuple(row["expected"])
    return row["settings"], row["length"], row["text"], *asked
