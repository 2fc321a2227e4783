"""∞-Bench's files (Zhang et al., 2024): ``{"context", "input", "answer", "options"}`` a line; the
file's name says which task it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from quickllama.errors import FileProblem
from quickllama.eval.case import Case, Question
from quickllama.eval.files import case_of, field, json_lines, kind_of, texts

__all__ = ["KINDS", "NEW_TOKENS", "read"]

NEW_TOKENS = {
    "passkey": 16,
    "number_string": 24,
    "kv_retrieval": 64,
    "longbook_qa_eng": 40,
    "longbook_sum_eng": 1200,
    "longbook_choice_eng": 40,
    "longdialogue_qa_eng": 40,
    "math_find": 16,
    "math_calc": 256,
    "code_run": 16,
    "code_debug": 40,
}
KINDS = tuple(NEW_TOKENS)
LETTERS = "ABCD"
_WITH_OPTIONS = ("longbook_choice_eng", "code_debug")


def read(path: Path, count: Callable[[str], int]) -> Iterator[Case]:
    """A case for each row. Raises FileProblem."""
    kind = kind_of(path, KINDS)
    for where, row in json_lines(path):
        expected = texts(where, row, "answer")
        words = field(where, row, "input").strip()
        if kind == "longbook_sum_eng":
            words = "Summarise the book."
        if kind in _WITH_OPTIONS:
            options = texts(where, row, "options")
            if len(options) != len(LETTERS) or expected[0] not in options:
                raise FileProblem(f"{where}: there are not four options with the answer among them")
            listed = [f"{letter}. {one}" for letter, one in zip(LETTERS, options, strict=True)]
            words = "\n".join([words, *listed, "Answer with the letter."])
            expected = (LETTERS[options.index(expected[0])], expected[0])
        question = Question(kind, words or "What is the answer?", expected)
        yield case_of(field(where, row, "context"), question, count)
