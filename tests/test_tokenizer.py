"""Tokenizers from GGUF metadata: the real model, and small ones against plain Python."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_tokenizer import byte_level_ids, sentencepiece_ids
from small_tokenizers import (
    CONTROL,
    KINDS,
    NORMAL,
    PRES,
    USER_DEFINED,
    byte_level_metadata,
    sentencepiece_metadata,
    small_tokenizer,
    texts,
)
from small_tokenizers import pieces as pieces_of_text

from quickllama.errors import InvalidType, InvalidValue, MissingKey
from quickllama.tokenizer import Tokenizer
from quickllama.tokenizer.gguf import KNOWN_PRE
from quickllama.tokenizer.sentencepiece import sentencepiece_merges

FIXTURES = Path(__file__).parent / "fixtures"


# -- the real model --------------------------------------------------------------------------------


def test_smollm2_gives_the_tokens_of_llama_cpp(smollm2: Tokenizer) -> None:
    rows = json.loads((FIXTURES / "smollm2_tokens.json").read_text())["rows"]
    assert len(rows) > 300
    for row in rows:
        assert smollm2.encode(row["text"]) == row["ids"], row["text"]
        plain = smollm2.encode(row["text"], parse_special=False)
        assert plain == row.get("plain_ids", row["ids"]), row["text"]


def test_smollm2_decodes_what_it_encoded(smollm2: Tokenizer) -> None:
    for row in json.loads((FIXTURES / "smollm2_tokens.json").read_text())["rows"]:
        assert smollm2.decode(row["ids"], skip_special_tokens=False) == row["text"]


def test_a_copy_for_code_that_is_written_for_tokenizers(smollm2: Tokenizer) -> None:
    smollm2.encode("x", parse_special=False)  # leaves no switch set in the copy
    copy = smollm2.to_tokenizers()
    for text in ("Hello, <|im_end|> 12\n", "", "Zwölf 😀"):
        assert copy.encode(text).ids == smollm2.encode(text)
        assert copy.decode(copy.encode(text).ids) == smollm2.decode(smollm2.encode(text))
    copy.add_special_tokens(["<mine>"])
    assert smollm2.token_to_id("<mine>") is None


def test_smollm2_splits_digits(smollm2: Tokenizer) -> None:
    assert len(smollm2.encode("8675309")) == 7
    assert smollm2.encode("12") == smollm2.encode("1") + smollm2.encode("2")


def test_smollm2_facts(smollm2: Tokenizer) -> None:
    assert smollm2.vocab_size == len(smollm2) == 49152
    assert (smollm2.bos_token_id, smollm2.eos_token_id) == (1, 2)
    assert smollm2.eos_token_ids == {0, 2}
    assert smollm2.special_ids == set(range(17))
    assert smollm2.token_to_id("<|im_end|>") == 2
    assert smollm2.token_to_id("no such token") is None
    assert smollm2.special_tokens["eos_token"] == "<|im_end|>"
    assert smollm2.encode("Hi") == smollm2.encode("Hi", add_special_tokens=False)


def test_smollm2_chat(smollm2: Tokenizer) -> None:
    assert smollm2.has_chat_template
    messages = [{"role": "user", "content": "Hi"}]
    text = smollm2.apply_chat_template(messages, tokenize=False)
    assert text == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        "<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert smollm2.apply_chat_template(messages) == smollm2.encode(text, add_special_tokens=False)
    short = smollm2.apply_chat_template(messages, add_generation_prompt=False, tokenize=False)
    assert text == short + "<|im_start|>assistant\n"


def test_smollm2_is_built_fast(smollm2_metadata: dict[str, Any]) -> None:
    def seconds() -> float:
        start = time.perf_counter()
        Tokenizer.from_gguf(smollm2_metadata).encode("x")
        return time.perf_counter() - start

    assert min(seconds() for _ in range(3)) < 0.25


def test_many_threads_with_different_settings(smollm2: Tokenizer) -> None:
    text = "Stop <|im_end|> here. " * 20_000
    expected = {flag: smollm2.encode(text, parse_special=flag) for flag in (True, False)}
    assert expected[True] != expected[False]
    results: list[bool] = []

    def work(flag: bool) -> None:
        results.append(smollm2.encode(text, parse_special=flag) == expected[flag])

    threads = [threading.Thread(target=work, args=(index % 2 == 0,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 4


# -- against plain Python --------------------------------------------------------------------------


@pytest.mark.parametrize("pre", PRES)
@settings(max_examples=100, deadline=None)
@given(text=st.one_of(texts, pieces_of_text))
def test_byte_level_equals_plain_python(pre: str, text: str) -> None:
    metadata = byte_level_metadata(pre)
    text = text.replace("<pad>", "")
    vocabulary = {token: i for i, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    merges = [(a, b) for a, b in (m.split(" ") for m in metadata["tokenizer.ggml.merges"])]
    ids = small_tokenizer(pre).encode(text, add_special_tokens=False, parse_special=False)
    assert ids == byte_level_ids(text, pre, vocabulary, merges)
    assert small_tokenizer(pre).decode(ids) == text


@settings(max_examples=150, deadline=None)
@given(text=st.one_of(texts, pieces_of_text))
def test_sentencepiece_equals_plain_python(text: str) -> None:
    metadata = sentencepiece_metadata()
    tokens = metadata["tokenizer.ggml.tokens"]
    kinds, scores = metadata["tokenizer.ggml.token_type"], metadata["tokenizer.ggml.scores"]
    ids = {token: i for i, token in enumerate(tokens)}
    mergeable = {t: scores[i] for i, t in enumerate(tokens) if kinds[i] == NORMAL}
    found = small_tokenizer("llama").encode(text, add_special_tokens=False, parse_special=False)
    assert found == sentencepiece_ids(text, mergeable, ids)
    assert small_tokenizer("llama").decode(found) == text.replace("▁", " ")


def test_a_whole_word_comes_before_merging_in_llama_3() -> None:
    metadata = dict(byte_level_metadata("llama-bpe"))
    # "zq" is a token that no merge makes.
    metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"], "zq"]
    metadata["tokenizer.ggml.token_type"] = [*metadata["tokenizer.ggml.token_type"], NORMAL]
    last = len(metadata["tokenizer.ggml.tokens"]) - 1
    llama = Tokenizer.from_gguf(metadata)
    assert llama.encode("zq", add_special_tokens=False) == [last]
    assert llama.encode("zqz", add_special_tokens=False) != [last, *llama.encode("z")[1:]]
    gpt2 = Tokenizer.from_gguf(metadata | {"tokenizer.ggml.pre": "gpt-2"})
    assert len(gpt2.encode("zq")) == 2


# -- special tokens --------------------------------------------------------------------------------


@pytest.mark.parametrize("pre", PRES)
def test_control_tokens_only_when_parsed(pre: str) -> None:
    tokenizer = small_tokenizer(pre)
    end, pad = tokenizer.token_to_id("<|end|>"), tokenizer.token_to_id("<pad>")
    assert tokenizer.encode("<|end|>", add_special_tokens=False) == [end]
    plain = tokenizer.encode("a<|end|>b<pad>", add_special_tokens=False, parse_special=False)
    assert end not in plain and pad in plain
    assert tokenizer.decode(plain) == "a<|end|>b<pad>"
    assert tokenizer.decode([end, pad]) == "<pad>"
    assert tokenizer.decode([end, pad], skip_special_tokens=False) == "<|end|><pad>"


def test_sentencepiece_never_merges_text_into_a_control_token() -> None:
    tokenizer = small_tokenizer("llama")
    assert tokenizer.encode("<s>") == [1, 1]
    plain = tokenizer.encode("<s></s><unk>", parse_special=False)
    assert plain[0] == 1 and not {0, 1, 2}.intersection(plain[1:])


def test_beginning_of_sequence_as_the_file_says() -> None:
    def first(metadata: dict[str, Any], **keys: object) -> list[int]:
        extra = {f"tokenizer.ggml.{name}": value for name, value in keys.items()}
        return Tokenizer.from_gguf(metadata | extra).encode("")

    gpt2, llama3 = byte_level_metadata("gpt-2"), byte_level_metadata("llama-bpe")
    assert first(gpt2) == []
    assert first(gpt2, add_bos_token=True) == [1]
    assert first(gpt2, add_bos_token=True, add_eos_token=True) == [1, 0]
    assert first(llama3) == [1]
    assert first(llama3, add_bos_token=False) == []
    assert first(sentencepiece_metadata()) == [1]
    assert first(sentencepiece_metadata(), add_bos_token=False) == []


def test_ends_of_a_turn() -> None:
    metadata = byte_level_metadata("gpt-2")
    more = {"tokenizer.ggml.eos_token_id": 1, "tokenizer.ggml.eot_token_id": 5}
    # 0 is "<|end|>", a control token with a name that ends a turn.
    assert Tokenizer.from_gguf(metadata | more).eos_token_ids == {0, 1, 5}


def test_a_special_token_that_plain_text_gives_is_refused() -> None:
    metadata = dict(byte_level_metadata("gpt-2"))
    types = list(metadata["tokenizer.ggml.token_type"])
    types[metadata["tokenizer.ggml.tokens"].index("x")] = CONTROL
    tokenizer = Tokenizer.from_gguf(metadata | {"tokenizer.ggml.token_type": types})
    with pytest.raises(InvalidValue, match="special token 'x'"):
        tokenizer.encode("6 x 7", parse_special=False)
    assert tokenizer.encode("abc", parse_special=False)


# -- bad metadata ----------------------------------------------------------------------------------


def changed(kind: str, **keys: object) -> dict[str, Any]:
    metadata = dict(byte_level_metadata("gpt-2") if kind == "gpt2" else sentencepiece_metadata())
    for name, value in keys.items():
        if value is None:
            del metadata[f"tokenizer.ggml.{name}"]
        else:
            metadata[f"tokenizer.ggml.{name}"] = value
    return metadata


@pytest.mark.parametrize(
    ("metadata", "error", "words"),
    [
        (changed("gpt2", model="bert"), InvalidValue, "'bert'"),
        (changed("gpt2", pre="deepseek-llm"), InvalidValue, "'deepseek-llm'.*smollm"),
        (changed("gpt2", pre="default"), InvalidValue, "'default'"),
        (changed("gpt2", pre=7), InvalidType, "ggml.pre"),
        (changed("gpt2", tokens=None), MissingKey, "ggml.tokens"),
        (changed("gpt2", tokens="abc"), InvalidType, "array"),
        (changed("gpt2", tokens=[1, 2]), InvalidType, "string"),
        (changed("gpt2", merges=None), MissingKey, "ggml.merges"),
        (changed("gpt2", token_type=None), MissingKey, "token_type"),
        (changed("gpt2", token_type=[1, 2]), InvalidValue, "2 entries"),
        (changed("gpt2", bos_token_id=10**6), InvalidValue, "1000000"),
        (changed("gpt2", bos_token_id="1"), InvalidType, "bos_token_id"),
        (changed("gpt2", bos_token_id=None, add_bos_token=True), InvalidValue, "bos_token_id"),
        (changed("gpt2", add_bos_token=1), InvalidType, "add_bos_token"),
        (changed("gpt2", add_space_prefix=True), InvalidValue, "add_space_prefix"),
        (changed("llama", scores=None), MissingKey, "scores"),
        (changed("llama", scores=[0.5]), InvalidValue, "1 entries"),
        (changed("llama", precompiled_charsmap=[1]), InvalidValue, "charsmap"),
    ],
)
def test_wrong_metadata_is_named(metadata: dict[str, Any], error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        Tokenizer.from_gguf(metadata)


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        (changed("gpt2", merges=["ab"]), "one space"),
        (changed("gpt2", merges=["q q"]), "contradict"),
        (
            changed(
                "llama",
                tokens=[
                    f"t{i}" for i in range(len(sentencepiece_metadata()["tokenizer.ggml.tokens"]))
                ],
            ),
            "which is none",
        ),
    ],
)
def test_a_vocabulary_that_cannot_be_built_is_refused(metadata: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidValue, match=words):
        Tokenizer.from_gguf(metadata).encode("x")


def test_twice_the_same_token_is_refused() -> None:
    metadata = changed("gpt2")
    metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"][:-1], "a"]
    with pytest.raises(InvalidValue, match="more than once"):
        Tokenizer.from_gguf(metadata)


def merges_of(**scores: float) -> list[tuple[str, str]]:
    return sentencepiece_merges(scores, {token: index for index, token in enumerate(scores)})


def test_equal_scores_are_refused_where_their_order_matters() -> None:
    assert merges_of(a=0, b=0, c=0, ab=-1, bc=-2) == [("a", "b"), ("b", "c")]
    with pytest.raises(InvalidValue, match="equal scores"):
        merges_of(a=0, b=0, c=0, ab=-1, bc=-1)
    with pytest.raises(InvalidValue, match="'z'"):
        merges_of(a=0, az=-1)
    # From the left: a run of three is finished before the next run of two begins.
    assert merges_of(a=0, aa=-1, aaa=-1)[0] == ("aa", "a")


@pytest.mark.parametrize(
    "lengths", [(2, 3, 4, 5, 6, 7, 8), (2, 4, 8, 16), (2, 3, 5), (2,), (3, 2, 4), (2, 3, 4, 6)]
)
def test_runs_of_one_score_grow_from_the_left(lengths: tuple[int, ...]) -> None:
    """Exactly as by the scores, or refused."""
    metadata = dict(sentencepiece_metadata())
    tokens = metadata["tokenizer.ggml.tokens"]
    kinds = list(metadata["tokenizer.ggml.token_type"])
    for index, token in enumerate(tokens):
        if len(token) > 1 and set(token) == {"▁"}:
            kinds[index] = NORMAL if len(token) in lengths else CONTROL
    scores = metadata["tokenizer.ggml.scores"]
    mergeable = {t: scores[i] for i, t in enumerate(tokens) if kinds[i] == NORMAL}
    tokenizer = Tokenizer.from_gguf(metadata | {"tokenizer.ggml.token_type": kinds})
    ids = {token: i for i, token in enumerate(tokens)}
    for count in range(1, 40):
        text = " " * count + "x"
        found = tokenizer.encode(text, add_special_tokens=False, parse_special=False)
        assert found == sentencepiece_ids(text, mergeable, ids)


def test_arrays_in_metadata_and_every_known_name() -> None:
    metadata = changed("gpt2")
    types = np.array(metadata["tokenizer.ggml.token_type"], dtype=np.int32)
    metadata["tokenizer.ggml.token_type"] = types
    metadata["tokenizer.ggml.bos_token_id"] = np.uint32(1)
    for pre in KNOWN_PRE:
        tokenizer = Tokenizer.from_gguf(metadata | {"tokenizer.ggml.pre": pre})
        assert tokenizer.bos_token_id == 1
        assert tokenizer.decode(tokenizer.encode("Hi 12!", add_special_tokens=False)) == "Hi 12!"
    assert USER_DEFINED in types


def test_empty_names_get_one() -> None:
    metadata = changed("gpt2")
    tokens = list(metadata["tokenizer.ggml.tokens"])
    last = len(tokens)
    metadata["tokenizer.ggml.tokens"] = [*tokens, "", ""]
    metadata["tokenizer.ggml.token_type"] = [*metadata["tokenizer.ggml.token_type"], 1, 1]
    assert Tokenizer.from_gguf(metadata).id_to_token(last + 1) == f"[EMPTY_{last + 1}]"


def test_named_chat_templates() -> None:
    metadata = changed("gpt2")
    assert not Tokenizer.from_gguf(metadata).has_chat_template
    with pytest.raises(InvalidValue, match="no chat template"):
        Tokenizer.from_gguf(metadata).apply_chat_template([{"role": "user", "content": "x"}])
    metadata["tokenizer.chat_template"] = "{{ bos_token }}{{ messages[0].content }}"
    metadata["tokenizer.chat_template.tool_use"] = "tools{{ tools | length }}"
    tokenizer = Tokenizer.from_gguf(metadata)
    messages = [{"role": "user", "content": "x"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == "<|start|>x"
    assert tokenizer.apply_chat_template(messages, tokenize=False, tools=[{}]) == "tools1"
    with pytest.raises(InvalidType, match="chat_template"):
        Tokenizer.from_gguf(metadata | {"tokenizer.chat_template": 5})


# -- bad texts and ids -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_texts_that_are_none_are_refused(kind: str) -> None:
    tokenizer = small_tokenizer(kind)
    wrongs: list[Any] = [b"bytes", None, 5, ["a", "b"]]
    for wrong in wrongs:
        with pytest.raises(InvalidType, match="should be a str"):
            tokenizer.encode(wrong)
    with pytest.raises(InvalidValue, match=r"U\+D83D.* character 2"):
        tokenizer.encode("ab\ud83d")
    with pytest.raises(InvalidValue, match="surrogate"):
        tokenizer.encode_with_offsets("\udcff")


def test_ids_that_are_none_are_refused() -> None:
    tokenizer = small_tokenizer("gpt-2")
    ids = tokenizer.encode("Hi there")
    assert tokenizer.decode(np.array([ids], dtype=np.uint16)) == "Hi there"
    assert tokenizer.decode(tuple(ids)) == "Hi there"
    assert tokenizer.decode([]) == ""
    assert tokenizer.decode([10**6, *ids]) == "Hi there"
    wrongs: list[Any] = [
        "text",
        [1.5],
        None,
        [[1], [2]],
        np.zeros((2, 2), dtype=int),
        [-1],
        [2**31],
    ]
    for wrong in wrongs:
        with pytest.raises((InvalidType, InvalidValue)):
            tokenizer.decode(wrong)
