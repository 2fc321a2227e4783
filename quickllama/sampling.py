"""Choosing the next token from logits: transformers' processors in its order, in NumPy.

Each step takes logits float32 [V] and returns new ones; a token that is ruled out gets -inf.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quickllama.config import GenerationConfig

__all__ = [
    "Sampler",
    "min_p",
    "probabilities",
    "repetition_penalty",
    "temperature",
    "top_k",
    "top_p",
]

Logits = NDArray[np.float32]


def probabilities(logits: Logits) -> NDArray[np.float64]:
    """Softmax of ``logits`` [V] in float64; at least one of them must be finite, none NaN."""
    weights = np.exp(logits.astype(np.float64) - np.float64(logits.max()))
    return np.asarray(weights / weights.sum())


def repetition_penalty(logits: Logits, seen: NDArray[np.bool_], penalty: float) -> Logits:
    """Makes the tokens that are already there (``seen`` [V]) less likely, for a penalty above 1:
    positive logits are divided by it, negative ones multiplied."""
    weaker = np.where(logits < 0, logits * np.float32(penalty), logits / np.float32(penalty))
    return np.where(seen, weaker, logits)


def temperature(logits: Logits, value: float) -> Logits:
    """Logits divided by ``value``: below 1 sharper, above 1 flatter."""
    with np.errstate(over="ignore"):  # so small that only the best is left
        scaled = (logits - logits.max()) / np.float64(value)
        return np.asarray(scaled, dtype=np.float32)


def top_k(logits: Logits, count: int) -> Logits:
    """Only the ``count`` best tokens, and those equal to the last of them; 0: all."""
    if not 0 < count < logits.size:
        return logits
    worst = np.partition(logits, logits.size - count)[logits.size - count]
    return np.where(logits < worst, np.float32(-np.inf), logits)


def top_p(logits: Logits, mass: float) -> Logits:
    """Only the fewest best tokens whose probabilities sum up to ``mass``; always the best one."""
    if mass >= 1:
        return logits
    possible = np.flatnonzero(logits > -np.inf)
    rising = possible[np.argsort(logits[possible], kind="stable")]
    below = np.cumsum(probabilities(logits)[rising])
    removed = rising[below <= 1 - mass]
    result = logits.copy()
    result[removed[removed != rising[-1]]] = -np.inf
    return result


def min_p(logits: Logits, share: float) -> Logits:
    """Only tokens at least ``share`` times as probable as the best one."""
    if share <= 0:
        return logits
    chances = probabilities(logits)
    unlikely = (chances < share * chances.max()) & (logits < logits.max())
    return np.where(unlikely, np.float32(-np.inf), logits)


class Sampler:
    """Chooses token after token as ``options`` say; remembers what was there, and the dice.

    ``vocab_size`` is V; ``prompt`` [T] are the token ids that count as seen.
    """

    def __init__(
        self, options: GenerationConfig, vocab_size: int, prompt: NDArray[np.int64]
    ) -> None:
        self.options = options
        self._seen = np.zeros(vocab_size, dtype=np.bool_)
        self._seen[prompt] = True
        self._dice = np.random.default_rng(options.seed)

    def choose(self, logits: Logits) -> int:
        """The next token's id for finite ``logits`` [V]."""
        options = self.options
        if options.repetition_penalty != 1:
            logits = repetition_penalty(logits, self._seen, options.repetition_penalty)
        token = self._draw(logits) if options.do_sample else int(logits.argmax())
        self._seen[token] = True
        return token

    def _draw(self, logits: Logits) -> int:
        options = self.options
        if options.temperature != 1:
            logits = temperature(logits, options.temperature)
        logits = min_p(top_p(top_k(logits, options.top_k), options.top_p), options.min_p)
        heights = np.cumsum(probabilities(logits))
        return int(np.searchsorted(heights, self._dice.random() * heights[-1], side="right"))
