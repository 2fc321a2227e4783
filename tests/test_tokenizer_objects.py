"""Tokenizers from the objects that programs have, and what cannot be done with them."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
from pathlib import Path

import pytest
import tokenizers
from test_document_file import TEXT
from tokenizers import models, pre_tokenizers

import quickllama as ql


class FastTokenizer:
    """As a fast tokenizer of transformers: it has a backend, and writes its files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.backend_tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))

    def save_pretrained(self, folder: str) -> None:
        for file in self.folder.glob("*token*"):
            shutil.copy(file, folder)


def test_a_tokenizer_of_the_library(folder: Path) -> None:
    known = ql.Tokenizer.from_folder(folder)
    theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    ours = ql.Tokenizer.from_tokenizers(theirs)
    plain = {"add_special_tokens": False}
    assert ours.encode(TEXT, **plain) == known.encode(TEXT, **plain)
    ids = ours.encode(TEXT, **plain)
    assert ours.decode(ids, skip_special_tokens=False) == TEXT
    assert not ours.has_chat_template
    again = ql.Tokenizer.from_tokenizers(known.to_tokenizers())
    assert again.encode(TEXT, **plain) == known.encode(TEXT, **plain)


def test_a_fast_tokenizer_of_transformers(folder: Path) -> None:
    known = ql.Tokenizer.from_folder(folder)
    ours = ql.Tokenizer.from_tokenizers(FastTokenizer(folder))
    assert ours.encode(TEXT) == known.encode(TEXT)
    assert ours.digest == known.digest and ours.has_chat_template == known.has_chat_template


def test_transformers_itself(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    ours = ql.Tokenizer.from_tokenizers(theirs)
    assert ours.encode(TEXT) == theirs(TEXT)["input_ids"]
    assert ours.has_chat_template == bool(theirs.chat_template)


def test_a_model_takes_them(folder: Path) -> None:
    model = ql.Model.from_pretrained(folder, dtype="float32", n_threads=1)
    expected = model.read(TEXT).ask("Wer?", max_new_tokens=3)
    model.tokenizer = FastTokenizer(folder)
    assert model.read(TEXT).ask("Wer?", max_new_tokens=3).tokens == expected.tokens
    for wrong in (None, "gpt2", json):
        with pytest.raises(ql.InvalidType, match="fast tokenizer of transformers"):
            model.tokenizer = wrong


def test_of_a_gguf_file_by_its_path() -> None:
    from quickllama import hub

    path = hub.locate("smollm2")
    whole = ql.Model.from_pretrained("smollm2", n_threads=1).tokenizer
    assert ql.Tokenizer.from_gguf(path).digest == whole.digest
    assert ql.Tokenizer.from_gguf(str(path)).encode("a b") == whole.encode("a b")
    with pytest.raises(ql.FileProblem, match="no file"):
        ql.Tokenizer.from_gguf("nowhere.gguf")
    with pytest.raises(ql.InvalidType, match="a path, or the metadata"):
        ql.Tokenizer.from_gguf(3)


def test_what_is_not_copied_or_pickled(folder: Path) -> None:
    model = ql.Model.from_pretrained(folder, dtype="float32", n_threads=1)
    assert repr(model.tokenizer) == "<quickllama.Tokenizer, not built yet>"
    model.tokenizer.encode("a")
    assert repr(model.tokenizer) == f"<quickllama.Tokenizer, {len(model.tokenizer)} tokens>"
    values = (
        (model.tokenizer, "to_tokenizers"),
        (model.read(TEXT), "load_document"),
        (model, "load it in each process"),
    )
    for value, remedy in values:
        for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(ql.InvalidType, match=remedy):
                attempt(value)


@pytest.mark.parametrize("kind", ["word level", "unigram"])
def test_a_sign_that_is_in_no_vocabulary(kind: str) -> None:
    """What is not known is a special token of many vocabularies, and no special token's string."""
    encoder = tokenizers.Tokenizer(
        models.WordLevel({"<unk>": 0, "<end>": 1, "boat": 2}, unk_token="<unk>")
        if kind == "word level"
        else models.Unigram([("<unk>", 0.0), ("<end>", -1.0), ("boat", -2.0)], unk_id=0)
    )
    encoder.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    encoder.add_special_tokens(["<unk>", "<end>"])
    ours = ql.Tokenizer.from_tokenizers(encoder)
    assert ours.encode("boat Ω boat", False, parse_special=False) == [2, 0, 2]
    with pytest.raises(ql.InvalidValue, match="gives the special token '<end>'"):
        ours.encode("boat <end>", False, parse_special=False)
