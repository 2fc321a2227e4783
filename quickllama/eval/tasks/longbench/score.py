"""The metric that LongBench's ``eval.py`` has for each data set, the best over all answers."""

from __future__ import annotations

import re

from quickllama.eval import metrics
from quickllama.eval.case import Question

__all__ = ["score"]

_FIRST_LINE = ("trec", "triviaqa", "samsum")
_SUMMARIES = ("gov_report", "qmsum", "multi_news", "samsum")


def score(question: Question, answer: str) -> float:
    """0 to 1."""
    kind, expected = question.kind, question.expected
    if kind in _FIRST_LINE:
        answer = answer.lstrip("\n").split("\n")[0]
    if kind in _SUMMARIES:
        return metrics.rouge(answer, expected)
    if kind in ("lcc", "repobench-p"):
        return metrics.code_similarity(answer, expected)
    if kind == "trec":
        return metrics.classification(answer, expected, question.more["classes"])
    if kind == "passage_count":
        return max((metrics.number_share(answer, one) for one in expected), default=0.0)
    if kind == "passage_retrieval_en":
        numbers = [found[1] for one in expected if (found := re.search(r"Paragraph (\d+)", one))]
        return max((metrics.number_share(answer, number) for number in numbers), default=0.0)
    return metrics.token_f1(answer, expected)
