"""Right if the answer holds one of the fact's answers, as in RULER."""

from __future__ import annotations

from quickllama.eval import metrics
from quickllama.eval.case import Question

__all__ = ["score"]


def score(question: Question, answer: str) -> float:
    """1 or 0."""
    return max((metrics.share_inside(answer, (one,)) for one in question.expected), default=0.0)
