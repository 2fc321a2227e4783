"""``quickllama ask`` and ``quickllama chat``: read a text, answer any number of questions."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence
from typing import Any

from quickllama.cli.terminal import print_json, take_any_bytes, tolerate_any_character, wrapped
from quickllama.cli.textfile import read_text
from quickllama.config import MemoryConfig
from quickllama.documents.answer import Answer, Passage
from quickllama.documents.document import Document
from quickllama.documents.document_file import held_as_in
from quickllama.documents.writing import write_safely
from quickllama.errors import Error, InvalidValue
from quickllama.model import Model
from quickllama.prompt import checked_question

__all__ = ["Request", "ask", "chat"]

_TURNS = 2  # earlier questions by which --history seeks passages, too


@dataclasses.dataclass(frozen=True)
class Request:
    """What the command line asks for; ``read_already``: the file is a document, not a text;
    ``reread_all``: the text is read anew for each question, with the question before and after it,
    as in the paper."""

    file: str
    read_already: bool
    questions: tuple[str, ...]
    model: str
    memory: MemoryConfig
    reread_all: bool
    max_new_tokens: int
    threads: int | None
    dtype: str | None
    kv_dtype: str | None
    as_json: bool
    quiet: bool
    evidence: bool
    use: str | None
    passages: int | None
    neighbours: int | None
    always_answer: bool
    skim: bool = False
    history: bool = False
    ram_limit: int | None = None


def ask(request: Request) -> int:
    """Answer every question; returns the exit code."""
    for question in request.questions:  # before the first minute is spent
        checked_question(question)
    text, model = _load(request)
    document, seconds = None, 0.0
    answers = []
    for number, question in enumerate(request.questions):
        if not request.as_json and len(request.questions) > 1:
            print(f"{chr(10) if number else ''}{question}", flush=True)
        if document is None or request.reread_all:
            started = time.perf_counter()
            document = _read(request, model, text, question if request.reread_all else None)
            seconds += time.perf_counter() - started
        answers.append(_answer(request, document, question))
    if request.as_json and document is not None:
        print_json(_report(request, document, seconds, answers))
    return 0


def chat(request: Request) -> int:
    """Read once, then answer questions from standard input until it ends; returns the exit code."""
    text, model = _load(request)
    document = _read(request, model, text)
    if not request.quiet:
        print(f"{document!r}\nAsk; an empty line or Ctrl-D ends.", file=sys.stderr)
    take_any_bytes()
    turns: list[str] = []
    while True:
        try:
            question = input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return 0
        if not question.strip():
            if sys.stdin.isatty():
                return 0
            continue
        try:
            _answer(request, document, question, turns[-_TURNS:] if request.history else ())
        except Error as problem:  # the next question may be a better one
            print(f"quickllama: {problem}", file=sys.stderr)
            continue
        except KeyboardInterrupt:  # ends the answer, not the conversation
            print(file=sys.stderr)
            continue
        turns.append(question)


def _load(request: Request) -> tuple[str, Model]:
    """The text (none of a document) and the model."""
    dtype, text = request.dtype, ""
    if not request.read_already:
        text = read_text(request.file)
        if request.ram_limit is not None:
            raise InvalidValue(
                "--ram-limit is for documents in files; read the text into one first: "
                "quickllama read FILE --save DOCUMENT"
            )
    elif dtype is None:  # other weights would be refused
        dtype = held_as_in(request.file)
    model = Model.from_pretrained(request.model, dtype=dtype, n_threads=request.threads)
    tolerate_any_character()
    return text, model


def _read(request: Request, model: Model, text: str, question: str | None = None) -> Document:
    if request.read_already:
        return model.load_document(request.file, ram_limit=request.ram_limit)
    if request.skim:
        return model.skim(
            text,
            progress=not request.quiet,
            memory=request.memory,
            title=request.file,
            kv_dtype=request.kv_dtype,
        )
    return model.read(
        text,
        progress=not request.quiet,
        memory=request.memory,
        title=request.file,
        question=question,
        kv_dtype=request.kv_dtype,
    )


def _answer(
    request: Request, document: Document, question: str, history: Sequence[str] = ()
) -> Answer:
    """Answer, writing as it comes unless JSON is asked for."""
    answer = document.ask(
        question,
        stream=None if request.as_json else write_safely,
        history=history,
        use=request.use,
        passages=request.passages,
        neighbours=request.neighbours,
        always_answer=request.always_answer,
        max_new_tokens=request.max_new_tokens,
    )
    if not request.as_json:
        print(flush=True)
        if not request.quiet:
            for note in answer.notes:
                print(f"note: {note}", file=sys.stderr)
        if request.evidence:
            _show_evidence(answer)
    return answer


def _show_evidence(answer: Answer) -> None:
    print("\nEvidence:" if answer.evidence else "\n(no evidence)")
    for passage in answer.evidence:
        write_safely(
            f"  characters {passage.start}–{passage.end}, score {passage.score:.2f}, "
            f"{_chosen_by(passage)}\n"
            f"{wrapped(passage.text)}\n"
        )


def _chosen_by(passage: Passage) -> str:
    if not passage.layers:
        return "chosen by no layer alone"
    return f"chosen in {len(passage.layers)} layer{'s' if len(passage.layers) > 1 else ''}"


def _report(
    request: Request, document: Document, seconds: float, answers: list[Answer]
) -> dict[str, Any]:
    """What --json prints."""
    return {
        "file": request.file,
        "characters": len(document.text),
        "tokens": len(document),
        "seconds_reading": seconds,
        "model": request.model,
        "dtype": document.model.dtype,
        "threads": document.model.n_threads,
        "skimmed": document.skimmed,
        "memory": dataclasses.asdict(document.memory.resolved(document.model.config)),
        "reread_all": request.reread_all,
        "answers": [answer.to_dict() for answer in answers],
    }
