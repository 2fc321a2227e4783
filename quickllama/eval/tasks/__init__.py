"""The tasks, one folder each: ``README.md`` says what is asked, ``make_data.py`` makes texts and
questions (or reads them from a benchmark's file), ``score.py`` says what an answer is worth."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

from quickllama import checks
from quickllama.eval.case import Case, Draft, Question

__all__ = ["MADE", "READ", "Task", "find_task"]

MADE = (
    *("passkey", "number_string", "key_value", "needle", "multi_key", "multi_value", "multi_query"),
    *(
        "variable_tracking",
        "common_words",
        "frequent_words",
        "fact_qa",
        "babi",
        "verses",
        "functions",
    ),
)
"""Tasks whose data are made."""
READ = ("longbench", "infinitebench", "babilong", "ruler")
"""Tasks whose data are read from a benchmark's file (``data=``)."""


@dataclasses.dataclass(frozen=True)
class Task:
    """A task.

    * ``kinds``: of its questions; ``usual``: those that are asked by default.
    * ``per_text``: things to be asked about that one text may hold.
    * ``needs``: which of ``texts`` (ordinary text) and ``facts`` its data are made of.
    * ``new_tokens``: most tokens of an answer; ``right_from``: the score of a right answer.
    * ``make``: texts from a draft; ``read``: cases of a benchmark's file, with the number of tokens
      that a text has. One of them is None.
    * ``score``: 0 to 1, of a question and an answer.
    * ``data_format``: another number makes results of before other results.
    """

    name: str
    kinds: tuple[str, ...]
    usual: tuple[str, ...]
    per_text: int
    needs: tuple[str, ...]
    new_tokens: Callable[[str], int]
    right_from: float
    make: Callable[[Draft], list[Case]] | None
    read: Callable[[Path, Callable[[str], int]], Iterator[Case]] | None
    score: Callable[[Question, str], float]
    data_format: int


def find_task(name: object) -> Task:
    """The task ``name``. Raises InvalidType or InvalidValue."""
    name = checks.choice("task", name, (*MADE, *READ))
    data = importlib.import_module(f"quickllama.eval.tasks.{name}.make_data")
    scoring = importlib.import_module(f"quickllama.eval.tasks.{name}.score")
    return Task(
        name=name,
        kinds=data.KINDS,
        usual=getattr(data, "USUAL", data.KINDS),
        per_text=getattr(data, "PER_TEXT", 1),
        needs=getattr(data, "NEEDS", ()),
        new_tokens=_tokens(data),
        right_from=getattr(scoring, "RIGHT_FROM", 1.0),
        make=getattr(data, "make", None),
        read=getattr(data, "read", None),
        score=scoring.score,
        data_format=getattr(data, "DATA_FORMAT", 1),
    )


def _tokens(data: ModuleType) -> Callable[[str], int]:
    """By kind of question."""
    most = data.NEW_TOKENS
    return (lambda kind: int(most[kind])) if isinstance(most, dict) else (lambda kind: int(most))
