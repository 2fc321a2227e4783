"""The score that ∞-Bench's ``compute_scores.py`` has for each task."""

from __future__ import annotations

import re

from quickllama.eval import metrics
from quickllama.eval.case import Question

__all__ = ["score"]

_LETTER = re.compile(r"[ABCD]")
_LEADS = ("answer is:", "answer:", "answer is", "option is")
_DEBUG_LEADS = ("answer is:", "is:", "answer:")
_NUMBER = re.compile(r"\d+\.\d+|\d+")
_SIGNS = str.maketrans(dict.fromkeys("\n\"'.,?!{}", " "))
_DEBUG_SIGNS = str.maketrans(dict.fromkeys("\n`'\"-*", " "))
_RUN_SIGNS = str.maketrans(dict.fromkeys("\n.`'\":", " "))


def score(question: Question, answer: str) -> float:
    """0 to 1."""
    kind, expected = question.kind, question.expected
    if kind in ("passkey", "number_string"):
        return metrics.first_number(answer, expected)
    if kind == "kv_retrieval":
        return metrics.in_words(answer, expected)
    if kind == "longbook_qa_eng":
        return metrics.token_f1(answer, expected)
    if kind == "longbook_sum_eng":
        return metrics.rouge(answer, expected, "rougeLsum")
    if kind == "longdialogue_qa_eng":
        return metrics.in_words(answer.upper(), expected[:1])
    if kind == "longbook_choice_eng":
        return float(_choice(answer) == expected[0])
    if kind == "code_debug":
        return float(_debugged(answer, expected))
    if kind == "code_run":
        words = answer.translate(_RUN_SIGNS).split()
        return float(bool(words) and words[-1] == expected[0])
    if kind == "math_find":
        found = _NUMBER.search(answer)
        return float(found is not None and float(found[0]) == float(expected[0]))
    return _counted(answer, expected)


def _choice(answer: str) -> str | None:
    """The letter: the answer's first sign, what follows a lead, or the first word that is one."""
    if _LETTER.match(answer):
        return answer[0]
    plain = " ".join(answer.translate(_SIGNS).split())
    for lead in _LEADS:
        if lead in plain:
            after = plain.split(lead, 1)[1].lstrip()
            return after[0] if _LETTER.match(after) else None
    return next((word for word in plain.split() if _LETTER.fullmatch(word)), None)


def _debugged(answer: str, expected: tuple[str, ...]) -> bool:
    letter = expected[0]
    if answer.startswith((f"{letter}.", f"{letter}:")):
        return True
    plain = " ".join(re.sub("[Oo]ption", " ", answer.translate(_DEBUG_SIGNS)).split())
    for lead in _DEBUG_LEADS:
        if lead in plain:
            return plain.split(lead, 1)[1].lstrip().startswith(expected)
    return False


def _counted(answer: str, expected: tuple[str, ...]) -> float:
    """The share of numbers that are right before the first wrong one."""
    given = [int(number) for number in re.findall(r"\d+", answer)]
    right = 0
    for one, number in zip(expected, given, strict=False):
        if int(one) != number:
            break
        right += 1
    return right / len(expected)
