"""RULER's ``validation.jsonl`` (Hsieh et al., 2024): ``{"input", "outputs"}`` a line; the file's or
folder's name says which task it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from quickllama.errors import FileProblem
from quickllama.eval.case import Case, Question
from quickllama.eval.files import case_of, field, json_lines, kind_of, texts

__all__ = ["KINDS", "NEW_TOKENS", "read"]

NEW_TOKENS = {"niah": 128, "vt": 32, "cwe": 128, "fwe": 64, "qa": 32}
KINDS = tuple(NEW_TOKENS)


def read(path: Path, count: Callable[[str], int]) -> Iterator[Case]:
    """A case for each row: ``input`` up to its last line is the text, the last line the question.
    Raises FileProblem."""
    kind = kind_of(path, KINDS)
    for where, row in json_lines(path):
        text, _, asked = field(where, row, "input").rstrip().rpartition("\n")
        if not text.strip():
            raise FileProblem(f"{where}: 'input' is one line; the last one should ask")
        question = Question(kind, asked.strip(), texts(where, row, "outputs"))
        yield case_of(text, question, count)
