"""Retrieval heads: which passages of a document a question is about.

A few of a model's query heads point, for a question's tokens, at the passage that answers it, also
in texts far longer than the model's window. For head h with the question's queries q_t [D] before
RoPE, their mean over the document q̄_h, and the keys k_j before RoPE of a piece b of the text:

    s_h(b) = mean over t of max over j in b of ⟨q_t − q̄_h, k_j⟩
    z_h(b) = (s_h(b) − mean of s_h) / standard deviation of s_h
    score(b) = mean over the chosen heads of z_h(b)

Which heads are chosen depends on the model (:mod:`quickllama.documents.calibration`). The idea of
query-focused retrieval heads: arXiv 2506.09944; the score here is our own. Not in the paper of
Q-LLM, whose block scores choose per layer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from quickllama._core import Session

__all__ = [
    "Grid",
    "Ranking",
    "all_heads",
    "centred_queries",
    "rank_pieces",
    "rank_runs",
    "standard_scores",
    "strongest",
    "strongest_of",
]

MOST_STANDING_OUT = 4
CLOSE = 0.8  # of the best score; chosen on facts that calibration makes up (docs/retrieval.md)

Floats = NDArray[np.float32]
Head = tuple[int, int]
"""Layer and query head."""


@dataclasses.dataclass(frozen=True)
class Grid:
    """The pieces of a text in a timeline: memory blocks, and pieces of the same size where there is
    no block yet or the first tokens lie.

    ``begin``, ``end``: the text's tokens in the timeline. Pieces end where blocks of ``size``
    tokens end, the first of which begins at ``origin``.
    """

    begin: int
    end: int
    origin: int
    size: int

    @property
    def bounds(self) -> NDArray[np.int64]:
        """Tokens [begin, end) of each piece: int64 [n, 2]."""
        inner = np.arange(self._first_end(), self.end, self.size, dtype=np.int64)
        edges = np.concatenate([[self.begin], inner[inner > self.begin], [self.end]])
        return np.stack([edges[:-1], edges[1:]], axis=1)

    def block(self, piece: int) -> int:
        """The block that begins where ``piece`` does, negative where none could be."""
        return int(self.bounds[piece, 0] - self.origin) // self.size

    def _first_end(self) -> int:
        """The first end of a block behind ``begin``."""
        return self.begin + self.size - (self.begin - self.origin) % self.size


@dataclasses.dataclass(frozen=True)
class Ranking:
    """Pieces of a document, scored for one question.

    ``raw`` float32 [heads, n]: s_h; ``heads``: (layer, head) of each row. What else a piece's score
    consists of, float64 [n] each: ``named``, by the question's names
    (:mod:`quickllama.documents.names`); ``added``, by the model's judgement
    (:mod:`quickllama.documents.judgement`).
    """

    grid: Grid
    raw: Floats
    heads: tuple[Head, ...]
    added: NDArray[np.float64] | None = None
    named: NDArray[np.float64] | None = None

    @cached_property
    def by_head(self) -> NDArray[np.float64]:
        """z_h: float64 [heads, n]."""
        return standard_scores(self.raw)

    @cached_property
    def scores(self) -> NDArray[np.float64]:
        """The score of each piece: float64 [n]."""
        scores = self.by_head.mean(axis=0)
        for more in (self.named, self.added):
            scores = scores if more is None else scores + more
        return np.asarray(scores)

    def by(self, heads: Sequence[Head]) -> Ranking:
        """The ranking by some of the heads alone."""
        return Ranking(
            self.grid, self.raw[[self.heads.index(head) for head in heads]], tuple(heads)
        )

    def best(self, count: int) -> list[int]:
        """The ``count`` best pieces, best first; ties: the earlier one."""
        return [int(piece) for piece in np.argsort(-self.scores, kind="stable")[:count]]

    @cached_property
    def orders(self) -> NDArray[np.int64]:
        """The pieces by each head alone, best first: int64 [heads, n]."""
        return np.argsort(-self.by_head, axis=1, kind="stable")

    def standing_out(self, share: float = CLOSE) -> list[int]:
        """The best piece and those, up to :data:`MOST_STANDING_OUT`, that have ``share`` of its
        score, as for a question about two things; best first."""
        best = self.best(MOST_STANDING_OUT)
        least = share * self.scores[best[0]]
        return [best[0], *(piece for piece in best[1:] if self.scores[piece] >= least)]

    def layers(self, pieces: Sequence[int], count: int) -> tuple[int, ...]:
        """The layers of heads that have one of ``pieces`` among their own ``count`` best."""
        return tuple(
            sorted(
                {
                    layer
                    for (layer, _), own in zip(self.heads, self.orders, strict=True)
                    if set(own[:count].tolist()) & set(pieces)
                }
            )
        )


def all_heads(n_layers: int, n_heads: int) -> tuple[Head, ...]:
    """Every query head of a model."""
    return tuple((layer, head) for layer in range(n_layers) for head in range(n_heads))


def centred_queries(session: Session, heads: Sequence[Head], queries: Floats) -> Floats:
    """``queries`` [heads, T, D] less the mean query of each head, [D], over all that ``session``
    has read."""
    dim = queries.shape[2]
    layers = {layer: session.mean_query(layer) for layer in {layer for layer, _ in heads}}
    means = np.stack([layers[layer][head * dim : (head + 1) * dim] for layer, head in heads])
    return np.ascontiguousarray(queries - means[:, np.newaxis])


def standard_scores(scores: Floats) -> NDArray[np.float64]:
    """Each row of ``scores`` [heads, n] less its mean, by its standard deviation; 0 where all
    pieces are alike."""
    exact = scores.astype(np.float64)
    spread = exact.std(axis=1, keepdims=True)
    away = exact - exact.mean(axis=1, keepdims=True)
    return np.asarray(np.divide(away, spread, out=np.zeros_like(exact), where=spread > 1e-9))


def rank_pieces(session: Session, heads: Sequence[Head], queries: Floats, grid: Grid) -> Ranking:
    """Score the text that ``session`` has read.

    ``queries`` float32 [heads, T, D]: those of the question's tokens as ``session.listen`` gives
    them, already centred. Raises what ``session.rank`` raises, for instance InvalidValue in modes
    that keep no blocks.
    """
    first = int(grid.bounds[0, 1])
    parts = [session.rank(heads, queries, grid.begin, first, grid.size)]
    if first < grid.end:
        parts.append(session.rank(heads, queries, first, grid.end, grid.size))
    return Ranking(grid, np.concatenate(parts, axis=1), tuple(heads))


def strongest(
    session: Session, ranking: Ranking, queries: Floats, runs: Sequence[tuple[int, int]]
) -> int:
    """Which of the runs of tokens (begin, end), such as sentences, the heads of ``ranking`` point
    at most: the same score as that of a piece. ``queries``: those that the ranking was made with.
    """
    return strongest_of(ranking, rank_runs(session, ranking.heads, queries, runs))


def rank_runs(
    session: Session, heads: Sequence[Head], queries: Floats, runs: Sequence[tuple[int, int]]
) -> Floats:
    """s_h of each of the runs of tokens (begin, end): float32 [heads, runs]."""
    return np.concatenate(
        [session.rank(heads, queries, *run, run[1] - run[0]) for run in runs], axis=1
    )


def strongest_of(ranking: Ranking, raw: Floats) -> int:
    """The best of runs of tokens by ``raw`` [heads, runs], from :func:`rank_runs`."""
    spread = ranking.raw.astype(np.float64).std(axis=1, keepdims=True)
    scaled = np.divide(raw, spread, out=np.zeros(raw.shape), where=spread > 1e-9)
    return int(scaled.mean(axis=0).argmax())
