"""Which passages of a text an answer was read from: the blocks that lookups chose."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from quickllama.config import MemoryConfig
from quickllama.documents.answer import Passage
from quickllama.prompt import Prompt

__all__ = ["MOST_PASSAGES", "Lookup", "Passage", "retrieved_passages"]

MOST_PASSAGES = 5
"""How many passages are told unless asked otherwise."""


class Lookup(Protocol):
    """A record of ``session.trace``: one chunk in one layer."""

    @property
    def layer(self) -> int:
        """The layer."""

    @property
    def first_token(self) -> int:
        """Position of the chunk's first token."""

    @property
    def block_ids(self) -> NDArray[np.int32]:
        """The blocks that were chosen, ascending."""


def retrieved_passages(
    trace: Iterable[Lookup],
    prompt: Prompt,
    text: str,
    memory: MemoryConfig,
    most: int = MOST_PASSAGES,
) -> list[Passage]:
    """The ``most`` passages chosen most often from the prompt's last token on, best first.

    Passages are the memory's blocks, cut to the text; ties go to the earlier one. Empty in modes
    without lookups, and while everything fits into the window.
    """
    answering = [record for record in trace if record.first_token >= len(prompt.ids) - 1]
    counts: Counter[int] = Counter()
    layers: dict[int, set[int]] = {}
    for record in answering:
        for block in record.block_ids.tolist():
            counts[block] += 1
            layers.setdefault(block, set()).add(record.layer)
    passages: list[Passage] = []
    for block, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        start = memory.n_init + block * memory.block_size
        span = prompt.characters(start, start + memory.block_size)
        if span is not None and len(passages) < most:
            share = count / len(answering)
            found = text[span[0] : span[1]]
            passages.append(Passage(*span, found, share, tuple(sorted(layers[block]))))
    return passages
