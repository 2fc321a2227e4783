"""What the model makes of the best passages: their order, and whether they hold an answer at all.

Heads find the passage of a question among the best few, and nearly always first if the question
names what it asks for. Of a question in other words it is often the second or third. The passage
after which the question is likelier is then the better one (docs/retrieval.md has the numbers).

Whether the text answers the question is told from three numbers: how far the best passage lies
above all others that are not beside it; how strongly the heads point at it; and how likely the
question is after it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from quickllama.documents.retrieval import Ranking
from quickllama.prompt import DOCUMENT_PROMPT, PromptForm, text_tokens

if TYPE_CHECKING:
    from quickllama.model import Model

__all__ = ["FEATURES", "FEWEST_PIECES", "Judgement", "judge", "question_likelihood"]

FEWEST_PIECES = 16
"""In a shorter text nothing can stand out far enough to tell whether it holds an answer."""

FEATURES = ("margin", "strength", "likelihood")
"""What :class:`quickllama.documents.head_store.FoundRule` weighs."""

JUDGED = 4
"""So many of the best pieces; each costs reading a short prompt."""


@dataclasses.dataclass(frozen=True)
class Judgement:
    """A ranking in which the best pieces are ordered anew; ``features``: :data:`FEATURES`."""

    ranking: Ranking
    features: tuple[float, float, float]


def judge(ranking: Ranking, likelihood_after: Callable[[int], float]) -> Judgement:
    """Add to the score of the best pieces how much likelier the question is after their passages
    than after the others'.

    ``likelihood_after``: :func:`question_likelihood` for a piece. Pieces that are not judged are
    taken to be like the worst one that is, so that they stay behind.
    """
    judged = ranking.best(JUDGED)
    likelihood = np.array([likelihood_after(piece) for piece in judged])
    added = np.full(len(ranking.scores), likelihood.min() - likelihood.max())
    added[judged] = likelihood - likelihood.max()
    ranking = dataclasses.replace(ranking, added=added)
    best = ranking.best(1)[0]
    apart = np.abs(np.arange(len(ranking.scores)) - best) > 1
    second = ranking.scores[apart].max(initial=ranking.scores.min())
    margin = float(ranking.scores[best] - second)
    strength = float(ranking.raw[:, best].mean())
    return Judgement(ranking, (margin, strength, float(likelihood[judged.index(best)])))


def question_likelihood(model: Model, passage: str, question: str) -> float:
    """Mean log probability (natural logarithm) of the tokens of ``question`` where it is asked
    after ``passage`` alone."""
    form = PromptForm.of(DOCUMENT_PROMPT)
    prefix, _ = form.prefix(model.tokenizer)
    inside, _ = text_tokens(model.tokenizer, passage)
    suffix, (start, end) = form.suffix(model.tokenizer, question)
    ids = np.concatenate([prefix, inside, suffix[:end]])
    logits = model.forward(ids[:-1], logits_to_keep=end - start).astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    chosen = logits[np.arange(end - start), ids[start - end :]]
    return float((chosen - np.log(np.exp(logits).sum(axis=1))).mean())
