"""Options of generation as one object, and warnings that point at the caller's own line."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path

import numpy as np
import pytest
from test_document_file import TEXT, loaded_model

import quickllama as ql
from quickllama.documents.head_store import cache_folder, load_heads


@pytest.fixture(scope="module")
def model(folder: Path) -> ql.Model:
    return loaded_model(folder)


def test_a_configuration_of_generation(model: ql.Model) -> None:
    drawn = ql.GenerationConfig(max_new_tokens=12, do_sample=True, temperature=1.5, seed=3)
    named = {field: getattr(drawn, field) for field in ("max_new_tokens", "do_sample", "seed")}
    expected = model.generate([1, 2, 3], **named, temperature=1.5)
    np.testing.assert_array_equal(model.generate([1, 2, 3], generation_config=drawn), expected)
    shorter = model.generate([1, 2, 3], generation_config=drawn, max_new_tokens=5)
    np.testing.assert_array_equal(shorter, expected[:8])
    assert drawn.max_new_tokens == 12
    document = model.read(TEXT)
    answer = document.ask("Wer?", generation_config=drawn, always_answer=True)
    assert (
        answer.tokens
        == document.ask("Wer?", always_answer=True, **dataclasses.asdict(drawn)).tokens
    )
    with pytest.raises(ql.InvalidType, match=r"quickllama\.GenerationConfig, not dict"):
        model.generate([1], generation_config={"max_new_tokens": 3})
    with pytest.raises(ql.InvalidType, match="did you mean 'generation_config'"):
        model.generate([1], generation_confg=drawn)


def test_warnings_point_here(model: ql.Model) -> None:
    document = model.read(TEXT)
    for use in (
        lambda: document.ask("Wer?", temperature=0.5, max_new_tokens=1),
        lambda: model.generate([1, 2], temperature=0.5, max_new_tokens=1),
    ):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            use()
        assert [warning.filename for warning in told] == [__file__]


def test_damaged_heads_of_other_models_do_not_matter(
    model: ql.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache_folder().mkdir(parents=True)
    (cache_folder() / f"{'0' * 16}-{'0' * 16}.json").write_text("{")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_heads(model)
    (cache_folder() / f"{model.fingerprint.sizes}-{'0' * 16}.json").write_text("{")
    with pytest.warns(UserWarning, match="delete it"):
        load_heads(model)


def test_a_text_that_names_a_file_is_told(model: ql.Model, tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text(TEXT, "utf-8")
    with pytest.warns(UserWarning, match="also the name of a file") as told:
        model.read(str(path))
    assert told[0].filename == __file__
    with path.open("rb") as file, pytest.raises(ql.InvalidType, match="open the file as text"):
        model.read(file)


def test_what_takes_no_such_values(model: ql.Model) -> None:
    class Encoding:
        ids = (1, 2)

    with pytest.raises(ql.InvalidType, match=r"pass its \.ids"):
        model.generate(Encoding())
    with pytest.raises(ql.InvalidValue, match="2 sequences; give one at a time"):
        model.read(np.ones((2, 3), np.int64))
    with pytest.raises(ql.InvalidType, match="whole number"):
        model.tokenizer.id_to_token("a")
    with pytest.raises(ql.InvalidType, match="from_folder takes a path"):
        ql.Tokenizer.from_folder(3)


def test_another_question_than_the_text_was_read_for(model: ql.Model) -> None:
    document = model.read(TEXT, question="Wer?")
    assert not any("another question" in note for note in document.ask(max_new_tokens=1).notes)
    assert any("another question" in n for n in document.ask("Wo?", max_new_tokens=1).notes)
