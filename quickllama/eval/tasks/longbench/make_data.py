"""LongBench's English files (Bai et al., 2023): ``{"input", "context", "answers", "dataset",
"all_classes"}`` a line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from quickllama.errors import FileProblem
from quickllama.eval.case import Case, Question
from quickllama.eval.files import case_of, field, json_lines, texts

__all__ = ["KINDS", "NEW_TOKENS", "read"]

# Each data set: what is asked where its rows have no question of their own, and tokens to answer.
_SETS = {
    "narrativeqa": ("{input}", 128),
    "qasper": ("{input}", 128),
    "multifieldqa_en": ("{input}", 64),
    "hotpotqa": ("{input}", 32),
    "2wikimqa": ("{input}", 32),
    "musique": ("{input}", 32),
    "gov_report": ("Write a summary of the report in one page.", 512),
    "qmsum": ("{input}", 512),
    "multi_news": ("Write a summary of the news in one page.", 512),
    "trec": ("Of which type is this question, as in the examples above?\n{input}", 64),
    "triviaqa": ("{input}", 32),
    "samsum": ("Summarise this dialogue as the examples above do.\n{input}", 128),
    "passage_count": ("How many different paragraphs are there? Give the number.", 32),
    "passage_retrieval_en": (
        "Which paragraph does this abstract summarise? Answer as in: Paragraph 1.\n{input}",
        32,
    ),
    "lcc": ("What is the next line of this code? {input}", 64),
    "repobench-p": ("What is the next line of this code?\n{input}", 64),
}
KINDS = tuple(_SETS)
NEW_TOKENS = {name: tokens for name, (_, tokens) in _SETS.items()}


def read(path: Path, count: Callable[[str], int]) -> Iterator[Case]:
    """A case for each row. Raises FileProblem, also for the data sets in Chinese."""
    for where, row in json_lines(path):
        name = field(where, row, "dataset").removesuffix("_e")
        if name not in _SETS:
            raise FileProblem(
                f"{where}: the data set {name!r} is not read here; these are: {', '.join(KINDS)}"
            )
        words = _SETS[name][0].replace("{input}", field(where, row, "input")).strip()
        more = {}
        if name == "trec":
            more["classes"] = texts(where, row, "all_classes")
        question = Question(name, words, texts(where, row, "answers"), more=more)
        yield case_of(field(where, row, "context"), question, count)
