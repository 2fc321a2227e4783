"""Places where a long text can be cut without changing its tokens.

One call of a `tokenizers` encoder on a text of many megabytes takes hundreds of bytes of memory for
each character. Cut at the places found here, the pieces give together exactly the tokens and
offsets that the whole text gives, in memory that does not grow with the text.

Why the places are safe, for each rule:

* ``WORDS``: byte-level BPE behind the regular expression of GPT-2, Llama 3 or Qwen2 (with or
  without digits split off before it). The expression is scanned from left to right without looking
  back. A match that ends in a character which is not white space never takes the space after it,
  and a run of letters or numbers never takes a line end or a punctuation mark after it; none of
  these alternatives looks ahead. So a match ends at the cut, it is the same match when the text
  ends there, and the next match starts there. Cuts right after white space are *not* safe:
  ``\\s+(?!\\S)`` gives the last white space of a run away only if something follows.
* ``KEEP_SPACE`` and ``DROP_SPACE``: SentencePiece BPE, where the whole text is one word and a space
  is ``▁``. If no merge gives a token with ``▁`` after another character, then no token reaches
  across the start of a run of spaces. With ``DROP_SPACE`` the encoder itself writes one ``▁``
  before each piece, so that the piece starts after its first space.

A text that is still growing must be cut sometime, whatever its tokenizer: :func:`tried_cut` cuts
where no rule says so, and where the text around the place gives the same tokens in two pieces. That
is tried, not shown; what an encoder does with a place depends on its surroundings.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import Enum
from itertools import islice

__all__ = ["SPACE", "AddedTokens", "CutRule", "Piece", "cut_text", "last_cut", "tried_cut"]

SPACE = "▁"  # how SentencePiece writes a space
NEAR = 1000  # characters in which ordinary text has a space
MAX_CANDIDATES = 1000
MAX_TRIED = 32

_BEFORE_SPACE = re.compile(r"(?<=\S) ")
_AFTER_WORD = re.compile(r"(?<=[^\W_])(?=[ \n\r\t.,;:!?。，、；：！？])")
_WORD_END = re.compile(r"(?<=\w)(?=\W)")
_BEFORE_SPACES = re.compile(rf"(?<=[^ {SPACE}]) ")


class CutRule(Enum):
    """Where the text of a tokenizer may be cut; see the module's docstring."""

    NOWHERE = "nowhere"
    WORDS = "words"
    KEEP_SPACE = "keep space"
    DROP_SPACE = "drop space"


class Piece:
    """One piece of a text.

    ``start`` is the index of its first character; ``dropped_space`` says that the space before it
    belongs to its first token, but is not in ``text``.
    """

    __slots__ = ("dropped_space", "start", "text")

    def __init__(self, text: str, start: int, dropped_space: bool) -> None:
        self.text = text
        self.start = start
        self.dropped_space = dropped_space


class AddedTokens:
    """The strings which an encoder looks for in the raw text before anything else."""

    def __init__(self, contents: Iterable[str]) -> None:
        self._contents = [content for content in contents if content]
        self._longest = max((len(content) for content in self._contents), default=0)
        self._any = re.compile("|".join(map(re.escape, self._contents)) or r"(?!)")

    @property
    def longest(self) -> int:
        """Characters of the longest of them."""
        return self._longest

    def touch(self, text: str, start: int, end: int) -> bool:
        """Whether one of them overlaps or touches ``text[start:end]``.

        Such a place is left alone: a token may also take the white space around it.
        """
        shift = max(0, start - self._longest)
        window = text[shift : end + self._longest]
        if self._any.search(window) is None:
            return False
        for content in self._contents:
            found = window.find(content)
            while found >= 0:
                first = shift + found
                if first <= end and first + len(content) >= start:
                    return True
                found = window.find(content, found + 1)
        return False


def _is_old_word_character(character: str) -> bool:
    """A letter or number in every Unicode version that an encoder may have been built with (3.2 and
    later)."""
    return unicodedata.ucd_3_2_0.category(character)[0] in "LN"


def _is_cut(text: str, place: int, rule: CutRule, added: AddedTokens) -> bool:
    if place <= 0 or place >= len(text) - 1:
        return False
    if rule is CutRule.WORDS:
        if text[place] != " " and not _is_old_word_character(text[place - 1]):
            return False
        return not added.touch(text, place, place)
    return not added.touch(text, place, place + 1)


def _next_cut(text: str, start: int, rule: CutRule, added: AddedTokens, size: int) -> int | None:
    """The first safe place at or after ``start``, or None.

    After many candidates in vain (a text full of special tokens) the search goes on ``size``
    characters further.
    """
    while start < len(text):
        pattern = _BEFORE_SPACES
        if rule is CutRule.WORDS:
            near = _BEFORE_SPACE.search(text, start, start + NEAR)
            pattern = _BEFORE_SPACE if near else _AFTER_WORD
        candidates = islice(pattern.finditer(text, start), MAX_CANDIDATES)
        tried = 0
        for match in candidates:
            if _is_cut(text, match.start(), rule, added):
                return match.start()
            tried += 1
        if tried < MAX_CANDIDATES:
            return None
        start += size
    return None


def cut_text(text: str, rule: CutRule, added: AddedTokens, size: int) -> Iterator[Piece]:
    """Yield the pieces of ``text``, in order, each of at least ``size`` characters (the last one
    may be shorter).

    Where the rule finds no safe place (or is ``NOWHERE``), the rest is one piece. An empty text
    gives no piece.
    """
    start = 0
    dropped = False
    while start < len(text):
        place = None
        if rule is not CutRule.NOWHERE and len(text) - start > size:
            place = _next_cut(text, start + size, rule, added, size)
        end = len(text) if place is None else place
        yield Piece(text[start:end], start, dropped)
        dropped = rule is CutRule.DROP_SPACE
        start = end + 1 if dropped and place is not None else end


def last_cut(text: str, rule: CutRule, added: AddedTokens) -> tuple[int, int] | None:
    """The last place where a text that may still go on can be cut: (end, next), or None.

    ``text[:end]`` gives the same tokens whatever follows, and what follows begins at ``next``, one
    later where the space between belongs to its first token.
    """
    if rule is CutRule.NOWHERE:
        return None
    known = len(text) - 1 - added.longest  # an added token may still begin behind it
    size = NEAR
    while known > 0:
        start = max(known - size, 0)
        patterns = (_BEFORE_SPACE, _AFTER_WORD) if rule is CutRule.WORDS else (_BEFORE_SPACES,)
        for pattern in patterns:
            for match in reversed(list(pattern.finditer(text, start, known + 1))):
                if _is_cut(text, match.start(), rule, added):
                    return match.start(), match.start() + (rule is CutRule.DROP_SPACE)
        if start == 0:
            return None
        size *= 8
    return None


def tried_cut(text: str, encode: Callable[[str], Sequence[int]]) -> tuple[int, int] | None:
    """A late place (end, next) as :func:`last_cut` gives it, for texts in which it finds none.

    ``encode`` gives the ids of a text. The :data:`NEAR` characters at each side of the place are
    encoded together and apart; what follows begins one later if the encoder writes the space
    between by itself. None if the text is too short, or a few dozen places were tried in vain.
    """
    end, left = max(len(text) - NEAR, 1), MAX_TRIED
    for pattern in (_BEFORE_SPACE, _WORD_END):
        places = [match.start() for match in pattern.finditer(text, max(end - NEAR, 1), end)]
        for place in places[: -left - 1 : -1]:
            before, after = text[max(place - NEAR, 0) : place], text[place : place + NEAR]
            whole, first = list(encode(before + after)), list(encode(before))
            for skipped in range(2 if after[0] == " " else 1):
                if first + list(encode(after[skipped:])) == whole:
                    return place, place + skipped
        left -= min(left, len(places))
    return None
