"""Right if the value is a word of the answer, as in ∞-Bench."""

from __future__ import annotations

from quickllama.eval import metrics
from quickllama.eval.case import Question

__all__ = ["score"]


def score(question: Question, answer: str) -> float:
    """1 or 0."""
    return metrics.in_words(answer, question.expected)
