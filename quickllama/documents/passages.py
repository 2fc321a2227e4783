"""Which passages of a text an answer was read from: the blocks that lookups chose."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from quickllama.config import MemoryConfig
from quickllama.documents.answer import Passage

__all__ = ["MOST_PASSAGES", "Lookup", "Passage", "retrieved_passages"]

MOST_PASSAGES = 8
"""How many passages are told."""


class Lookup(Protocol):
    """A record of ``session.trace``: one chunk in one layer."""

    @property
    def layer(self) -> int:
        """The layer."""

    @property
    def block_ids(self) -> NDArray[np.int32]:
        """The blocks that were chosen, ascending."""


def retrieved_passages(
    trace: Iterable[Lookup],
    text: str,
    offsets: NDArray[np.int64],
    text_start: int,
    memory: MemoryConfig,
) -> list[Passage]:
    """The passages chosen most often by the lookups of ``trace``, best first, at most
    :data:`MOST_PASSAGES`.

    ``offsets``: int64 [n, 2], the characters [start, end) in ``text`` of its n tokens, the first of
    which stands at ``text_start`` of the timeline. Passages are the memory's blocks, cut to the
    text; ties go to the earlier one. Empty in modes without lookups, and while everything fits into
    the window.
    """
    records = list(trace)
    counts: Counter[int] = Counter()
    layers: dict[int, set[int]] = {}
    for record in records:
        for block in record.block_ids.tolist():
            counts[block] += 1
            layers.setdefault(block, set()).add(record.layer)
    passages: list[Passage] = []
    for block, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        first = memory.n_init + block * memory.block_size - text_start
        inside = offsets[max(first, 0) : max(first + memory.block_size, 0)]
        if len(inside) and len(passages) < MOST_PASSAGES:
            start, end = int(inside[:, 0].min()), int(inside[:, 1].max())
            share = count / len(records)
            passages.append(
                Passage(start, end, text[start:end], share, tuple(sorted(layers[block])))
            )
    return passages
