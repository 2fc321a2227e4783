"""Tokenizers from HuggingFace folders: the files, their dialects, and what is wrong with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import compress
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tokenizers import PRES, pieces, small_tokenizer, texts
from tokenizers import AddedToken, normalizers, pre_tokenizers, processors
from tokenizers.models import WordLevel

from quickllama import tokenizer as tokenizer_module
from quickllama.errors import FileProblem, InvalidType, InvalidValue
from quickllama.prompt import PromptForm
from quickllama.tokenizer import Tokenizer
from quickllama.tokenizer.cuts import CutRule

Change = Callable[[tokenizers.Tokenizer], None]
TEXT = "It's 2024 <|end|> here, naïve 日本.\n\nDone"


def encoder_of(kind: str) -> tokenizers.Tokenizer:
    """A copy of a small tokenizer's encoder, as a folder's tokenizer.json would give it."""
    encoder = small_tokenizer(kind)._backend().encoder
    return tokenizers.Tokenizer.from_str(encoder.to_str())


def write(folder: Path, encoder: tokenizers.Tokenizer, **files: object) -> Path:
    """Save a folder; ``files`` are JSON objects, or text, by file name with "_" for "."."""
    folder.mkdir(exist_ok=True)
    encoder.save(str(folder / "tokenizer.json"))
    for name, value in files.items():
        text = value if isinstance(value, str) else json.dumps(value)
        suffix = ".jinja" if isinstance(value, str) else ".json"
        (folder / (name + suffix)).write_text(text, encoding="utf-8")
    return folder


def around(text_ids: str, encoder: tokenizers.Tokenizer) -> None:
    """A post-processor that puts special tokens around, such as ``<|start|> $A <|end|>``."""
    special = [(name, encoder.token_to_id(name)) for name in text_ids.split() if name != "$A"]
    encoder.post_processor = processors.TemplateProcessing(text_ids, special_tokens=special)


@pytest.mark.parametrize("kind", PRES)
@pytest.mark.parametrize("template", ["$A", "<|start|> $A", "<|start|> $A <|end|>", "$A <|end|>"])
def test_equals_the_library(tmp_path: Path, kind: str, template: str) -> None:
    encoder = encoder_of(kind)
    around(template, encoder)
    tokenizer = Tokenizer.from_folder(write(tmp_path, encoder))
    for special in (True, False):
        expected = encoder.encode(TEXT, add_special_tokens=special)
        assert tokenizer.encode(TEXT, add_special_tokens=special) == expected.ids
        ids, offsets = tokenizer.encode_with_offsets(TEXT, add_special_tokens=special)
        assert ids.tolist() == expected.ids
        text_tokens = [not mask for mask in expected.special_tokens_mask]
        wanted = [list(span) for span in compress(expected.offsets, text_tokens)]
        assert list(compress(offsets.tolist(), text_tokens)) == wanted
        assert tokenizer.decode(ids) == encoder.decode(ids.tolist())
    assert tokenizer.encode("") == encoder.encode("").ids


def test_no_end_stands_before_a_text(tmp_path: Path) -> None:
    """What the tokenizer puts behind a text is not put behind the beginning of a prompt."""
    encoder = encoder_of("smollm")
    around("<|start|> $A <|end|>", encoder)
    tokenizer = Tokenizer.from_folder(write(tmp_path, encoder))
    assert not tokenizer.has_chat_template
    ids, _ = PromptForm.of("Read: {text} {question}").prefix(tokenizer)
    assert ids.tolist() == tokenizer.encode("Read: ")[:-1]


@pytest.mark.parametrize("kind", [*PRES, "llama", "llama without prefix"])
def test_the_same_rule_for_cuts_as_from_gguf(tmp_path: Path, kind: str) -> None:
    tokenizer = Tokenizer.from_folder(write(tmp_path, encoder_of(kind)))
    assert tokenizer.cut_rule is small_tokenizer(kind).cut_rule
    assert tokenizer.cut_rule is not CutRule.NOWHERE
    assert tokenizer.is_byte_level is (kind in PRES)


def nfc(encoder: tokenizers.Tokenizer) -> None:
    encoder.normalizer = normalizers.NFC()


def lowercase(encoder: tokenizers.Tokenizer) -> None:
    encoder.normalizer = normalizers.Lowercase()


def prefix_space(encoder: tokenizers.Tokenizer) -> None:
    encoder.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)


def other_pattern(encoder: tokenizers.Tokenizer) -> None:
    split = pre_tokenizers.Split(tokenizers.Regex(r"\s+|\S+"), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    encoder.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])


def no_splitter(encoder: tokenizers.Tokenizer) -> None:
    encoder.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def metaspace(encoder: tokenizers.Tokenizer) -> None:
    encoder.normalizer = None
    encoder.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)


def metaspace_split(encoder: tokenizers.Tokenizer) -> None:
    encoder.normalizer = None
    encoder.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="always", split=True)


@pytest.mark.parametrize(
    ("kind", "change", "rule"),
    [
        ("qwen2", nfc, CutRule.WORDS),
        ("qwen2", lowercase, CutRule.NOWHERE),
        ("gpt-2", prefix_space, CutRule.NOWHERE),
        ("gpt-2", other_pattern, CutRule.NOWHERE),
        ("gpt-2", no_splitter, CutRule.NOWHERE),
        ("llama", metaspace, CutRule.KEEP_SPACE),
        ("llama", metaspace_split, CutRule.NOWHERE),
    ],
)
def test_only_known_parts_are_cut(tmp_path: Path, kind: str, change: Change, rule: CutRule) -> None:
    encoder = encoder_of(kind)
    change(encoder)
    tokenizer = Tokenizer.from_folder(write(tmp_path, encoder))
    assert tokenizer.cut_rule is rule
    check_cut_texts(tokenizer)


def check_cut_texts(tokenizer: Tokenizer) -> None:
    check = settings(max_examples=100, deadline=None)(
        given(text=st.one_of(texts, pieces), size=st.integers(1, 10))(
            lambda text, size: check_one(tokenizer, text, size)
        )
    )
    check()


def check_one(tokenizer: Tokenizer, text: str, size: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer_module, "PIECE_CHARACTERS", size)
        ids, offsets = tokenizer.encode_with_offsets(text)
    whole, spans = tokenizer.encode_with_offsets(text)
    assert ids.tolist() == whole.tolist()
    assert offsets.tolist() == spans.tolist()


def spaces_inside(encoder: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """The same with a token that has a space inside."""
    document = json.loads(encoder.to_str())
    vocabulary, merges = document["model"]["vocab"], document["model"]["merges"]
    vocabulary["e▁"] = len(vocabulary)
    merges.append(["e", "▁"])
    return tokenizers.Tokenizer.from_str(json.dumps(document))


def test_a_vocabulary_with_spaces_inside_is_not_cut(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_folder(write(tmp_path, spaces_inside(encoder_of("llama"))))
    assert tokenizer.cut_rule is CutRule.NOWHERE
    assert tokenizer.token_to_id("e▁") in tokenizer.encode("the e ")


def test_truncation_and_padding_of_the_file_are_ignored(tmp_path: Path) -> None:
    encoder = encoder_of("gpt-2")
    encoder.enable_truncation(3)
    encoder.enable_padding(length=50)
    tokenizer = Tokenizer.from_folder(write(tmp_path, encoder))
    assert tokenizer.encode(TEXT) == small_tokenizer("gpt-2").encode(TEXT)


@pytest.mark.parametrize(
    "config",
    [
        {"bos_token": "<|start|>", "eos_token": "<|end|>", "pad_token": None},
        {
            "bos_token": {"__type": "AddedToken", "content": "<|start|>"},
            "eos_token": {"content": "<|end|>"},
        },
    ],
)
def test_special_tokens_as_strings_and_objects(tmp_path: Path, config: dict[str, Any]) -> None:
    encoder = encoder_of("gpt-2")
    names = {"bos_token": "<|start|>", "eos_token": "<|end|>"}
    tokenizer = Tokenizer.from_folder(write(tmp_path / "new", encoder, tokenizer_config=config))
    older = Tokenizer.from_folder(write(tmp_path / "old", encoder, special_tokens_map=config))
    for each in (tokenizer, older):
        assert each.special_tokens == names
        assert (each.bos_token_id, each.eos_token_id, each.eos_token_ids) == (1, 0, {0})
    other = {"bos_token": "a"}
    both = write(tmp_path / "both", encoder, tokenizer_config=config, special_tokens_map=other)
    assert Tokenizer.from_folder(both).special_tokens == names
    bare = Tokenizer.from_folder(write(tmp_path / "bare", encoder))
    assert bare.special_tokens == {} and bare.bos_token_id is None
    assert bare.eos_token_ids == frozenset() and not bare.has_chat_template


def test_ends_from_generation_config(tmp_path: Path) -> None:
    encoder = encoder_of("gpt-2")
    config = {"eos_token": "<|end|>"}
    ends = {"eos_token_id": [1, 7]}
    first = write(tmp_path / "a", encoder, tokenizer_config=config, generation_config=ends)
    assert Tokenizer.from_folder(first).eos_token_ids == {0, 1, 7}
    second = write(tmp_path / "b", encoder, tokenizer_config=config, config={"eos_token_id": 5})
    assert Tokenizer.from_folder(second).eos_token_ids == {0, 5}
    wrong = write(tmp_path / "c", encoder, generation_config={"eos_token_id": "two"})
    with pytest.raises(InvalidValue, match="eos_token_id"):
        Tokenizer.from_folder(wrong)


def test_tokens_that_only_the_configuration_has(tmp_path: Path) -> None:
    encoder = encoder_of("gpt-2")
    size = encoder.get_vocab_size()
    table = {
        "0": {"content": "<|end|>", "special": True},
        str(size): {"content": "<|late|>", "special": True, "lstrip": False},
        str(size + 1): {"content": "<tool>", "special": False},
    }
    folder = write(tmp_path, encoder, tokenizer_config={"added_tokens_decoder": table})
    tokenizer = Tokenizer.from_folder(folder)
    ids = tokenizer.encode("a<|late|><tool>", add_special_tokens=False)
    assert ids[1:] == [size, size + 1] and tokenizer.vocab_size == size + 2
    assert tokenizer.decode(ids) == "a<tool>"
    plain = tokenizer.encode("a<|late|>", add_special_tokens=False, parse_special=False)
    assert size not in plain
    table[str(size + 9)] = {"content": "<|gap|>"}
    folder = write(tmp_path, encoder, tokenizer_config={"added_tokens_decoder": table})
    with pytest.raises(InvalidValue, match=rf"<\|gap\|>.* {size + 9}"):
        Tokenizer.from_folder(folder).encode("a")


def test_llama_classes_follow_add_bos_token(tmp_path: Path) -> None:
    encoder = encoder_of("llama")
    around("<s> $A", encoder)
    config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>"}
    for flags, first, last in (
        ({}, 1, None),
        ({"add_bos_token": False}, None, None),
        ({"add_bos_token": True, "add_eos_token": True}, 1, 2),
    ):
        folder = write(tmp_path, encoder, tokenizer_config=config | flags)
        ids = Tokenizer.from_folder(folder).encode("the")
        assert (ids[0] == 1) is (first == 1)
        assert (ids[-1] == 2) is (last == 2)


def test_where_the_chat_template_comes_from(tmp_path: Path) -> None:
    encoder = encoder_of("gpt-2")
    messages = [{"role": "user", "content": "x"}]

    def text() -> str:
        return Tokenizer.from_folder(tmp_path).apply_chat_template(messages, tokenize=False)

    config = {"chat_template": "oldest {{ bos_token }}", "bos_token": "<|start|>"}
    write(tmp_path, encoder, tokenizer_config=config)
    assert text() == "oldest <|start|>"
    named = [{"name": "default", "template": "named"}, {"name": "rag", "template": "r"}]
    write(tmp_path, encoder, tokenizer_config={"chat_template": named})
    assert text() == "named"
    write(tmp_path, encoder, chat_template={"chat_template": "in json"})
    assert text() == "in json"
    write(tmp_path, encoder, chat_template="alone {{ messages[0].content }}\n")
    assert text() == "alone x"
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("tools")
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.apply_chat_template(messages, tokenize=False, tools=[{}]) == "tools"
    assert text() == "alone x"


@pytest.mark.parametrize(
    ("name", "content", "error", "words"),
    [
        ("tokenizer_config.json", "{", FileProblem, "not hold valid JSON"),
        ("tokenizer_config.json", "[1]", FileProblem, "JSON list, not an object"),
        ("tokenizer_config.json", '{"bos_token": 5}', InvalidType, "bos_token"),
        ("tokenizer_config.json", '{"chat_template": 5}', InvalidType, "chat_template"),
        ("tokenizer_config.json", '{"chat_template": [{"name": 1}]}', InvalidType, "chat_temp"),
        ("special_tokens_map.json", "nope", FileProblem, "not hold valid JSON"),
        ("generation_config.json", '{"eos_token_id": [true]}', InvalidValue, "eos_token_id"),
        ("chat_template.json", '{"chat_template": {"a": 1}}', InvalidType, "chat_template"),
        ("tokenizer.json", "{}", FileProblem, "tokenizer.json is not a tokenizer"),
        ("tokenizer.json", "", FileProblem, "tokenizer.json is not a tokenizer"),
        ("tokenizer_config.json", '{"added_tokens_decoder": 5}', InvalidType, "added_tokens"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": {}}}', InvalidValue, "'x'"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"1": {}}}', InvalidValue, "content"),
    ],
)
def test_broken_files_are_named(
    tmp_path: Path, name: str, content: str, error: type[Exception], words: str
) -> None:
    write(tmp_path, encoder_of("gpt-2"))
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(error, match=words):
        Tokenizer.from_folder(tmp_path).encode("x")


def test_missing_and_binary_files(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FileProblem, match=r"has no tokenizer\.json"):
            Tokenizer.from_folder(place)
    write(tmp_path, encoder_of("gpt-2"))
    (tmp_path / "tokenizer.json").write_bytes(b"\xff\xfe\x00{")
    with pytest.raises(FileProblem, match="UTF-8"):
        Tokenizer.from_folder(tmp_path).encode("x")


def test_another_kind_of_model_is_encoded_in_one_piece(tmp_path: Path) -> None:
    encoder = tokenizers.Tokenizer(WordLevel({"the": 0, "end": 1, "?": 2}, unk_token="?"))
    encoder.pre_tokenizer = pre_tokenizers.Whitespace()
    encoder.add_special_tokens([AddedToken("[X]")])
    tokenizer = Tokenizer.from_folder(write(tmp_path, encoder))
    assert tokenizer.cut_rule is CutRule.NOWHERE
    assert tokenizer.encode("the end what") == [0, 1, 2]
    stream = tokenizer.stream()
    pieces_out = [stream.push(index) for index in (0, 1, 0)]
    assert "".join(pieces_out) + stream.finish() == tokenizer.decode([0, 1, 0])
