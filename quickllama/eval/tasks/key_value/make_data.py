"""A JSON object of random keys and values; the value of a key is asked for."""

from __future__ import annotations

import numpy as np

from quickllama.eval.case import Case, Draft, Question, places_among
from quickllama.eval.words import identifiers

__all__ = ["DATA_FORMAT", "KINDS", "NEW_TOKENS", "PER_TEXT", "make"]

KINDS = ("key_value",)
NEW_TOKENS = 128  # answers repeat the key before they give the value: about 50 tokens each
DATA_FORMAT = 2  # 1: 64 tokens, which cut values off
PER_TEXT = 10


def make(draft: Draft) -> list[Case]:
    """One object, asked about once for each depth."""
    seed = int(draft.rng.integers(2**62))

    def build(pairs: int) -> tuple[str, list[Question]]:
        pairs = max(pairs, len(draft.depths))
        names = identifiers(np.random.default_rng(seed), 2 * pairs)
        lines = [f'"{names[2 * i]}": "{names[2 * i + 1]}"' for i in range(pairs)]
        text = "{" + ",\n ".join(lines) + "}"
        questions = []
        for index, depth in zip(places_among(draft.depths, pairs), draft.depths, strict=True):
            start = 1 + sum(len(line) + 3 for line in lines[:index])
            words = f'What is the value of the key "{names[2 * index]}" in the JSON object?'
            place = (start, start + len(lines[index]))
            expected = (names[2 * index + 1],)
            questions.append(Question("key_value", words, expected, (place,), depth))
        return text, questions

    return [draft.case(build, draft.length // 60)]
