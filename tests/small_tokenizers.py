"""Small tokenizers of every kind that GGUF metadata can give, and texts that try them."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import Any

from hypothesis import strategies as st
from naive_tokenizer import byte_characters, split_words

from quickllama.tokenizer import Tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
SPECIAL = ["<|end|>", "<|start|>"]

TRAINING = [
    "It's the year 2024, and they'll say we've 12345 reasons; I'm sure you'd agree.",
    'for (i = 0; i < 100; i++) {\n    printf("%d\\n", i);\n}\n\n\n// done == true',
    "naïve café Ünïcode 日本語のテスト 你好世界 한국어 😀😀 👩‍👩‍👧 e\u0301",
    "The quick brown fox jumps over the lazy dog, again and again and again.   spaces    here",
    "WE'VE DON'T THEY'LL 'tis 'twas \t\ttabs\r\nlines\r\n\r\n...!!! ??? --- === ",
] * 3

texts = st.text(
    st.one_of(
        st.sampled_from(" \n\t\r'\u00a0\u3000aeinostZ09.,!?_<|>-=。，日本é\u0301😀½٣s"),
        st.characters(exclude_categories=("Cs", "Cn", "Co")),
    ),
    max_size=60,
)
FRAGMENTS = [
    " ",
    "  ",
    "\n",
    "\n\n",
    "\t",
    "\r\n",
    "word",
    "It's",
    "DON'T",
    "12345",
    "½",
    "...",
    "=",
]
FRAGMENTS += ["日本語", "。", "😀", "e\u0301", "<|end|>", "<|start|>", "<pad>", "▁", "_", "'", "x"]
pieces = st.lists(st.sampled_from(FRAGMENTS), min_size=1, max_size=30).map("".join)


def training_words(pre: str) -> dict[str, int]:
    words: dict[str, int] = {}
    for line in TRAINING:
        for word in split_words(line, pre):
            words[word] = words.get(word, 0) + 1
    return words


def trained_merges(counts: dict[tuple[str, ...], int], steps: int) -> list[tuple[str, str]]:
    """The merges that BPE training gives: the most frequent pair each time."""
    merges: list[tuple[str, str]] = []
    for _ in range(steps):
        pairs: dict[tuple[str, str], int] = {}
        for parts, count in counts.items():
            for pair in pairwise(parts):
                pairs[pair] = pairs.get(pair, 0) + count
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        merged = {}
        for parts, count in counts.items():
            row: list[str] = []
            for part in parts:
                if row and (row[-1], part) == best:
                    row[-1] += part
                else:
                    row.append(part)
            merged[tuple(row)] = count
        counts = merged
    return merges


@cache
def byte_level_metadata(pre: str) -> dict[str, Any]:
    """A small byte-level vocabulary, trained on the texts above, as GGUF writes it."""
    table = byte_characters()
    counts = {
        tuple(table[byte] for byte in word.encode()): count
        for word, count in training_words(pre).items()
    }
    merges = trained_merges(counts, 200)
    # Twice the same string can come from two merges; a vocabulary has it once.
    normal = list(dict.fromkeys([*table, *map("".join, merges)]))
    tokens = [*SPECIAL, *normal, "<pad>"]
    types = [CONTROL] * len(SPECIAL) + [NORMAL] * len(normal) + [USER_DEFINED]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": [" ".join(merge) for merge in merges],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 0,
    }


@cache
def sentencepiece_metadata() -> dict[str, Any]:
    """A small SentencePiece vocabulary: characters, merged words, runs of spaces, byte tokens."""
    words: dict[tuple[str, ...], int] = {}
    for line in TRAINING:
        for word in line.split():
            parts = tuple("▁" + word)
            words[parts] = words.get(parts, 0) + 1
    merged = list(dict.fromkeys(map("".join, trained_merges(words, 150))))
    characters = sorted({character for word in words for character in word} - {"日"})
    merged = [token for token in merged if "日" not in token]
    spaces = ["▁" * count for count in range(2, 9)]
    special = ["<unk>", "<s>", "</s>"]
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    tokens = [*special, *byte_tokens, *merged, *spaces, *characters]
    ranks = [-float(index) for index in range(len(merged))]
    # As in Llama's: runs of spaces have one score, all the same; characters stand at the end.
    scores = (
        [0.0] * (3 + 256)
        + ranks
        + [-1e6] * len(spaces)
        + [-2e6 - i for i in range(len(characters))]
    )
    count = len(merged) + len(spaces) + len(characters)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * count,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }


PRES = ("smollm", "gpt-2", "llama-bpe", "qwen2")
KINDS = (*PRES, "llama", "llama without prefix")


@cache
def small_tokenizer(kind: str) -> Tokenizer:
    """The small tokenizer of one of ``KINDS``."""
    if kind in PRES:
        return Tokenizer.from_gguf(byte_level_metadata(kind))
    prefix = {"tokenizer.ggml.add_space_prefix": kind == "llama"}
    return Tokenizer.from_gguf(sentencepiece_metadata() | prefix)
