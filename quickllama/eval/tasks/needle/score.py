"""Right if the answer holds one of the fact's answers; a question about two facts needs both."""

from __future__ import annotations

import re

from quickllama.documents.answer import NOT_FOUND
from quickllama.eval.case import Question

__all__ = ["score"]


def score(question: Question, answer: str) -> float:
    """1 or 0; of two facts the share that was answered. Without an answer in the text: whether the
    document was said to hold none."""
    if not question.expected:
        return float(answer == NOT_FOUND)
    if question.kind == "distractors":  # a number may not be part of a longer one
        return float(question.expected[0] in re.findall(r"\d+", answer.replace(",", "")))
    low = answer.lower()
    if question.kind == "two":
        parts = [any(one.lower() in low for one in fact.split("|")) for fact in question.expected]
        return sum(parts) / len(parts)
    return float(any(one.lower() in low for one in question.expected))
