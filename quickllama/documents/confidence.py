"""Whether a document answers a question at all.

Three numbers tell: how far the best passage lies above all others that are not beside it; how
strongly the heads point at it; and how likely the question is after the passage. Questions that
name what they ask for are told apart nearly always. Those that describe it in other words, without
a name, often are not: their passage ranks first, but stands out no more than an unrelated one does
for a question without an answer (docs/retrieval.md has the numbers).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from quickllama.documents.retrieval import Ranking
from quickllama.prompt import DOCUMENT_PROMPT, PromptForm, text_tokens

if TYPE_CHECKING:
    from quickllama.model import Model

__all__ = ["FEATURES", "FEWEST_PIECES", "features_of", "question_likelihood"]

FEWEST_PIECES = 16
"""In a shorter text nothing can stand out far enough to tell whether it holds an answer."""

FEATURES = ("margin", "strength", "likelihood")
"""What :class:`quickllama.documents.head_store.FoundRule` weighs."""


def features_of(ranking: Ranking, likelihood: float) -> tuple[float, float, float]:
    """The best piece's score less that of the best piece that is not its neighbour; the mean over
    the heads of what it scored before standardising; ``likelihood``: :func:`question_likelihood`
    for the best piece's passage.
    """
    best = ranking.best(1)[0]
    apart = np.abs(np.arange(len(ranking.scores)) - best) > 1
    second = ranking.scores[apart].max(initial=ranking.scores.min())
    return float(ranking.scores[best] - second), float(ranking.raw[:, best].mean()), likelihood


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
