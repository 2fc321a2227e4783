"""Calibration: which heads of a model find passages, and when a text holds no answer.

Made-up facts are put into ordinary (or given) texts of about 4,000 tokens. Each text is read once;
each question is asked on a fork that listens to all heads, each of which ranks the text's pieces.
The heads with the best mean log2 rank of the piece that holds the answer are kept, and the best of
the first third of the layers for skimming. Questions whose facts are not in the text then teach
what it looks like when nothing is found: how far the best passage stands out, and how much its
sentence and the question make each other likelier.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from quickllama import checks
from quickllama.documents.answer import Span, sentences
from quickllama.documents.asking import Snapshot, hear_question
from quickllama.documents.facts import Fact, make_facts, ordinary_texts, text_with_facts
from quickllama.documents.head_store import FoundRule, RetrievalHeads, SkimHeads, save_heads
from quickllama.documents.judgement import Asked, Bond, Judgement, Opening, judge
from quickllama.documents.retrieval import (
    Head,
    Ranking,
    all_heads,
    rank_pieces,
    rank_runs,
    strongest_of,
)
from quickllama.errors import InvalidType, InvalidValue
from quickllama.progress import Progress, showing

if TYPE_CHECKING:
    from quickllama.model import Model

__all__ = ["Trial", "best_heads", "calibrate", "collect", "found_rule", "mean_log_ranks"]

HEADS_KEPT = 8
SKIM_HEADS_KEPT = 6  # each costs memory
SKIM_SHARE = 3  # of the layers one in so many is computed by skimming
TEXTS = 10
CHARACTERS = 16_000  # about 4,000 tokens
FALSE = 0.1  # of the questions without an answer, taken to have one
FACTS = 6  # in each text, and as many of other families that are asked for and not there


@dataclasses.dataclass(frozen=True)
class Trial:
    """One question: the ranking of a text by all heads; the pieces that hold the answer (none: not
    there).

    ``sentences`` of the text, and s_h of each: ``said`` float32 [heads, sentences]. ``parts``: the
    numbers of the sentences in every piece's passage.
    """

    question: str
    ranking: Ranking
    answer: tuple[int, ...]
    sentences: Sequence[str]
    said: NDArray[np.float32]
    parts: Sequence[Sequence[int]]

    def words(self, ranking: Ranking, piece: int) -> str:
        """The sentence of a piece's passage that some of the heads, those of ``ranking``, point at
        most."""
        rows = [self.ranking.heads.index(head) for head in ranking.heads]
        part = list(self.parts[piece])
        return self.sentences[part[strongest_of(ranking, self.said[np.ix_(rows, part)])]]


def calibrate(
    model: Model,
    texts: Iterable[str] | None = None,
    *,
    progress: bool | Progress | None = None,
    seed: int = 0,
) -> RetrievalHeads:
    """What :meth:`quickllama.Model.calibrate` does."""
    trials = list(collect(model, texts, progress=progress, seed=seed))
    heads = best_heads(trials)
    early = best_heads(trials, SKIM_HEADS_KEPT, max(model.n_layers // SKIM_SHARE, 1))
    source = f"calibrated on {len(trials)} questions, seed {seed}"
    # Skimming has the same rule: its numbers hardly depend on which heads find the sentences.
    rule = found_rule(trials, heads, _bonds(model))
    skim = SkimHeads(early, rule)
    found = RetrievalHeads(model.fingerprint, heads, source, rule, skim)
    save_heads(found)
    model.retrieval_heads = found
    return found


def _bonds(model: Model) -> Callable[[str, str], Bond]:
    """:meth:`Asked.bond` of a question and a sentence, for one question after the other."""
    opening = Opening(model)
    asked: dict[str, Asked] = {}

    def bond(question: str, sentence: str) -> Bond:
        if question not in asked:
            asked.clear()  # each holds sessions
            asked[question] = Asked(opening, question)
        return asked[question].bond(sentence)

    return bond


def collect(
    model: Model,
    texts: Iterable[str] | None = None,
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
            snapshot = document._snapshot()
            starts = [snapshot.characters(*bound) for bound in snapshot.grid.bounds.tolist()]
            spans, parts = _sentences(snapshot)
            runs = [snapshot.tokens(*span) for span in spans]
            words = [made.text[start:end] for start, end in spans]
            asked: list[tuple[Fact, tuple[int, ...]]] = [
                (fact, tuple(i for i, (a, b) in enumerate(starts) if a < place[1] and b > place[0]))
                for fact, place in zip(made.facts, made.places, strict=True)
            ]
            asked += [(fact, ()) for fact in facts[FACTS:]]
            for fact, pieces in asked:
                for question in (fact.question, fact.paraphrase):
                    suffix, span = snapshot.form.suffix(model.tokenizer, question)
                    session = snapshot.fork_whole()
                    queries = hear_question(session, suffix, span, heads)
                    ranking = rank_pieces(session, heads, queries, snapshot.grid)
                    said = rank_runs(session, heads, queries, runs)
                    yield Trial(question, ranking, pieces, words, said, parts)
            if show is not None:
                show(done + 1, len(given))


def _sentences(snapshot: Snapshot) -> tuple[list[Span], list[list[int]]]:
    """Every sentence in the passage of a piece, and the numbers of those of each piece."""
    numbers: dict[Span, int] = {}
    parts = []
    for piece in range(len(snapshot.grid.bounds)):
        span = snapshot.span_of(piece, piece)
        found = sentences(snapshot.text, *span)
        whole = found if len(found) > 1 else [span]
        parts.append([numbers.setdefault(one, len(numbers)) for one in whole])
    return list(numbers), parts


def _checked(texts: Iterable[str]) -> list[str]:
    wrong = InvalidType("texts is a list of str, each of about 4,000 tokens or more")
    if isinstance(texts, str) or not isinstance(texts, Iterable):
        raise wrong
    given = list(texts)
    if not all(isinstance(text, str) for text in given):
        raise wrong
    if not given or min(len(text) for text in given) < CHARACTERS // 4:
        raise InvalidValue(
            f"calibration needs at least one text, each of at least {CHARACTERS // 4} characters"
        )
    return given


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
    trials: Sequence[Trial], heads: Sequence[Head], bond: Callable[[str, str], Bond]
) -> FoundRule:
    """A logistic regression on the features of a :class:`quickllama.documents.judgement.Judgement`,
    and a threshold: see :func:`fit_rule`. ``bond``: of a question and a sentence."""
    rows: list[tuple[float, ...]] = []
    for trial in trials:
        rows.append(_judged(trial, trial.ranking.by(heads), bond).features)
    return fit_rule(np.array(rows), np.array([float(bool(trial.answer)) for trial in trials]))


def _judged(trial: Trial, ranking: Ranking, bond: Callable[[str, str], Bond]) -> Judgement:
    return judge(ranking, lambda piece: bond(trial.question, trial.words(ranking, piece)))


def fit_rule(features: NDArray[np.float64], labels: NDArray[np.float64]) -> FoundRule:
    """Newton's method with a ridge of 1 for standardised features, so that their units do not
    matter. ``features`` [n, k], ``labels`` [n], 1: answerable. The threshold is the lowest at which
    at most :data:`FALSE` of the questions without an answer are taken to have one."""
    middle, spread = features.mean(axis=0), features.std(axis=0) + 1e-9
    design = np.column_stack([(features - middle) / spread, np.ones(len(features))])
    ridge = np.ones(design.shape[1])
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
    own = weights[:-1] / spread
    rule = FoundRule(
        tuple(round(float(weight), 4) for weight in own),
        round(float(weights[-1] - own @ middle), 4),
        0.5,
    )
    absent = sorted(rule.confidence(tuple(row)) for row in features[labels == 0])
    least = absent[-1 - int(FALSE * len(absent))] if absent else 0.0
    return dataclasses.replace(rule, threshold=round(min(least + 1e-4, 1.0), 4))
