"""Token ids to text while they are generated, never splitting a character."""

from __future__ import annotations

import codecs
import copy
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from quickllama.errors import InvalidType, InvalidValue

if TYPE_CHECKING:
    from quickllama.tokenizer import Tokenizer

__all__ = ["TextStream"]

MAX_ID = (1 << 31) - 1
REPLACEMENT = "\ufffd"
_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")


def _byte_alphabet() -> dict[str, int]:
    """The characters by which byte-level BPE writes bytes (openai/gpt-2, `encoder.py`,
    ``bytes_to_unicode``)."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    table = {chr(byte): byte for byte in shown}
    table |= {chr(256 + index): byte for index, byte in enumerate(hidden)}
    return table


BYTES = _byte_alphabet()


def check_ids(ids: object) -> list[int]:
    """Token ids as a list of int: an integer array of any shape with one row, or a sequence of int.
    Raises InvalidType or InvalidValue."""
    if isinstance(ids, int | np.integer) and not isinstance(ids, bool):
        ids = [int(ids)]
    if isinstance(ids, str | bytes) or not isinstance(ids, Iterable):
        raise InvalidType(f"token ids should be integers, but are a {type(ids).__name__}")
    try:
        values = np.asarray(ids if isinstance(ids, np.ndarray) else list(ids))
    except ValueError:
        raise InvalidType("token ids should be one row of integers, but are ragged") from None
    if values.size == 0:
        return []
    if values.dtype.kind not in "iu":
        raise InvalidType(f"token ids should be integers, but are of type {values.dtype}")
    if values.ndim > 1 and values.size != values.shape[-1]:
        raise InvalidValue(
            f"token ids should be one row, but have the shape {values.shape}; decode row by row"
        )
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > MAX_ID:
        raise InvalidValue(
            f"token ids should be from 0 to {MAX_ID}, but range from {low} to {high}"
        )
    return [int(value) for value in values.reshape(-1)]


class TextStream:
    """Text for token ids that come one by one.

    ``push`` returns the text that is certain so far, perhaps nothing: the bytes of a character wait
    until it is whole. All pieces with that of ``finish`` are ``tokenizer.decode`` of all ids::

        stream = TextStream(tokenizer)
        for token in tokens:
            print(stream.push(token), end="", flush=True)
        print(stream.finish())

    Used by one thread.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_ids if skip_special_tokens else frozenset[int]()
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        # Only for tokenizers where a token's text depends on its neighbours:
        self._context: list[int] = []  # ids whose text is out, which the next text is decoded after
        self._waiting: list[int] = []
        self._shown = 0  # characters of the waiting text that are out already
        self._finished = False

    def copy(self) -> TextStream:
        """Another one, which goes on from here by itself."""
        other = copy.copy(self)
        other._utf8 = copy.copy(self._utf8)
        other._waiting = self._waiting.copy()
        return other

    def push(self, ids: int | Iterable[int]) -> str:
        """Take one token id or several; return the text that is certain now. Raises InvalidType or
        InvalidValue for what is no id, and after :meth:`finish`."""
        if self._finished:
            raise InvalidValue("this text stream is finished; make a new one for another text")
        return "".join(self._push(index) for index in check_ids(ids))

    def finish(self) -> str:
        """Return what still waits; the bytes of an incomplete character become U+FFFD."""
        if self._finished:
            return ""
        self._finished = True
        return self._utf8.decode(b"", final=True) + self._decode_waiting(final=True)

    def _push(self, index: int) -> str:
        if index in self._skipped:
            return ""
        token = self._tokenizer.id_to_token(index)
        if token is None:
            return ""
        if self._tokenizer.is_byte_level:
            # As the ByteLevel decoder does it: a token with any other character is its own UTF-8.
            known = all(character in BYTES for character in token)
            data = bytes(BYTES[c] for c in token) if known else token.encode()
            return self._utf8.decode(data)
        self._waiting.append(index)
        # A run of byte tokens is valid or not as a whole.
        return "" if _BYTE_TOKEN.fullmatch(token) else self._decode_waiting(final=False)

    def _decode_waiting(self, final: bool) -> str:
        if not self._waiting:
            return ""
        before = self._tokenizer.decode(self._context, skip_special_tokens=False)
        both = self._context + self._waiting
        text = self._tokenizer.decode(both, skip_special_tokens=False)[len(before) :]
        certain = len(text)
        if not final and text.endswith(REPLACEMENT):
            certain -= 1
        piece = text[self._shown : certain]
        if certain == len(text) and text:
            self._context, self._waiting, self._shown = self._waiting, [], 0
        else:
            self._shown = max(self._shown, certain)
        return piece
