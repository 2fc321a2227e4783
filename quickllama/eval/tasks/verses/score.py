"""The label must be in the answer; of a verse's words the F1 counts, from 0.8 on as right."""

from __future__ import annotations

import re

from quickllama.eval import metrics
from quickllama.eval.case import Question

__all__ = ["RIGHT_FROM", "score"]

RIGHT_FROM = 0.8


def score(question: Question, answer: str) -> float:
    """0 to 1."""
    (right,) = question.expected
    if question.kind == "label":  # Ruth 1:1 is not Ruth 1:16
        return float(re.search(rf"\b{re.escape(right)}(?!\d)", answer) is not None)
    return metrics.token_f1(answer, question.expected)
