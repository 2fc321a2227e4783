"""The share of the outputs that the answer holds; of questions (``qa``) whether it holds one."""

from __future__ import annotations

from quickllama.eval import metrics
from quickllama.eval.case import Question

__all__ = ["score"]


def score(question: Question, answer: str) -> float:
    """0 to 1."""
    if question.kind == "qa":
        return max((metrics.share_inside(answer, (one,)) for one in question.expected), default=0.0)
    return metrics.share_inside(answer, question.expected)
