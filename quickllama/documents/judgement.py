"""What the model makes of the best passages: their order, and whether they hold an answer at all.

Heads find the passage of a question among the best few, and nearly always first if the question
names what it asks for. Of a question in other words it is often the second or third. So the model
is asked about the sentence of each that the heads point at most: how much likelier does it make the
question, and the question it? A sentence tells far more than the passage around it, of which most
has nothing to do with the question (docs/retrieval.md has the numbers).

Whether the text answers the question is told from three numbers: how far the best passage stands
above what the best of so many pieces would reach by chance, and the two gains. They hardly depend
on the length of the text. A name of the question that the passage holds counts for the first,
though calibration knows no names: a text that has it speaks of it.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from quickllama.config import MemoryConfig
from quickllama.documents.retrieval import Ranking
from quickllama.prompt import (
    DOCUMENT_PROMPT,
    PASSAGES_PROMPT,
    ChatFrame,
    PromptForm,
    text_tokens,
)

if TYPE_CHECKING:
    from quickllama._core import Session
    from quickllama.model import Model

__all__ = [
    "FEATURES",
    "FEWEST_PIECES",
    "Asked",
    "Bond",
    "Judgement",
    "Opening",
    "judge",
    "standing",
]

FEWEST_PIECES = 16
"""In a shorter text nothing can stand out far enough to tell whether it holds an answer."""

FEATURES = ("standing", "question", "sentence")
"""What :class:`quickllama.documents.head_store.FoundRule` weighs."""

WORTH = 0.7
"""Only pieces with this part of the best one's score are judged: of the others the model preferred
none in the questions that this was tried on (docs/retrieval.md)."""

_LIMITS = ((-3.0, 5.0), (-0.1, 0.3), (-0.1, 0.3))
"""Of the features: what is beyond them tells no more. Questions in the text's own words, which have
high ones, would else decide how questions in other words are weighed."""

TAIL = 32  # of the best other pieces: by these one sees how scores thin out upwards


@dataclasses.dataclass(frozen=True)
class Bond:
    """How much likelier a question and a sentence make each other.

    ``question``, ``sentence``: mean log probability (natural logarithm) of the tokens of each after
    the other, less that without it. ``question_share``, ``sentence_share``: the same as a share of
    how unlikely it is without it: 1 if the other tells it for certain, 0 if it tells nothing,
    negative if it misleads.
    """

    question: float
    sentence: float
    question_share: float
    sentence_share: float

    @property
    def gain(self) -> float:
        """Their mean gain, natural logarithm a token."""
        return (self.question + self.sentence) / 2


@dataclasses.dataclass(frozen=True)
class Judgement:
    """A ranking in which the best pieces are ordered anew; ``features``: :data:`FEATURES`."""

    ranking: Ranking
    features: tuple[float, float, float]


def judge(ranking: Ranking, bond_with: Callable[[int], Bond]) -> Judgement:
    """Add to the score of the best pieces how much more their sentences and the question make each
    other likelier than the others' do.

    ``bond_with``: :meth:`Asked.bond` with the sentence of a piece. Pieces that are not judged are
    taken to be like the worst one that is, so that they stay behind.
    """
    judged = ranking.standing_out(WORTH)
    bonds = [bond_with(piece) for piece in judged]
    gain = np.array([bond.gain for bond in bonds])
    added = np.full(len(ranking.scores), gain.min() - gain.max())
    added[judged] = gain - gain.max()
    before, ranking = ranking.scores, dataclasses.replace(ranking, added=added)
    best = ranking.best(1)[0]
    bond = bonds[judged.index(best)]
    found = standing(before, best), bond.question_share, bond.sentence_share
    one, two, three = (float(np.clip(f, *limits)) for f, limits in zip(found, _LIMITS, strict=True))
    return Judgement(ranking, (one, two, three))


def standing(scores: NDArray[np.float64], piece: int) -> float:
    """How far the score of ``piece`` lies above what the best of so many would reach by chance.

    High scores thin out about exponentially. The best one of n is then expected at log n times
    their mean excess, so that longer texts have higher ones; less that, it is much the same in
    texts of any length. Looked at are the :data:`TAIL` best pieces that are not beside
    ``piece``, at most half of them; 0 in a text of fewer than four pieces.
    """
    others = np.abs(np.arange(len(scores)) - piece) > 1
    highest = np.sort(scores[others])[::-1]
    count = min(TAIL, len(highest) // 2)
    if not count:
        return 0.0
    base = highest[count]
    excess = float(np.mean(highest[:count] - base))
    return float(scores[piece] - base) / max(excess, 1e-9) - float(np.log(count))


class Opening:
    """What both prompts say before a question or a text, read once; every question forks it,
    from any thread. ``kv_dtype``: how keys and values are kept; None: as by default."""

    def __init__(self, model: Model, kv_dtype: str | None = None) -> None:
        self.tokenizer = model.tokenizer
        self._frame = ChatFrame.of(self.tokenizer)
        before, _ = PromptForm.of(DOCUMENT_PROMPT).prefix(self.tokenizer, frame=self._frame)
        asked = self._asked_prefix("?")
        # Both prompts begin alike; their last tokens are read apart for the logits after them.
        most = min(len(before), len(asked)) - 1
        same = int(np.argmax(np.append(before[:most] != asked[:most], True)))
        self._begun = model.session(MemoryConfig(mode="full"), kv_dtype=kv_dtype)
        if same:
            self._begun.feed(before[:same])
        self._plain = self._begun.fork()
        self._after_plain = self._plain.feed(before[same:])
        self._lock = threading.Lock()  # a session refuses two callers at once

    def plain(self) -> tuple[Session, NDArray[np.float32]]:
        """A session that has read the prompt without a question, and the logits [V] after it."""
        with self._lock:
            return self._plain.fork(), self._after_plain

    def asked(self, question: str) -> tuple[Session, NDArray[np.float32]]:
        """A session that has read the prompt with the question before the text, and the logits [V]
        after it."""
        with self._lock:
            session = self._begun.fork()  # its tokens stand apart from what follows
        return session, session.feed(self._asked_prefix(question)[len(session) :])

    def _asked_prefix(self, question: str) -> NDArray[np.int64]:
        return PromptForm.of(PASSAGES_PROMPT).prefix(self.tokenizer, question, self._frame)[0]


class Asked:
    """A question, and what it and a sentence have to do with each other; ``bond`` costs reading
    the sentence twice and the question once."""

    def __init__(self, opening: Opening, question: str) -> None:
        self._tokenizer = opening.tokenizer
        suffix, (start, end) = PromptForm.of(DOCUMENT_PROMPT).suffix(self._tokenizer, question)
        self._question = suffix[start:end]
        self._heard = suffix[: end - 1]  # each of the last ones precedes a token of the question
        self._opening = opening
        self._asked, self._after_asked = opening.asked(question)
        self._alone = self._of_question(opening.plain()[0].feed(self._heard, all_logits=True))

    def bond(self, sentence: str) -> Bond:
        """With ``sentence``; all 0 if there is none."""
        ids, _ = text_tokens(self._tokenizer, sentence)
        if not len(ids):
            return Bond(0.0, 0.0, 0.0, 0.0)
        after, after_plain = self._opening.plain()
        logits = after.feed(np.concatenate([ids, self._heard]), all_logits=True)
        base, told = _chances_of_text(ids, after_plain, logits), self._of_question(logits)
        given = self._after_question(ids)
        return Bond(
            float((told - self._alone).mean()),
            float((given - base).mean()),
            _share(told, self._alone),
            _share(given, base),
        )

    def _of_question(self, logits: NDArray[np.float32]) -> NDArray[np.float64]:
        """Log probabilities of the question's tokens by the last rows of ``logits`` [n, V]."""
        return _log_chances(logits[-len(self._question) :], self._question)

    def _after_question(self, ids: NDArray[np.int64]) -> NDArray[np.float64]:
        """Log probabilities of a sentence's tokens ``ids`` [n] after the question."""
        logits = self._after_asked[None]  # of which the first token needs no more
        if len(ids) > 1:
            logits = self._asked.fork().feed(ids[:-1], all_logits=True)
        return _chances_of_text(ids, self._after_asked, logits)


def _chances_of_text(
    ids: NDArray[np.int64], first: NDArray[np.float32], logits: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Log probabilities of ``ids`` [n]: the first one by the logits ``first`` [V], the others by
    those after the token before, which ``logits`` [n - 1 or more, V] begins with."""
    others = _log_chances(logits, ids[1:])
    return np.concatenate([_log_chances(first[None], ids[:1]), others])


def _log_chances(logits: NDArray[np.float32], ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """Log probabilities of ``ids`` by ``logits`` [n, V]: float64 [n]. A row at a time stays in a
    core's cache."""
    chances = np.empty(len(ids))
    for i, token in enumerate(ids):
        below = logits[i] - logits[i].max()
        chances[i] = below[token]
        chances[i] -= np.log(np.exp(below, out=below).sum())
    return chances


def _share(with_it: NDArray[np.float64], without: NDArray[np.float64]) -> float:
    return float(1 - with_it.sum() / min(without.sum(), -1e-9))
