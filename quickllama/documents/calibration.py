"""Calibration: which heads of a model find passages, and when a text holds no answer.

Made-up facts are put into ordinary (or given) texts of about 4,000 tokens. Each text is read once;
each question is asked on a fork that listens to all heads, each of which ranks the text's pieces.
The heads with the best mean log2 rank of the piece that holds the answer are kept, and the best of
the first third of the layers for skimming. Questions whose facts are not in the text then teach
what it looks like when nothing is found.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from quickllama import checks
from quickllama.documents.asking import rank_for
from quickllama.documents.facts import Fact, make_facts, ordinary_texts, text_with_facts
from quickllama.documents.head_store import FoundRule, RetrievalHeads, SkimHeads, save_heads
from quickllama.documents.judgement import judge, question_likelihood
from quickllama.documents.retrieval import Head, Ranking, all_heads
from quickllama.errors import InvalidType, InvalidValue
from quickllama.generation import Progress
from quickllama.progress import showing

if TYPE_CHECKING:
    from quickllama.model import Model

__all__ = ["Trial", "best_heads", "calibrate", "collect", "found_rule", "mean_log_ranks"]

HEADS_KEPT = 8
SKIM_HEADS_KEPT = 6  # each costs memory
SKIM_SHARE = 3  # of the layers one in so many is computed by skimming
TEXTS = 10
CHARACTERS = 16_000  # about 4,000 tokens
FACTS = 6  # in each text, and as many of other families that are asked for and not there


@dataclasses.dataclass(frozen=True)
class Trial:
    """One question: the ranking of a text by all heads; the pieces that hold the answer (none: not
    there); every piece's passage."""

    question: str
    ranking: Ranking
    answer: tuple[int, ...]
    passages: Sequence[str]


def calibrate(
    model: Model,
    texts: Sequence[str] | None = None,
    *,
    progress: bool | Progress | None = None,
    seed: int = 0,
) -> RetrievalHeads:
    """What :meth:`quickllama.Model.calibrate` does."""
    trials = list(collect(model, texts, progress=progress, seed=seed))
    heads = best_heads(trials)
    early = best_heads(trials, SKIM_HEADS_KEPT, max(model.n_layers // SKIM_SHARE, 1))
    source = f"calibrated on {len(trials)} questions, seed {seed}"
    known: dict[tuple[str, str], float] = {}  # most passages are judged for both sets of heads

    def likelihood(passage: str, question: str) -> float:
        pair = passage, question
        if pair not in known:
            known[pair] = question_likelihood(model, passage, question)
        return known[pair]

    skim = SkimHeads(early, found_rule(trials, early, likelihood))
    rule = found_rule(trials, heads, likelihood)
    found = RetrievalHeads(model.fingerprint, heads, source, rule, skim)
    save_heads(found)
    model.retrieval_heads = found
    return found


def collect(
    model: Model,
    texts: Sequence[str] | None = None,
    *,
    progress: bool | Progress | None = None,
    seed: int = 0,
) -> Iterator[Trial]:
    """The trials, question after question."""
    rng = np.random.default_rng(checks.integer("seed", seed, 0, 2**63 - 1))
    given = ordinary_texts(rng, TEXTS, CHARACTERS) if texts is None else _checked(texts)
    heads = all_heads(model.n_layers, model.n_heads)
    with showing(progress, "calibrating", "text") as show:
        if show is not None:
            show(0, len(given))
        for done, text in enumerate(given):
            facts = make_facts(rng, 2 * FACTS)
            made = text_with_facts(rng, text[: 2 * CHARACTERS], facts[:FACTS])
            document = model.read(made.text)
            snapshot = document.snapshot()
            starts = [snapshot.characters(*bound) for bound in snapshot.grid.bounds.tolist()]
            passages = [snapshot.passage(piece) for piece in range(len(starts))]
            asked: list[tuple[Fact, tuple[int, ...]]] = [
                (fact, tuple(i for i, (a, b) in enumerate(starts) if a < place[1] and b > place[0]))
                for fact, place in zip(made.facts, made.places, strict=True)
            ]
            asked += [(fact, ()) for fact in facts[FACTS:]]
            for fact, pieces in asked:
                for question in (fact.question, fact.paraphrase):
                    suffix, span = snapshot.form.suffix(model.tokenizer, question)
                    ranking = rank_for(snapshot.fork_whole(), snapshot, suffix, span, heads)
                    yield Trial(question, ranking, pieces, passages)
            if show is not None:
                show(done + 1, len(given))


def _checked(texts: Sequence[str]) -> list[str]:
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise InvalidType("texts is a list of str, each of about 4,000 tokens or more")
    if not texts or min(len(text) for text in texts) < CHARACTERS // 4:
        raise InvalidValue(
            f"calibration needs at least one text, each of at least {CHARACTERS // 4} characters"
        )
    return list(texts)


def mean_log_ranks(trials: Sequence[Trial]) -> NDArray[np.float64]:
    """For each head: the mean over answerable questions of log2 of the rank, from 1, of the best
    piece that holds the answer: float64 [heads]."""
    rows = []
    for trial in trials:
        if trial.answer:
            scores = trial.ranking.by_head
            best = scores[:, list(trial.answer)].max(axis=1, keepdims=True)
            rows.append(np.log2(1 + (scores > best).sum(axis=1)))
    return np.asarray(np.mean(rows, axis=0))


def best_heads(
    trials: Sequence[Trial], count: int = HEADS_KEPT, layers: int | None = None
) -> tuple[Head, ...]:
    """The ``count`` heads with the best mean log2 rank, best first; of the first ``layers`` layers
    (None: of all)."""
    order = np.argsort(mean_log_ranks(trials), kind="stable")
    ordered = [trials[0].ranking.heads[index] for index in order]
    return tuple([head for head in ordered if layers is None or head[0] < layers][:count])


def found_rule(
    trials: Sequence[Trial], heads: Sequence[Head], likelihood: Callable[[str, str], float]
) -> FoundRule:
    """A logistic regression on the features of a :class:`quickllama.documents.judgement.Judgement`,
    and the threshold at which as large a share of the questions with an answer is missed as of
    those without one is taken to have one.

    ``likelihood``: :func:`quickllama.documents.judgement.question_likelihood` of a passage and a
    question.
    """
    rows: list[tuple[float, ...]] = []
    for trial in trials:
        after = partial(_likelihood_after, trial, likelihood)
        rows.append(judge(trial.ranking.by(heads), after).features)
    return fit_rule(np.array(rows), np.array([float(bool(trial.answer)) for trial in trials]))


def _likelihood_after(trial: Trial, likelihood: Callable[[str, str], float], piece: int) -> float:
    return likelihood(trial.passages[piece], trial.question)


def fit_rule(features: NDArray[np.float64], labels: NDArray[np.float64]) -> FoundRule:
    """Newton's method with a little ridge. ``features`` [n, k], ``labels`` [n], 1: answerable."""
    design = np.column_stack([features, np.ones(len(features))])
    ridge = np.full(design.shape[1], 1e-2)
    ridge[-1] = 1e-6
    weights = np.zeros(design.shape[1])
    for _ in range(50):
        chance = 1 / (1 + np.exp(-np.clip(design @ weights, -30, 30)))
        gradient = design.T @ (chance - labels) + ridge * weights
        curve = (design.T * (chance * (1 - chance) + 1e-9)) @ design + np.diag(ridge)
        step = np.linalg.solve(curve, gradient)
        weights = weights - step
        if np.abs(step).max() < 1e-9:
            break
    chance = 1 / (1 + np.exp(-np.clip(design @ weights, -30, 30)))
    absent, there = np.sort(chance[labels == 0]), np.sort(chance[labels == 1])
    false = 1 - np.searchsorted(absent, chance) / len(absent)
    missed = np.searchsorted(there, chance) / len(there)
    threshold = chance[np.argmin(np.maximum(false, missed))]
    rounded = [round(float(weight), 4) for weight in weights]
    return FoundRule(tuple(rounded[:-1]), rounded[-1], round(float(threshold), 4))
