"""BABILong's rows (Kuratov et al., 2024): ``{"input", "question", "target"}`` a line; the file's or
folder's name says which task it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from quickllama.eval.case import Case, Question
from quickllama.eval.files import case_of, field, json_lines, kind_of

__all__ = ["KINDS", "LABELS", "NEW_TOKENS", "read"]

_ROOMS = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")
LABELS = {
    **dict.fromkeys(("qa1", "qa2", "qa3", "qa4"), _ROOMS),
    "qa5": ("Bill", "Fred", "Jeff", "Mary", "apple", "football", "milk"),
}
KINDS = tuple(LABELS)
NEW_TOKENS = 24


def read(path: Path, count: Callable[[str], int]) -> Iterator[Case]:
    """A case for each row. Raises FileProblem."""
    kind = kind_of(path, KINDS)
    for where, row in json_lines(path):
        asked = field(where, row, "question").strip()
        question = Question(kind, asked, (field(where, row, "target"),))
        yield case_of(field(where, row, "input"), question, count)
