"""What of a model's words is the answer: not the prompt's own labels, and not what it says again
and again.

A small model likes to go on with the prompt: it repeats the words that point a sentence out to it,
or asks itself the next question. And the best token each time often leads in a circle.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from quickllama.config import GenerationConfig
from quickllama.generation import iter_tokens
from quickllama.prompt import POINTED_OUT, QUESTION_LEAD
from quickllama.tokenizer.stream import TextStream

if TYPE_CHECKING:
    from quickllama._core import Session
    from quickllama.model import Model

__all__ = ["Reply", "Words", "goes_round", "replying"]

_LABEL = POINTED_OUT.partition("{passages}")[2].partition("{sentence}")[0].strip()
_END = QUESTION_LEAD.rstrip()

_LEAST_AROUND = 24  # tokens that must have come again
_LONGEST_ROUND = 48
_ROUNDS = 3


@dataclasses.dataclass(frozen=True)
class Reply:
    """What a model wrote; ``finish_reason``: ``stop``, ``length`` or ``repetition``; ``first_at``:
    when its first token came, by ``time.perf_counter``."""

    text: str
    tokens: list[int]
    finish_reason: str
    first_at: float

    def notes(self, options: GenerationConfig) -> list[str]:
        """What a reader should know of how it ended."""
        if self.finish_reason == "length":
            return [f"the answer was cut off after max_new_tokens = {options.max_new_tokens}"]
        if self.finish_reason == "repetition":
            return ["the model began to repeat itself, and was stopped"]
        return []


def replying(
    model: Model,
    session: Session,
    logits: NDArray[np.float32],
    prompt: NDArray[np.int64],
    options: GenerationConfig,
) -> Generator[str, None, Reply]:
    """Let the model go on from ``logits`` [V], after ``session`` has read ``prompt`` [n]: the
    answer piece by piece, and what it came to."""
    ends = options.ends(model.eos_token_ids)
    stream, words = TextStream(model.tokenizer), Words()
    tokens: list[int] = []
    parts: list[str] = []
    written: list[str] = []
    first_at, ended, round_and_round = 0.0, False, False

    for token in iter_tokens(
        session, logits, options, prompt=prompt, eos_token_ids=ends, tokenizer=model.tokenizer
    ):
        first_at = first_at or time.perf_counter()
        ended = token in ends
        if ended:
            break
        tokens.append(token)
        written.append(stream.push([token]))
        parts.append(words.push(written[-1]))
        if parts[-1]:
            yield parts[-1]
        round_and_round = goes_round(tokens)
        ended = words.over
        if ended or round_and_round:
            break
    if not words.over:
        parts.append(words.push(stream.finish()) + words.finish())
        if parts[-1]:
            yield parts[-1]
    stops = options.stop_strings or ()
    stops = (stops,) if isinstance(stops, str) else stops
    ended = ended or any(stop in "".join(written) for stop in stops)
    cut = not ended and len(tokens) == options.max_new_tokens
    reason = "repetition" if round_and_round and not ended else "length" if cut else "stop"
    return Reply("".join(parts).strip(), tokens, reason, first_at or time.perf_counter())


class Words:
    """The answer in the text that a model writes, piece by piece.

    :meth:`push` and :meth:`finish` return what is certain to belong to it; ``over``: nothing more
    will come.
    """

    def __init__(self) -> None:
        self.over = False
        self._waiting = ""  # may be the beginning of a label

    def push(self, piece: str) -> str:
        """Take the next piece of text."""
        text = self._waiting + piece
        before, found, _ = text.partition(_END)
        self.over = self.over or bool(found)
        text = before.replace(_LABEL, "")
        kept = 0 if self.over else max(_begun(text, _LABEL), _begun(text, _END))
        self._waiting = text[len(text) - kept :]
        return text[: len(text) - kept]

    def finish(self) -> str:
        """What waited in vain."""
        rest, self._waiting = self._waiting, ""
        return rest


def _begun(text: str, label: str) -> int:
    """How many characters at the end of ``text`` the label begins with."""
    return next((n for n in range(len(label) - 1, 0, -1) if text.endswith(label[:n])), 0)


def goes_round(tokens: Sequence[int]) -> bool:
    """Whether ``tokens`` end with the same run of tokens three times, or of short ones as often as
    makes 24 tokens."""
    for length in range(1, _LONGEST_ROUND + 1):
        again = max(_ROUNDS * length, _LEAST_AROUND) - length
        if again + length > len(tokens):
            continue
        if all(tokens[-i] == tokens[-i - length] for i in range(1, again + 1)):
            return True
    return False
