"""Tokenizers in plain Python, slow and obvious: the reference for those from GGUF metadata.

Written from the definitions: the published regular expressions, byte-level BPE (rank order), and
SentencePiece BPE (highest score first, leftmost among equals). No special tokens.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from itertools import pairwise

CONTRACTIONS = ("s", "t", "re", "ve", "m", "ll", "d")
# Over one letter for each character: Letter, Number, Space, other White space, Return or line feed,
# Punctuation (all else). The apostrophe's contractions are tried before these.
GPT2_WORDS = re.compile("S?L+|S?N+|S?P+|[SWR]+(?![LNP])|[SWR]+")
LLAMA3_WORDS = re.compile("[SWP]?L+|N{1,3}|S?P+R*|[SWR]*R+|[SWR]+(?![LNP])|[SWR]+")
QWEN2_WORDS = re.compile("[SWP]?L+|N|S?P+R*|[SWR]*R+|[SWR]+(?![LNP])|[SWR]+")


def byte_characters() -> list[str]:
    """The character for each byte: printable ones as they are, the others from U+0100 on."""
    table = []
    hidden = 0
    for byte in range(256):
        if 33 <= byte <= 126 or 161 <= byte <= 172 or 174 <= byte <= 255:
            table.append(chr(byte))
        else:
            table.append(chr(256 + hidden))
            hidden += 1
    return table


def _class(character: str) -> str:
    if character == " ":
        return "S"
    if character in "\r\n":
        return "R"
    # White_Space of Unicode, which leaves out the separators U+001C to U+001F.
    if character.isspace() and not "\x1c" <= character <= "\x1f":
        return "W"
    return {"L": "L", "N": "N"}.get(unicodedata.category(character)[0], "P")


def split_words(text: str, pre: str) -> list[str]:
    """The words of a text by the pre-tokenizer ``pre``: "gpt-2", "smollm", "llama-bpe", "qwen2"."""
    if pre == "smollm":
        words = []
        for part in re.split("(N)", "".join(map(_class, text))):
            start = sum(map(len, words))
            piece = text[start : start + len(part)]
            words.extend([piece] if part == "N" else split_words(piece, "gpt-2"))
        return words
    pattern = {"gpt-2": GPT2_WORDS, "llama-bpe": LLAMA3_WORDS, "qwen2": QWEN2_WORDS}[pre]
    classes = "".join(map(_class, text))
    words = []
    start = 0
    while start < len(text):
        end = _contraction_end(text, start, ignore_case=pre != "gpt-2")
        if end is None:
            match = pattern.match(classes, start)
            assert match is not None
            end = match.end()
        words.append(text[start:end])
        start = end
    return words


def _contraction_end(text: str, start: int, ignore_case: bool) -> int | None:
    if text[start] != "'":
        return None
    for ending in CONTRACTIONS:
        found = text[start + 1 : start + 1 + len(ending)]
        if (found.casefold() if ignore_case else found) == ending:
            return start + 1 + len(ending)
    return None


def byte_level_ids(
    text: str, pre: str, vocabulary: Mapping[str, int], merges: Sequence[tuple[str, str]]
) -> list[int]:
    """Byte-level BPE: in each word, the merge of lowest rank first, leftmost first."""
    rank = {merge: index for index, merge in enumerate(merges)}
    table = byte_characters()
    ids = []
    for word in split_words(text, pre):
        parts = [table[byte] for byte in word.encode()]
        if pre == "llama-bpe" and "".join(parts) in vocabulary:
            parts = ["".join(parts)]
        while len(parts) > 1:
            pairs = list(pairwise(parts))
            best = min(range(len(pairs)), key=lambda place: rank.get(pairs[place], len(rank)))
            if pairs[best] not in rank:
                break
            parts[best : best + 2] = ["".join(pairs[best])]
        ids.extend(vocabulary[part] for part in parts)
    return ids


def sentencepiece_ids(text: str, scores: Mapping[str, float], ids: Mapping[str, int]) -> list[int]:
    """SentencePiece BPE with byte tokens; ``scores`` holds the tokens that merging may give."""
    parts = list(("▁" + text).replace(" ", "▁")) if text else []
    while True:
        joined = [left + right for left, right in pairwise(parts)]
        known = [place for place, token in enumerate(joined) if token in scores]
        if not known:
            break
        best = max(known, key=lambda place: (scores[joined[place]], -place))
        parts[best : best + 2] = [joined[best]]
    out = []
    for part in parts:
        if part in scores:
            out.append(ids[part])
        else:
            out.extend(ids[f"<0x{byte:02X}>"] for byte in part.encode())
    return out
