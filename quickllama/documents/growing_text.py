"""A text that arrives in parts, and its tokens: the same ones however it is cut into parts."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from quickllama.documents.state_record import StateRecord
from quickllama.errors import InvalidValue, warn
from quickllama.tokenizer.cuts import SPACE
from quickllama.tokenizer.stream import TextStream

if TYPE_CHECKING:
    from quickllama.tokenizer import Tokenizer

__all__ = ["GrowingText"]

_MOST_PARTS = 1000  # before they are joined
_LONG_TAIL = 1 << 16  # characters without a certain token that are worth telling


class _Counted(NamedTuple):
    """What of a text counts. ``parts``: all of its characters; ``length``: how many they are;
    ``tokens``: how many are certain; ``tail``: the end of the text, of which no token is certain;
    ``dropped``: the space before it belongs to its first token; ``stream``: where ids come instead
    of text, from the id ``stream_from`` on; nothing is pushed to it, but to copies.
    """

    parts: tuple[str, ...] = ()
    length: int = 0
    tokens: int = 0
    tail: str = ""
    dropped: bool = False
    stream: TextStream | None = None
    stream_from: int = 0

    def then(self, text: str) -> _Counted:
        """With ``text`` behind what is there."""
        parts = (*self.parts, text) if text else self.parts
        if len(parts) > _MOST_PARTS:
            parts = ("".join(parts),)
        return self._replace(parts=parts, length=self.length + len(text))

    def without_ids(self) -> _Counted:
        """Text follows the ids: what an incomplete character leaves is shown."""
        if self.stream is None:
            return self
        return self.then(self.stream.copy().finish())._replace(stream=None)


class GrowingText:
    """Text and token ids at the same time. One thread at a time makes it grow; others may look at
    it meanwhile.

    The tokens of the last characters depend on what follows them, so they are not certain until a
    place to cut comes (``quickllama/tokenizer/cuts.py``). Nothing in a text is a special
    token.

    An exception may come between any two statements (Ctrl-C). So what counts is one value, which is
    set last; what an interrupted call has left in the arrays lies behind it, and goes with the next
    call.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._counted = _Counted()
        self._ids = array("i")
        self._starts = array("q")
        self._ends = array("q")

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Raises InvalidValue if its tokens are not those of ``tokenizer``."""
        if tokenizer is not self._tokenizer and tokenizer.digest != self._tokenizer.digest:
            raise InvalidValue(
                "the model has another tokenizer than when the text was read, whose tokens mean "
                "other words: set model.tokenizer to that one, or read the text anew"
            )

    def __len__(self) -> int:
        """The number of tokens that are certain."""
        return self._counted.tokens

    @property
    def is_ids(self) -> bool:
        """Whether all of it came as token ids."""
        return self._counted.stream is not None and not self._counted.stream_from

    @property
    def text(self) -> str:
        """All of the text, the part without certain tokens included."""
        return "".join(self._counted.parts)

    @property
    def nbytes(self) -> int:
        """Bytes of the text (at most four a character), the ids and their places."""
        counted = self._counted
        return sum(part.__sizeof__() for part in counted.parts) + 20 * counted.tokens

    def ids(self, start: int = 0) -> NDArray[np.int64]:
        """The certain tokens from ``start`` on: int64 [n]."""
        return np.array(self._ids[start : self._counted.tokens], dtype=np.int64)

    def offsets(self) -> NDArray[np.int64]:
        """The characters [start, end) of each certain token: int64 [n, 2]."""
        n = self._counted.tokens
        both = [np.array(places[:n], dtype=np.int64) for places in (self._starts, self._ends)]
        return np.stack(both, axis=1)

    def add(self, text: str) -> None:
        """Put ``text``, whole characters, behind what is there."""
        if not text:
            return
        counted = self._counted.without_ids()
        tail = counted.tail + text
        cut = self._tokenizer.last_cut(tail)
        if cut is None:
            self._counted = counted.then(text)._replace(tail=tail)
            return
        ids, spans = self._encode(counted, tail[: cut[0]])
        grown = counted.then(text)._replace(tail=tail[cut[1] :], dropped=cut[1] > cut[0])
        self._grow(grown, ids.tolist(), spans[:, 0].tolist(), spans[:, 1].tolist())

    def add_ids(self, ids: NDArray[np.int64]) -> None:
        """Put tokens behind what is there; their text is what they decode to."""
        counted = self._counted
        new, starts, ends = array("i"), array("q"), array("q")
        if counted.stream is None:
            tail, spans = self._encode(counted, counted.tail)
            new.extend(tail.tolist())
            starts.extend(spans[:, 0].tolist())
            ends.extend(spans[:, 1].tolist())
            counted = counted._replace(
                tail="", dropped=False, stream_from=counted.tokens + len(tail)
            )
        stream = TextStream(self._tokenizer) if counted.stream is None else counted.stream.copy()
        pieces, length = [], counted.length
        for token in ids.tolist():
            starts.append(length)
            pieces.append(stream.push([token]))
            length += len(pieces[-1])
            ends.append(length)
        new.extend(ids.tolist())
        self._grow(counted.then("".join(pieces))._replace(stream=stream), new, starts, ends)

    def settle(self) -> None:
        """Join what has arrived, so that ``text`` is at hand; warn if much of it has no certain
        tokens."""
        self._counted = self._counted._replace(parts=(self.text,))
        if self.tail_characters > _LONG_TAIL:
            warn(
                f"the last {self.tail_characters:,} characters of the text hold no place at which "
                "it can be cut without changing its tokens, as far as this tokenizer is known: "
                "they are read by the first question, and again after the document is loaded"
            )

    @property
    def n_tokens(self) -> int:
        """All tokens if the text ends here."""
        counted = self._counted
        return counted.tokens + len(self._encode(counted, counted.tail)[0])

    @property
    def tail_characters(self) -> int:
        """How many characters at the end have no certain tokens."""
        return len(self._counted.tail)

    def tail(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """What the tokens of the uncertain end are if the text ends here: ids int64 [n], their
        characters int64 [n, 2]."""
        counted = self._counted
        return self._encode(counted, counted.tail)

    def state(self) -> StateRecord:
        """All that it holds, for :meth:`restored`."""
        counted = self._counted
        table = {
            "tail": len(counted.tail),
            "dropped": counted.dropped,
            "stream_from": None if counted.stream is None else counted.stream_from,
        }
        text = np.frombuffer(self.text.encode("utf-8"), np.uint8)
        numbers = {"ids": self._ids, "starts": self._starts, "ends": self._ends}
        arrays = {name: np.asarray(values[: counted.tokens]) for name, values in numbers.items()}
        return StateRecord(table, {"text": text, **arrays})

    def copy(self) -> GrowingText:
        """The same, growing by itself."""
        return self.restored(self._tokenizer, self.state())

    @classmethod
    def restored(cls, tokenizer: Tokenizer, state: StateRecord) -> GrowingText:
        """One that goes on where the other stood. Raises KeyError, TypeError or ValueError for what
        no text has."""
        growing = cls(tokenizer)
        text = state.array("text", np.uint8).tobytes().decode("utf-8")
        for name, kind in (("ids", np.int32), ("starts", np.int64), ("ends", np.int64)):
            getattr(growing, f"_{name}").frombytes(state.array(name, kind).tobytes())
        counted = _Counted((text,), len(text), len(growing._ids))
        ends = np.stack([growing._starts, growing._ends])
        if len(growing._ids) != ends.shape[1]:
            raise ValueError("tokens without a place")
        if ends.size and (ends.min() < 0 or ends.max() > len(text)):
            raise ValueError("tokens outside of the text")
        tail, stream_from = state.table["tail"], state.table["stream_from"]
        if not 0 <= tail <= len(text) or not isinstance(state.table["dropped"], bool):
            raise ValueError("a tail longer than the text")
        counted = counted._replace(tail=text[len(text) - tail :], dropped=state.table["dropped"])
        if stream_from is not None:  # what the last ids' bytes are depends on those before
            stream = TextStream(tokenizer)
            stream.push(np.array(growing._ids[int(stream_from) :], dtype=np.int64))
            counted = counted._replace(stream=stream, stream_from=int(stream_from))
        growing._counted = counted
        return growing

    def _encode(self, counted: _Counted, text: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The tokens of the tail's beginning ``text``, which may be longer than ``counted`` has it,
        and their characters in the whole text."""
        ids, spans = self._tokenizer.encode_with_offsets(
            text, add_special_tokens=False, parse_special=False
        )
        start = counted.length - len(counted.tail)
        spans = spans.reshape(-1, 2) + start
        if counted.dropped and len(ids):
            spans[0, 0] = start - 1
            if self._tokenizer.id_to_token(int(ids[0])) == SPACE:
                spans[0, 1] = start
        return ids.astype(np.int64), spans

    def _grow(
        self, counted: _Counted, ids: Iterable[int], starts: Iterable[int], ends: Iterable[int]
    ) -> None:
        """Put tokens behind those that count; from now on they count, with what ``counted`` says of
        the rest."""
        for numbers, new in ((self._ids, ids), (self._starts, starts), (self._ends, ends)):
            del numbers[counted.tokens :]
            numbers.extend(new)
        self._counted = counted._replace(tokens=len(self._ids))
