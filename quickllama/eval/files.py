"""Benchmarks' files: one JSON object a line, checked field by field."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from quickllama.errors import FileProblem
from quickllama.eval.case import Case, Question

__all__ = ["case_of", "field", "json_lines", "kind_of", "texts"]


def json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each object, and where it stands. Raises FileProblem for anything else."""
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError("no object")
                yield f"line {number} of {path}", row
    except (OSError, ValueError) as problem:
        raise FileProblem(
            f"{path} holds no JSON objects, one a line, as this benchmark's files do: {problem}"
        ) from None


def field(where: str, row: dict[str, Any], name: str, kind: type | tuple[type, ...] = str) -> Any:
    """``row[name]`` if it is of the type ``kind``; else FileProblem."""
    value = row.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise FileProblem(
            f"{where}: {name!r} is {type(value).__name__ if name in row else 'missing'}, unlike in "
            "this benchmark's files; is it another one's?"
        )
    return value


def texts(where: str, row: dict[str, Any], name: str) -> tuple[str, ...]:
    """``row[name]`` as texts: one, or a list of them."""
    value = field(where, row, name, (str, int, float, list))
    return tuple(str(item) for item in (value if isinstance(value, list) else [value]))


def kind_of(path: Path, known: Sequence[str]) -> str:
    """The kind of a file's questions, by its name or its folder's. Raises FileProblem."""
    for name in (path.stem.lower(), path.parent.name.lower()):
        for kind in sorted(known, key=len, reverse=True):
            if name == kind or name.startswith(f"{kind}_"):
                return kind
    raise FileProblem(
        f"the name of {str(path)!r} does not tell which part of the benchmark it is; name it or "
        f"its folder after one of {', '.join(known)}"
    )


def case_of(text: str, question: Question, count: Callable[[str], int]) -> Case:
    """A text with one question; its length is named by the next power of two tokens."""
    tokens = count(text)
    return Case(text, (question,), 1 << max(tokens - 1, 1).bit_length(), tokens)
