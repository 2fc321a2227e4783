"""Words whose frequencies fall with the square of their rank; the three most frequent are asked
for."""

from __future__ import annotations

import numpy as np

from quickllama.eval.case import Case, Draft, Question
from quickllama.eval.words import invented_words

__all__ = ["KINDS", "NEW_TOKENS", "make"]

KINDS = ("frequent_words",)
NEW_TOKENS = 48

ASKED = 3
ZETA = np.pi**2 / 6  # the sum of 1 / rank²


def make(draft: Draft) -> list[Case]:
    """One text of words in random order."""
    seed = int(draft.rng.integers(2**62))
    known = invented_words(draft.rng, draft.length // 10)

    def build(total: int) -> tuple[str, list[Question]]:
        rng = np.random.default_rng(seed)
        kinds = max(int(np.sqrt(total / ZETA)), ASKED)  # so that the rarest comes once
        words = known[:kinds]
        counts = np.round(total / ZETA / np.arange(1, kinds + 1) ** 2).astype(int)
        spoken = rng.permutation(np.repeat(words, np.maximum(counts, 1))).tolist()
        asked = f"What are the {ASKED} words that come most often in the text?"
        expected = tuple(words[:ASKED])
        return " ".join(spoken), [Question("frequent_words", asked, expected)]

    return [draft.case(build, draft.length // 4)]
