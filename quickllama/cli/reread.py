"""``quickllama ask --reread-all``: the paper's way, a text read anew for each question."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quickllama._core import Session
from quickllama.cli.terminal import print_json, tolerate_any_character, wrapped, write_safely
from quickllama.cli.textfile import read_text
from quickllama.config import GenerationConfig, MemoryConfig
from quickllama.documents.passages import Passage, retrieved_passages
from quickllama.generation import ReadingPlan, check_span, iter_tokens, read
from quickllama.model import Model
from quickllama.progress import showing
from quickllama.prompt import Prompt, question_prompt, text_tokens
from quickllama.tokenizer.stream import TextStream

__all__ = ["Request", "ask_by_rereading"]


@dataclasses.dataclass(frozen=True)
class Request:
    """What the command line asks for."""

    file: str
    questions: tuple[str, ...]
    model: str
    memory: MemoryConfig
    max_new_tokens: int
    threads: int | None
    dtype: str | None
    kv_dtype: str | None
    as_json: bool
    quiet: bool
    passages: int


@dataclasses.dataclass(frozen=True)
class Answer:
    """An answer with what led to it; times in seconds."""

    question: str
    text: str
    tokens: list[int]
    prompt_tokens: int
    seconds_reading: float
    seconds_answering: float
    passages: list[Passage]


def ask_by_rereading(request: Request) -> int:
    """Answer every question; returns the exit code."""
    text = read_text(request.file)
    model = Model.from_pretrained(request.model, dtype=request.dtype, n_threads=request.threads)
    tokenizer = model.tokenizer
    ids, offsets = text_tokens(tokenizer, text)
    prompts = [question_prompt(tokenizer, question, ids, offsets) for question in request.questions]
    for prompt in prompts:  # before the first minute is spent
        check_span(prompt.query_span, len(prompt.ids), request.memory)
    tolerate_any_character()
    answers = []
    for number, (question, prompt) in enumerate(zip(request.questions, prompts, strict=True)):
        if not request.as_json and len(prompts) > 1:
            print(f"{chr(10) if number else ''}{question}", flush=True)
        answer = _answer(model, request, question, prompt, text)
        answers.append(answer)
        if not request.as_json:
            _show_passages(answer, request.memory, model.config.num_hidden_layers, request.passages)
    if request.as_json:
        print_json(_report(request, model, text, answers))
    return 0


def _answer(model: Model, request: Request, question: str, prompt: Prompt, text: str) -> Answer:
    """Read the prompt and decode, writing the answer as it comes unless JSON is asked for."""
    memory = request.memory
    asked = prompt.query_span if memory.mode == "qllm" else None
    plan = ReadingPlan.of(len(prompt.ids), memory, asked)
    session = model.session(memory, query_span=plan.opening_span, kv_dtype=request.kv_dtype)
    *most, last = plan.pieces
    started = time.perf_counter()
    with showing(not request.quiet, "reading") as progress:
        if most:
            read(session, prompt.ids, ReadingPlan(tuple(most), None), progress)
        # Only now a trace: that of the whole reading would grow with the square of the text.
        session = session.fork(trace=True)
        logits = read(session, prompt.ids, ReadingPlan((last,), None), progress)
    reading = time.perf_counter() - started
    tokens, answer = _decode(model, request, session, logits, prompt)
    return Answer(
        question=question,
        text=answer,
        tokens=tokens,
        prompt_tokens=len(prompt.ids),
        seconds_reading=reading,
        seconds_answering=time.perf_counter() - started - reading,
        passages=retrieved_passages(session.trace, prompt, text, memory, request.passages),
    )


def _decode(
    model: Model, request: Request, session: Session, logits: NDArray[np.float32], prompt: Prompt
) -> tuple[list[int], str]:
    """The new tokens without the one that ends the answer, and their text."""
    write: Callable[[str], object] = _discard if request.as_json else write_safely
    stream = TextStream(model.tokenizer)
    eos = model.eos_token_ids
    tokens: list[int] = []
    parts: list[str] = []
    options = GenerationConfig(max_new_tokens=request.max_new_tokens)
    for token in iter_tokens(session, logits, options, prompt=prompt.ids, eos_token_ids=eos):
        if token not in eos:
            tokens.append(token)
            parts.append(stream.push([token]))
            write(parts[-1])
    parts.append(stream.finish())
    write(parts[-1] + "\n")
    return tokens, "".join(parts).strip()


def _discard(text: str) -> None:
    """Show nothing."""


def _show_passages(answer: Answer, memory: MemoryConfig, n_layers: int, most: int) -> None:
    """The passages below an answer, best first."""
    if not most:
        return
    if memory.mode not in ("infllm", "qllm"):
        print(f"\n(mode {memory.mode} retrieves no passages)", flush=True)
        return
    if not answer.passages:
        print("\n(no passage was retrieved: the text fits into the window)", flush=True)
        return
    print("\nRetrieved passages:")
    for passage in answer.passages:
        words = wrapped(passage.text)
        write_safely(
            f"  characters {passage.start}–{passage.end}, in {len(passage.layers)} of {n_layers} "
            f"layers, {passage.score:.0%} of lookups\n{words}\n"
        )


def _report(request: Request, model: Model, text: str, answers: list[Answer]) -> dict[str, Any]:
    """What --json prints."""
    return {
        "file": request.file,
        "characters": len(text),
        "model": request.model,
        "dtype": model.dtype,
        "threads": model.n_threads,
        "memory": dataclasses.asdict(request.memory.resolved(model.config)),
        "answers": [dataclasses.asdict(answer) for answer in answers],
    }
