"""A village has several numbers, each in a sentence of its own; all are asked for."""

from __future__ import annotations

from quickllama.eval.case import Case, Draft, Question, insert
from quickllama.eval.tasks.multi_key.make_data import SENTENCE
from quickllama.eval.words import numbers, places

__all__ = ["KINDS", "NEEDS", "NEW_TOKENS", "PER_TEXT", "make"]

KINDS = ("multi_value",)
NEW_TOKENS = 96
PER_TEXT = 5
NEEDS = ("texts",)

VALUES = 4


def make(draft: Draft) -> list[Case]:
    """One text with so many villages as the draft has depths; their numbers lie anywhere."""
    asked = len(draft.depths)
    names = places(draft.rng, asked)
    values = numbers(draft.rng, asked * VALUES)
    order = draft.rng.permutation(asked * VALUES).tolist()
    depths = sorted(draft.rng.integers(2, 99, len(order)).tolist())
    sentences = [SENTENCE.format(t=names[i // VALUES], n=values[i]) for i in order]
    start = draft.haystack.start(draft.rng)

    def build(characters: int) -> tuple[str, list[Question]]:
        text = draft.haystack.piece(start, characters)
        text, found = insert(text, sentences, depths)
        questions = []
        for number, name in enumerate(names):
            own = range(number * VALUES, (number + 1) * VALUES)
            words = f"What are all {VALUES} lucky numbers of {name}?"
            spans = tuple(found[order.index(i)] for i in own)
            expected = tuple(values[i] for i in own)
            questions.append(Question("multi_value", words, expected, spans))
        return text, questions

    return [draft.case(build, 4 * draft.length)]
