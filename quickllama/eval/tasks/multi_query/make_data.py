"""The numbers of several villages are asked for in one question."""

from __future__ import annotations

from quickllama.eval.case import Case, Draft, Question, insert
from quickllama.eval.tasks.multi_key.make_data import SENTENCE
from quickllama.eval.words import numbers, places

__all__ = ["KINDS", "NEEDS", "NEW_TOKENS", "PER_TEXT", "make"]

KINDS = ("multi_query",)
NEW_TOKENS = 96
PER_TEXT = 3
NEEDS = ("texts",)

ASKED = 4  # in one question


def make(draft: Draft) -> list[Case]:
    """One text with so many questions as the draft has depths; the sentences lie anywhere."""
    many = len(draft.depths) * ASKED
    names, values = places(draft.rng, many), numbers(draft.rng, many)
    sentences = [SENTENCE.format(t=t, n=n) for t, n in zip(names, values, strict=True)]
    depths = sorted(draft.rng.integers(2, 99, many).tolist())
    groups = draft.rng.permutation(many).reshape(-1, ASKED).tolist()
    start = draft.haystack.start(draft.rng)

    def build(characters: int) -> tuple[str, list[Question]]:
        text = draft.haystack.piece(start, characters)
        text, found = insert(text, sentences, depths)
        questions = []
        for group in groups:
            listed = ", ".join(names[i] for i in group[:-1]) + f" and {names[group[-1]]}"
            words = f"What are the lucky numbers of {listed}?"
            expected = tuple(values[i] for i in group)
            spans = tuple(found[i] for i in group)
            questions.append(Question("multi_query", words, expected, spans))
        return text, questions

    return [draft.case(build, 4 * draft.length)]
