"""The share of the words that the answer holds, as in RULER."""

from __future__ import annotations

from quickllama.eval import metrics
from quickllama.eval.case import Question

__all__ = ["score"]


def score(question: Question, answer: str) -> float:
    """0 to 1."""
    return metrics.share_inside(answer, question.expected)
