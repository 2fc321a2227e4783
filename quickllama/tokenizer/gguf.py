"""A tokenizer from the metadata of a GGUF file.

GGUF names the pre-tokenizer instead of storing it (``tokenizer.ggml.pre``). The names that are
accepted here, and what they mean, come from these public sources, and were compared with llama.cpp
on its own vocabulary files:

* ``smollm``, ``starcoder``, ``refact``: each digit alone, then the expression of GPT-2 (llama.cpp,
  `llama-vocab.cpp`, case ``LLAMA_VOCAB_PRE_TYPE_SMOLLM``; tokenizer.json of HuggingFaceTB/SmolLM2).
* ``gpt-2``: the expression of GPT-2 (openai/gpt-2, `encoder.py`).
* ``llama-bpe``, ``llama3``, ``llama-v3``: the expression in tokenizer.json of
  meta-llama/Meta-Llama-3; a word that is a token as a whole is taken without merging
  (``ignore_merges``).
* ``qwen2``, ``deepseek-r1-qwen``: the expression in tokenizer.json of Qwen/Qwen2. That file also
  normalises to NFC; GGUF and llama.cpp do not, and neither is it done here, so that decoding gives
  the very text.

The model ``llama`` is SentencePiece BPE with byte fallback (google/sentencepiece, `bpe_model.cc`):
the merges follow from the scores. Any other model or pre-tokenizer is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from quickllama.errors import InvalidType, InvalidValue, MissingKey
from quickllama.tokenizer.backend import (
    LLAMA3_PATTERN,
    QWEN2_PATTERN,
    Backend,
    TokenizerSource,
)
from quickllama.tokenizer.cuts import CutRule
from quickllama.tokenizer.sentencepiece import sentencepiece_merges

__all__ = ["gguf_source"]

PREFIX = "tokenizer.ggml."
# Token types, as in gguf's constants (TokenType).
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

DIGITS_THEN_GPT2 = ("smollm", "starcoder", "refact")
GPT2 = ("gpt-2",)
LLAMA3 = ("llama-bpe", "llama3", "llama-v3")
QWEN2 = ("qwen2", "deepseek-r1-qwen")
KNOWN_PRE = (*DIGITS_THEN_GPT2, *GPT2, *LLAMA3, *QWEN2)

# Control tokens that end a turn or a text, by the names for which llama.cpp (`llama-vocab.cpp`,
# ``special_eog_ids``) looks: files of the families served here often give only one of them as the
# end of sequence.
END_NAMES = frozenset(
    {
        "<|eot_id|>",
        "<|im_end|>",
        "<|end|>",
        "<end_of_turn>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<|eom_id|>",
        "</s>",
    }
)


@dataclass(frozen=True)
class _Vocabulary:
    """The checked lists of the metadata: ``tokens`` [V], ``types`` [V], ``scores`` [V] or None."""

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    scores: list[float] | None
    merges: list[str]
    ids: dict[str, int]


def _get(metadata: Mapping[str, object], name: str, kind: type, default: Any = None) -> Any:
    value = metadata.get(PREFIX + name, default)
    if isinstance(value, np.generic):
        value = value.item()
    if value is not default and (not isinstance(value, kind) or (kind is int and value is True)):
        raise InvalidType(
            f"the GGUF key {PREFIX + name} should be of type {kind.__name__}, but is "
            f"{type(value).__name__}; the file was written wrongly, convert the model again"
        )
    return value


def _get_list(metadata: Mapping[str, object], name: str) -> list[Any] | None:
    value = metadata.get(PREFIX + name)
    if value is None:
        return None
    if isinstance(value, np.ndarray):
        return list(value.tolist())
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return list(value)
    raise InvalidType(
        f"the GGUF key {PREFIX + name} should be an array, but is {type(value).__name__}; "
        "the file was written wrongly, convert the model again"
    )


def _strings(metadata: Mapping[str, object], name: str) -> list[str]:
    values = _get_list(metadata, name)
    if values is None:
        raise MissingKey(
            f"the GGUF file has no {PREFIX + name}, without which its tokenizer cannot be built; "
            "convert the model again, or give a folder with tokenizer.json"
        )
    for index, value in enumerate(values):
        if not isinstance(value, str):
            raise InvalidType(
                f"{PREFIX + name}[{index}] should be a string, but is {type(value).__name__}"
            )
    return values


def _numbers(metadata: Mapping[str, object], name: str, length: int) -> list[Any] | None:
    values = _get_list(metadata, name)
    if values is not None and len(values) != length:
        raise InvalidValue(
            f"{PREFIX + name} has {len(values)} entries, but there are {length} tokens; "
            "the file contradicts itself"
        )
    return values


def _read_vocabulary(metadata: Mapping[str, object]) -> _Vocabulary:
    model = _get(metadata, "model", str)
    pre = _get(metadata, "pre", str, "")
    if model not in ("gpt2", "llama"):
        raise InvalidValue(
            f"the tokenizer model {model!r} of this GGUF file is not known; 'gpt2' (byte-level "
            "BPE) and "
            "'llama' (SentencePiece BPE) are. Use a folder with tokenizer.json instead"
        )
    if model == "gpt2" and pre not in KNOWN_PRE:
        raise InvalidValue(
            f"the pre-tokenizer {pre!r} of this GGUF file is not known, and guessing would give "
            "wrong tokens; known are "
            f"{', '.join(KNOWN_PRE)}. Use a folder with tokenizer.json instead"
        )
    # An empty name cannot be looked up; llama.cpp calls such tokens so.
    tokens = [
        token or f"[EMPTY_{index}]" for index, token in enumerate(_strings(metadata, "tokens"))
    ]
    if not tokens:
        raise InvalidValue(f"{PREFIX}tokens is empty; a tokenizer needs at least one token")
    types = _numbers(metadata, "token_type", len(tokens))
    scores = _numbers(metadata, "scores", len(tokens))
    ids = {token: index for index, token in enumerate(tokens)}
    if len(ids) != len(tokens):
        twice = next(token for index, token in enumerate(tokens) if ids[token] != index)
        raise InvalidValue(
            f"{PREFIX}tokens has the token {twice!r} more than once; the file contradicts itself"
        )
    if types is None:
        raise MissingKey(
            f"the GGUF file has no {PREFIX}token_type, without which special tokens cannot be told "
            "from text; convert the model again"
        )
    merges = _strings(metadata, "merges") if model == "gpt2" else []
    if model == "llama" and scores is None:
        raise MissingKey(
            f"the GGUF file has no {PREFIX}scores, from which the merges of a SentencePiece "
            "tokenizer follow; "
            "convert the model again"
        )
    return _Vocabulary(model, pre, tokens, types, scores, merges, ids)


def _special_id(metadata: Mapping[str, object], name: str, tokens: Sequence[str]) -> int | None:
    value: int | None = _get(metadata, f"{name}_token_id", int)
    if value is None:
        return None
    if not 0 <= value < len(tokens):
        raise InvalidValue(
            f"{PREFIX}{name}_token_id is {value}, but there are {len(tokens)} tokens; "
            "the file contradicts itself"
        )
    return value


def _pre_tokenizer(pre: str) -> pre_tokenizers.PreTokenizer:
    if pre in GPT2:
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if pre in DIGITS_THEN_GPT2:
        first = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([first, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    pattern = LLAMA3_PATTERN if pre in LLAMA3 else QWEN2_PATTERN
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _byte_level_encoder(vocabulary: _Vocabulary) -> Tokenizer:
    pairs: list[tuple[str, str]] = []
    for index, merge in enumerate(vocabulary.merges):
        left, found, right = merge.partition(" ")
        if not found or not left or not right:
            raise InvalidValue(
                f"{PREFIX}merges[{index}] is {merge!r}; expected two tokens with one space between "
                "them"
            )
        pairs.append((left, right))
    try:
        model = BPE(vocab=vocabulary.ids, merges=pairs, ignore_merges=vocabulary.pre in LLAMA3)
    except Exception as problem:  # the library raises the bare class
        raise InvalidValue(
            f"the vocabulary and merges of this GGUF file contradict each other: {problem}"
        ) from problem
    encoder = Tokenizer(model)
    encoder.pre_tokenizer = _pre_tokenizer(vocabulary.pre)
    encoder.decoder = decoders.ByteLevel()
    return encoder


def _sentencepiece_encoder(vocabulary: _Vocabulary, unknown: str, space_prefix: bool) -> Tokenizer:
    assert vocabulary.scores is not None
    entries = zip(vocabulary.tokens, vocabulary.types, vocabulary.scores, strict=True)
    scores = {token: score for token, kind, score in entries if kind in (NORMAL, UNUSED)}
    merges = sentencepiece_merges(scores, vocabulary.ids)
    missing = [byte for byte in range(256) if f"<0x{byte:02X}>" not in vocabulary.ids]
    if missing:
        raise InvalidValue(
            f"this SentencePiece vocabulary has no token <0x{missing[0]:02X}>: without all 256 "
            "byte tokens some texts "
            "cannot be encoded. Use a folder with tokenizer.json instead"
        )
    model = BPE(
        vocab=vocabulary.ids, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True
    )
    encoder = Tokenizer(model)
    spaces = normalizers.Replace(" ", "▁")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if space_prefix:
        encoder.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces])
        encoder.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    else:
        encoder.normalizer = spaces
        encoder.decoder = decoders.Sequence(steps)
    return encoder


def _space_cuts(vocabulary: _Vocabulary, space_prefix: bool) -> CutRule:
    for token, kind in zip(vocabulary.tokens, vocabulary.types, strict=True):
        if kind in (NORMAL, UNUSED) and "▁" in token.lstrip("▁"):
            return CutRule.NOWHERE
    if "▁" not in vocabulary.ids:
        return CutRule.NOWHERE
    return CutRule.DROP_SPACE if space_prefix else CutRule.KEEP_SPACE


def _is_special(token: str, kind: int) -> bool:
    """Control and unknown tokens, and an end of turn that a file calls user-defined."""
    return kind in (UNKNOWN, CONTROL) or (kind == USER_DEFINED and token in END_NAMES)


def _build(
    vocabulary: _Vocabulary, unknown: int, space_prefix: bool, ends: tuple[int | None, int | None]
) -> Backend:
    byte_level = vocabulary.model == "gpt2"
    if byte_level:
        encoder = _byte_level_encoder(vocabulary)
        cuts = CutRule.WORDS
    else:
        encoder = _sentencepiece_encoder(vocabulary, vocabulary.tokens[unknown], space_prefix)
        cuts = _space_cuts(vocabulary, space_prefix)
    added = [
        AddedToken(token, special=_is_special(token, kind), normalized=False)
        for token, kind in zip(vocabulary.tokens, vocabulary.types, strict=True)
        if kind in (UNKNOWN, CONTROL, USER_DEFINED)
    ]
    encoder.add_tokens(added)
    first, last = ends
    return Backend(
        encoder=encoder,
        cuts=cuts,
        prefix=() if first is None else (first,),
        suffix=() if last is None else (last,),
        byte_level=byte_level,
    )


def _chat_templates(metadata: Mapping[str, object]) -> str | dict[str, str] | None:
    """The template, or all of them by name if the file has named ones
    (``tokenizer.chat_template.<name>``)."""
    key = "tokenizer.chat_template"
    named: dict[str, str] = {}
    for name, value in metadata.items():
        if name != key and not name.startswith(key + "."):
            continue
        if not isinstance(value, str):
            raise InvalidType(
                f"the GGUF key {name} should be a string, but is {type(value).__name__}"
            )
        named["default" if name == key else name[len(key) + 1 :]] = value
    if set(named) <= {"default"}:
        return named.get("default")
    return named


def _end_id(
    metadata: Mapping[str, object], name: str, default: bool, special: Mapping[str, int | None]
) -> int | None:
    """The id which ``add_bos_token`` or ``add_eos_token`` puts around a text, or None."""
    if not _get(metadata, f"add_{name}_token", bool, default):
        return None
    found = special[name]
    if found is None:
        raise InvalidValue(
            f"this GGUF file wants {PREFIX}{name}_token_id put around texts, but does not give it; "
            "convert the model again"
        )
    return found


def gguf_source(metadata: Mapping[str, object]) -> TokenizerSource:
    """Check the metadata of a GGUF file; the vocabulary itself is built by ``.build()``.

    Special tokens come from the token types: control and unknown tokens are special; user-defined
    ones are not, but are found in any text before it is split. A beginning of sequence is added as
    ``add_bos_token`` says; where the key is missing, as llama.cpp does: for SentencePiece and Llama
    3.

    Raises MissingKey, InvalidType or InvalidValue with the key that is wrong.
    """
    vocabulary = _read_vocabulary(metadata)
    tokens = vocabulary.tokens
    special = {
        name: _special_id(metadata, name, tokens)
        for name in ("bos", "eos", "unknown", "padding", "eot", "eom")
    }
    if vocabulary.model == "llama":
        # llama.cpp and SentencePiece number these so where the file is silent.
        for name, usual in (("unknown", 0), ("bos", 1), ("eos", 2)):
            if special[name] is None and len(tokens) > usual:
                special[name] = usual
        if metadata.get(PREFIX + "precompiled_charsmap") is not None:
            raise InvalidValue(
                f"this GGUF file has a {PREFIX}precompiled_charsmap, a normalisation of texts that "
                "is not computed "
                "here. Use a folder with tokenizer.json instead"
            )
    adds_bos = vocabulary.model == "llama" or vocabulary.pre in LLAMA3
    around = (_end_id(metadata, "bos", adds_bos, special), _end_id(metadata, "eos", False, special))
    space_prefix = bool(_get(metadata, "add_space_prefix", bool, vocabulary.model == "llama"))
    if vocabulary.model == "gpt2" and space_prefix:
        raise InvalidValue(
            f"{PREFIX}add_space_prefix is not known for byte-level BPE; use a folder with "
            "tokenizer.json instead"
        )
    ends = {special[name] for name in ("eos", "eot", "eom")}
    for name in END_NAMES & vocabulary.ids.keys():
        if _is_special(name, vocabulary.types[vocabulary.ids[name]]):
            ends.add(vocabulary.ids[name])
    names = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
    given = {name: special[key] for key, name in names.items()}
    ids = {name: index for name, index in given.items() if index is not None}
    unknown = special["unknown"] or 0
    return TokenizerSource(
        build=lambda: _build(vocabulary, unknown, space_prefix, around),
        chat_template=_chat_templates(metadata),
        special_names={name: tokens[index] for name, index in ids.items()},
        special_ids=ids,
        end_ids=frozenset(index for index in ends if index is not None),
    )
