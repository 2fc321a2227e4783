"""Right if the answer's first sentence names the right one and no other, as in BABILong."""

from __future__ import annotations

from quickllama.eval import metrics
from quickllama.eval.case import Question
from quickllama.eval.tasks.babi.make_data import LABELS

__all__ = ["score"]


def score(question: Question, answer: str) -> float:
    """1 or 0."""
    (right,) = question.expected
    return metrics.only_label(answer, right, LABELS[question.kind], question.text)
