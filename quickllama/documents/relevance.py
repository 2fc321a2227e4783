"""How relevant each piece of a document is to a question: the rows and columns of pictures.

Retrieval by heads: a row is z_h(b) of a retrieval head (:mod:`quickllama.documents.retrieval`), and
the total is the mean over the rows with what names add (:mod:`quickllama.documents.names`): the
score by which passages are found before they are judged (:mod:`quickllama.documents.judgement`).
Or, for all layers, a row is the mean over all query heads of a layer, and the total is the same as
before.

The memory's own lookups, the paper's way: a row are the scores of a layer's lookup for the first
token of the answer, s(b, H) + β s(b, Q), less their mean, by their standard deviation; the total is
the share of the layers that chose the block.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from quickllama.documents.answer import Answer
from quickllama.documents.asking import Snapshot, heads_of, hear_question, read_by_memory, sought
from quickllama.documents.names import named
from quickllama.documents.retrieval import all_heads, rank_pieces, standard_scores
from quickllama.errors import InvalidType, InvalidValue

if TYPE_CHECKING:
    from quickllama.model import Model

__all__ = ["Relevance", "relevance_of"]


@dataclasses.dataclass(frozen=True)
class Relevance:
    """n pieces of a text, told apart by R heads or layers, for one answer.

    * ``rows`` [R]: the label of each, ``layer`` or ``layer.head``.
    * ``scores`` float64 [R, n]: standard deviations above the row's mean; ``total`` float64 [n].
    * ``edges`` int64 [n + 1]: tokens of the text where pieces begin and end; ``length``: how many
      tokens it has. By the paper the first tokens and the window are no pieces.
    * ``passages`` int64 [m, 2]: tokens of the text where the answer's evidence begins and ends,
      best passage first.
    """

    answer: Answer
    rows: tuple[str, ...]
    scores: NDArray[np.float64]
    total: NDArray[np.float64]
    edges: NDArray[np.int64]
    length: int
    passages: NDArray[np.int64]


def relevance_of(
    model: Model, snapshot: Snapshot, answer: object, all_layers: bool = False
) -> Relevance:
    """Ask the question of ``answer`` again, as far as finding passages goes, and keep every score.

    ``all_layers``: rows for all layers after retrieval by heads, too; they are also what a model
    has whose retrieval heads are not known. Raises InvalidType if it is no answer; InvalidValue if
    it is about another text, if nothing was looked up for it, or for all layers of a skimmed text.
    """
    if not isinstance(answer, Answer):
        raise InvalidType(f"an Answer of document.ask() is expected, not {answer!r}")
    text = snapshot.text
    for passage in answer.evidence:
        if text[passage.start : passage.end] != passage.text:
            raise InvalidValue(
                f"the answer to {answer.question!r} rests on a passage at characters "
                f"{passage.start}–{passage.end} that this document does not have there; plot it "
                "with the document that was asked"
            )
    if answer.retrieval == "paper":
        return _by_lookups(model, snapshot, answer)
    return _by_heads(model, snapshot, answer, all_layers)


def _passages(snapshot: Snapshot, answer: Answer) -> NDArray[np.int64]:
    found = [snapshot.tokens(passage.start, passage.end) for passage in answer.evidence]
    return np.array(found, dtype=np.int64).reshape(-1, 2) - snapshot.text_start


def _by_heads(model: Model, snapshot: Snapshot, answer: Answer, all_layers: bool) -> Relevance:
    if snapshot.memory.mode not in ("infllm", "qllm") and snapshot.skim is None:
        raise InvalidValue(
            f"mode {snapshot.memory.mode!r} keeps nothing that passages could be found by; plot "
            "with the document that was asked"
        )
    if all_layers and snapshot.skim is not None:
        raise InvalidValue(
            "all_layers needs the keys of all layers, which a skimmed document does not keep; "
            "leave it out, or use model.read()"
        )
    chosen, _, _ = heads_of(model, snapshot)
    every = all_heads(model.n_layers, model.n_heads)
    all_layers = all_layers or len(chosen) == len(every)
    heads = every if all_layers else sorted(chosen)
    words = sought(answer.question, answer.history)
    suffix, span = snapshot.form.suffix(model.tokenizer, words)
    session = snapshot.fork_whole()
    queries = hear_question(session, suffix, span, heads)
    ranking = rank_pieces(session, heads, queries, snapshot.grid)
    scores = ranking.by_head
    rows = [f"{layer}.{head}" for layer, head in heads]
    if all_layers:
        scores = scores.reshape(model.n_layers, model.n_heads, -1).mean(axis=1)
        rows = [str(layer) for layer in range(model.n_layers)]
    bounds = snapshot.grid.bounds - snapshot.text_start
    return Relevance(
        answer,
        tuple(rows),
        scores,
        ranking.by(chosen).scores + named(words, snapshot.text, snapshot.starts),
        np.append(bounds[:, 0], bounds[-1, 1]),
        len(snapshot.offsets),
        _passages(snapshot, answer),
    )


def _by_lookups(model: Model, snapshot: Snapshot, answer: Answer) -> Relevance:
    memory = snapshot.memory
    if memory.mode not in ("infllm", "qllm") or not memory.topk:
        raise InvalidValue(
            f"mode {memory.mode!r} with topk {memory.topk} looks nothing up, so that there is "
            "nothing to show; read the text in mode 'qllm' or 'infllm' with topk > 0"
        )
    session, _, _ = read_by_memory(model, snapshot, answer.question, scores=True)
    records = session.trace[-session.n_layers :]
    n_blocks = len(records[0].scores) if records else 0
    starts = memory.n_init + memory.block_size * np.arange(n_blocks + 1) - snapshot.text_start
    inside = np.flatnonzero((starts[1:] > 0) & (starts[:-1] < len(snapshot.offsets)))
    if not len(inside):
        raise InvalidValue(
            "the text fits into the window, so that nothing was looked up; ask about a longer one "
            "or read it with a smaller window"
        )
    chosen = np.zeros(n_blocks)
    for record in records:
        chosen[record.block_ids] += 1
    scores = standard_scores(np.stack([record.scores for record in records]))
    edges = starts[inside[0] : inside[-1] + 2]
    return Relevance(
        answer,
        tuple(str(record.layer) for record in records),
        scores[:, inside],
        chosen[inside] / len(records),
        np.clip(edges, 0, len(snapshot.offsets)),
        len(snapshot.offsets),
        _passages(snapshot, answer),
    )
