"""Many sentences of one form in ordinary text; the number of one of them is asked for."""

from __future__ import annotations

from quickllama.eval.case import Case, Draft, Question, insert
from quickllama.eval.words import numbers, places

__all__ = ["KINDS", "NEEDS", "NEW_TOKENS", "PER_TEXT", "SENTENCE", "make"]

KINDS = ("multi_key",)
NEW_TOKENS = 32
PER_TEXT = 10
NEEDS = ("texts",)

FEWEST = 10  # keys in a text, however few are asked for
SENTENCE = "The lucky number of {t} is {n}."


def make(draft: Draft) -> list[Case]:
    """One text; each depth's key is asked for, and all keys stand in each other's way."""
    asked = len(draft.depths)
    more = draft.rng.integers(2, 99, max(FEWEST - asked, 0)).tolist()
    everywhere = sorted([(depth, True) for depth in draft.depths] + [(d, False) for d in more])
    names = places(draft.rng, len(everywhere))
    values = numbers(draft.rng, len(everywhere))
    sentences = [SENTENCE.format(t=t, n=n) for t, n in zip(names, values, strict=True)]
    start = draft.haystack.start(draft.rng)

    def build(characters: int) -> tuple[str, list[Question]]:
        text = draft.haystack.piece(start, characters)
        text, found = insert(text, sentences, [depth for depth, _ in everywhere])
        questions = [
            Question("multi_key", f"What is the lucky number of {t}?", (n,), (place,), depth)
            for t, n, place, (depth, wanted) in zip(names, values, found, everywhere, strict=True)
            if wanted
        ]
        return text, questions

    return [draft.case(build, 4 * draft.length)]
