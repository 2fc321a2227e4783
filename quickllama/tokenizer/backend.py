"""What a tokenizer consists of once its file has been read: a `tokenizers` encoder and what lies
around it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import tokenizers

from quickllama.tokenizer.cuts import CutRule

__all__ = ["Backend", "TokenizerSource", "known_cut_rule"]

GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LATER_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_PATTERN = _LATER_PATTERN % r"\p{N}{1,3}"
QWEN2_PATTERN = _LATER_PATTERN % r"\p{N}"


@dataclass(frozen=True)
class Backend:
    """A `tokenizers` encoder without post-processor, and what is put around its ids.

    ``prefix`` and ``suffix`` are the ids that ``add_special_tokens=True`` puts before and after a
    text. ``byte_level`` says that each token is a byte string written in the alphabet of GPT-2.
    """

    encoder: tokenizers.Tokenizer
    cuts: CutRule
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    byte_level: bool


@dataclass(frozen=True)
class TokenizerSource:
    """What is known of a tokenizer before its vocabulary is built, and how to build it.

    ``special_names`` maps ``bos_token``, ``eos_token``, ``unk_token``, ``pad_token`` to the tokens'
    strings, as chat templates name them. ``special_ids`` gives the ids of those whose ids the file
    gives. ``end_ids`` are the ids that end a generation.
    """

    build: Callable[[], Backend]
    chat_template: str | Mapping[str, str] | None = None
    special_names: Mapping[str, str] = field(default_factory=dict)
    special_ids: Mapping[str, int] = field(default_factory=dict)
    end_ids: frozenset[int] = frozenset()


def _stages(state: Any, list_name: str) -> list[dict[str, Any]]:
    """The stages of a component in tokenizer.json, a ``Sequence`` taken apart; none for null."""
    if state is None:
        return []
    if state.get("type") == "Sequence":
        return list(state[list_name])
    return [state]


def _is_byte_level(stage: Mapping[str, Any], use_regex: bool) -> bool:
    return (
        stage.get("type") == "ByteLevel"
        and stage.get("add_prefix_space") is False
        and stage.get("use_regex", True) is use_regex
    )


def _splits_words(stages: list[dict[str, Any]]) -> bool:
    """Whether ``CutRule.WORDS`` was shown to be safe for these pre-tokenizer stages."""
    if stages and stages[0].get("type") == "Digits":
        stages = stages[1:]
    if len(stages) == 1:
        return _is_byte_level(stages[0], use_regex=True)
    if len(stages) != 2 or stages[0].get("type") != "Split":
        return False
    split = stages[0]
    return (
        split.get("pattern", {}).get("Regex") in (GPT2_PATTERN, LLAMA3_PATTERN, QWEN2_PATTERN)
        and split.get("behavior") == "Isolated"
        and not split.get("invert", False)
        and _is_byte_level(stages[1], use_regex=False)
    )


def _replaces_spaces(stage: Mapping[str, Any]) -> bool:
    return (
        stage.get("type") == "Replace"
        and stage.get("pattern") == {"String": " "}
        and stage.get("content") == "▁"
    )


def _space_rule(normalizers: list[dict[str, Any]], splitters: list[dict[str, Any]]) -> CutRule:
    """The rule for SentencePiece BPE: which component writes the first ``▁`` decides."""
    if not splitters and normalizers and _replaces_spaces(normalizers[-1]):
        if len(normalizers) == 1:
            return CutRule.KEEP_SPACE
        if len(normalizers) == 2 and normalizers[0] == {"type": "Prepend", "prepend": "▁"}:
            return CutRule.DROP_SPACE
    if not normalizers and len(splitters) == 1:
        metaspace = splitters[0]
        if metaspace.get("type") == "Metaspace" and metaspace.get("replacement") == "▁":
            whole = metaspace.get("split") is False
            # It writes no ▁ before a piece that begins with one.
            return CutRule.KEEP_SPACE if whole else CutRule.NOWHERE
    return CutRule.NOWHERE


def known_cut_rule(
    model: Mapping[str, Any], normalizer: Any, pre_tokenizer: Any, merges: Iterable[str]
) -> CutRule:
    """The rule by which texts for an encoder may be cut, from its components as tokenizer.json
    writes them.

    ``merges`` are the strings that merges give. Components that are not known to be safe give
    ``CutRule.NOWHERE``.
    """
    if model.get("type", "BPE") != "BPE" or model.get("dropout"):
        return CutRule.NOWHERE
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        return CutRule.NOWHERE
    normalizers = _stages(normalizer, "normalizers")
    splitters = _stages(pre_tokenizer, "pretokenizers")
    if _splits_words(splitters):
        # NFC joins a character only with those before it that are not followed by a space, line end
        # or punctuation.
        plain = all(stage.get("type") == "NFC" for stage in normalizers)
        return CutRule.WORDS if plain else CutRule.NOWHERE
    rule = _space_rule(normalizers, splitters)
    if rule is not CutRule.NOWHERE and any("▁" in token.lstrip("▁") for token in merges):
        return CutRule.NOWHERE
    return rule
