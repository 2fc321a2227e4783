"""Right if the first number of the answer is the key, as in ∞-Bench."""

from __future__ import annotations

from quickllama.eval import metrics
from quickllama.eval.case import Question

__all__ = ["score"]


def score(question: Question, answer: str) -> float:
    """1 or 0."""
    return metrics.first_number(answer, question.expected)
