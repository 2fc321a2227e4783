"""A text that arrives in parts, and its tokens: the same ones however it is cut into parts."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from quickllama.documents.state_record import StateRecord
from quickllama.errors import InvalidValue
from quickllama.tokenizer.cuts import SPACE
from quickllama.tokenizer.stream import TextStream

if TYPE_CHECKING:
    from quickllama.tokenizer import Tokenizer

__all__ = ["GrowingText"]


class GrowingText:
    """Text and token ids at the same time; used by one thread at a time.

    The tokens of the last characters depend on what follows them, so they are not certain until a
    safe place to cut comes (``quickllama/tokenizer/cuts.py``). Nothing in a text is a special
    token.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._parts: list[str] = []  # all of the text
        self._length = 0
        self._tail = ""  # the end of the text, of which no token is certain
        self._dropped = False  # the space before the tail belongs to the tail's first token
        self._stream: TextStream | None = None  # where ids come instead of text, from this id on:
        self._stream_from = 0
        self._ids = array("i")
        self._starts = array("q")
        self._ends = array("q")

    def __len__(self) -> int:
        """The number of tokens that are certain."""
        return len(self._ids)

    @property
    def is_ids(self) -> bool:
        """Whether all of it came as token ids."""
        return self._stream is not None and not self._stream_from

    @property
    def text(self) -> str:
        """All of the text, the part without certain tokens included."""
        if len(self._parts) > 1:
            self._parts = ["".join(self._parts)]
        return self._parts[0] if self._parts else ""

    @property
    def nbytes(self) -> int:
        """Bytes of the text (at most four a character), the ids and their places."""
        return sum(part.__sizeof__() for part in self._parts) + 20 * len(self._ids)

    def ids(self, start: int = 0) -> NDArray[np.int64]:
        """The certain tokens from ``start`` on: int64 [n]."""
        return np.array(self._ids[start:], dtype=np.int64)

    def offsets(self) -> NDArray[np.int64]:
        """The characters [start, end) of each certain token: int64 [n, 2]."""
        return np.stack(
            [np.array(self._starts, dtype=np.int64), np.array(self._ends, dtype=np.int64)], axis=1
        )

    def add(self, text: str) -> None:
        """Put ``text`` behind what is there. Raises InvalidValue for half characters."""
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as problem:
            raise InvalidValue(
                f"the text has half of a surrogate pair (U+{ord(text[problem.start]):04X}) at "
                f"character {problem.start}, which is no character of Unicode; read the file with "
                "errors='replace' or the right encoding"
            ) from None
        if not text:
            return
        self._end_ids()
        tail = self._tail + text
        cut = self._tokenizer.last_cut(tail)
        certain = None if cut is None else self._encode(tail[: cut[0]])
        # From here on nothing can fail.
        self._parts.append(text)
        self._length += len(text)
        self._tail = tail
        if cut is not None and certain is not None:
            self._keep(*certain)
            self._tail = tail[cut[1] :]
            self._dropped = cut[1] > cut[0]

    def add_ids(self, ids: NDArray[np.int64]) -> None:
        """Put tokens behind what is there; their text is what they decode to."""
        if self._stream is None:
            self._keep(*self.tail())
            self._tail, self._dropped = "", False
            self._stream = TextStream(self._tokenizer)
            self._stream_from = len(self._ids)
        for token in ids.tolist():
            piece = self._stream.push([token])
            self._ids.append(token)
            self._starts.append(self._length)
            self._put(piece)
            self._ends.append(self._length)

    def tail(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """What the tokens of the uncertain end are if the text ends here: ids int64 [n], their
        characters int64 [n, 2]."""
        return self._encode(self._tail)

    def state(self) -> StateRecord:
        """All that it holds, for :meth:`restored`."""
        stream_from = None if self._stream is None else self._stream_from
        table = {"tail": len(self._tail), "dropped": self._dropped, "stream_from": stream_from}
        text = np.frombuffer(self.text.encode("utf-8"), np.uint8)
        numbers = {"ids": self._ids, "starts": self._starts, "ends": self._ends}
        arrays = {name: np.array(values) for name, values in numbers.items()}
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
        growing._parts = [text]
        growing._length = len(text)
        for name, kind in (("ids", np.int32), ("starts", np.int64), ("ends", np.int64)):
            getattr(growing, f"_{name}").frombytes(state.array(name, kind).tobytes())
        ends = growing.offsets()
        if len(ends) and (ends.min() < 0 or ends.max() > len(text)):
            raise ValueError("tokens outside of the text")
        tail, stream_from = state.table["tail"], state.table["stream_from"]
        if not 0 <= tail <= len(text) or not isinstance(state.table["dropped"], bool):
            raise ValueError("a tail longer than the text")
        growing._tail = text[len(text) - tail :]
        growing._dropped = state.table["dropped"]
        if stream_from is not None:  # what the last ids' bytes are depends on those before
            growing._stream_from = int(stream_from)
            growing._stream = TextStream(tokenizer)
            growing._stream.push(growing.ids(growing._stream_from))
        return growing

    def _encode(self, text: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The tokens of the tail's beginning ``text``, and their characters in the whole text."""
        ids, spans = self._tokenizer.encode_with_offsets(
            text, add_special_tokens=False, parse_special=False
        )
        start = self._length - len(self._tail)
        spans = spans.reshape(-1, 2) + start
        if self._dropped and len(ids):
            spans[0, 0] = start - 1
            if self._tokenizer.id_to_token(int(ids[0])) == SPACE:
                spans[0, 1] = start
        return ids.astype(np.int64), spans

    def _keep(self, ids: NDArray[np.int64], spans: NDArray[np.int64]) -> None:
        self._ids.extend(ids.tolist())
        self._starts.extend(spans[:, 0].tolist())
        self._ends.extend(spans[:, 1].tolist())

    def _put(self, text: str) -> None:
        if text:
            self._parts.append(text)
            self._length += len(text)

    def _end_ids(self) -> None:
        """Text follows the ids: what an incomplete character leaves is shown."""
        if self._stream is not None:
            self._put(self._stream.finish())
            self._stream = None
