"""A long list of words; ten of them come far more often than the others."""

from __future__ import annotations

import numpy as np

from quickllama.eval.case import Case, Draft, Question
from quickllama.eval.words import invented_words

__all__ = ["KINDS", "NEW_TOKENS", "make"]

KINDS = ("common_words",)
NEW_TOKENS = 128

COMMON, OFTEN, SELDOM = 10, 30, 3
LEAST = 10  # other words


def make(draft: Draft) -> list[Case]:
    """One list in random order."""
    seed = int(draft.rng.integers(2**62))
    known = invented_words(draft.rng, draft.length // 8)

    def build(others: int) -> tuple[str, list[Question]]:
        rng = np.random.default_rng(seed)
        words = known[: COMMON + max(others, LEAST)]
        common = words[:COMMON]
        listed = rng.permutation(common * OFTEN + words[COMMON:] * SELDOM).tolist()
        text = "\n".join(f"{number}. {word}" for number, word in enumerate(listed, 1))
        asked = f"What are the {COMMON} words that come most often in the list?"
        return text, [Question("common_words", asked, tuple(common))]

    return [draft.case(build, draft.length // 24)]
