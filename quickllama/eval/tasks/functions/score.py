"""F1 over words with the first sentence of the documentation."""

from __future__ import annotations

from quickllama.eval import metrics
from quickllama.eval.case import Question

__all__ = ["RIGHT_FROM", "score"]

RIGHT_FROM = 0.5


def score(question: Question, answer: str) -> float:
    """0 to 1."""
    return metrics.token_f1(answer, question.expected)
