"""A pass key, said twice in one sentence, in filler that is repeated to any length."""

from __future__ import annotations

from quickllama.eval.case import Case, Draft, Question
from quickllama.eval.words import numbers

__all__ = ["KINDS", "NEW_TOKENS", "filled", "make"]

KINDS = ("passkey",)
NEW_TOKENS = 24

FILLER = (
    "Rain fell on the hills all morning. ",
    "The river rose a little and sank again. ",
    "A heron stood in the reeds and waited. ",
    "So the day went by.\n",
)


def make(draft: Draft) -> list[Case]:
    """One text with one key."""
    (key,) = numbers(draft.rng, 1, digits=5)
    sentence = f"The pass key is {key}. Keep it in mind, for {key} is the pass key.\n"
    return [filled(draft, "passkey", sentence, "What is the pass key?", key)]


def filled(draft: Draft, kind: str, sentence: str, question: str, answer: str) -> Case:
    """Filler with one sentence at the draft's depth."""
    (depth,) = draft.depths

    def build(count: int) -> tuple[str, list[Question]]:
        filler = [FILLER[i % len(FILLER)] for i in range(count)]
        before = "".join(filler[: round(count * depth / 100)])
        text = before + sentence + "".join(filler)[len(before) :]
        place = (len(before), len(before) + len(sentence) - 1)
        return text, [Question(kind, question, (answer,), (place,), depth)]

    return draft.case(build, draft.length // 9)
