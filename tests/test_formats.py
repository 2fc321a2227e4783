"""Weights of few bits: what they hold, what it costs in quality, memory and loading time."""

from __future__ import annotations

import gc
import importlib
import time
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tiny_models import random_ids, random_weights

import quickllama as ql
from quickllama import _core
from quickllama.checkpoint import BLOCKS, GGUFCheckpoint

Floats = NDArray[np.float32]
CONFIG: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 96,
    "intermediate_size": 200,  # no multiple of 64, nor of 32
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
WEIGHTS = random_weights(CONFIG, seed=3)
IDS = random_ids(CONFIG, 70, seed=4)


# What is held -------------------------------------------------------------------------------------


def as_int8(w: Floats) -> Floats:
    """One scale per row, largest value at 127."""
    scale = np.abs(w).max(axis=1, keepdims=True) / np.float32(127)
    rounded: Floats = np.rint(w / scale) * scale
    return rounded


def without(dtype: str) -> dict[str, Floats]:
    """WEIGHTS as a model of ``dtype`` should hold them, within rounding."""
    held = {}
    for name, w in WEIGHTS.items():
        q4 = dtype == "q4" and "embed" not in name and "lm_head" not in name
        held[name] = w if w.ndim == 1 or q4 else as_int8(w)
    return held


def test_an_int8_model_is_that_of_rounded_weights() -> None:
    got = ql.Model(CONFIG, WEIGHTS, dtype="int8").forward(IDS)
    expected = ql.Model(CONFIG, without("int8")).forward(IDS)
    error = np.sqrt(np.mean((got - expected) ** 2) / np.mean(expected**2))
    assert error < 0.02  # x is rounded as well
    unrounded = ql.Model(CONFIG, WEIGHTS).forward(IDS)
    assert np.sqrt(np.mean((got - unrounded) ** 2) / np.mean(unrounded**2)) < 0.03


def quantised(dtype: str, w: Floats) -> tuple[NDArray[Any], str, tuple[int, ...]]:
    kind = gguf.GGMLQuantizationType[dtype.upper()]
    return gguf.quantize(w, kind), dtype, w.shape


def core_model(dtype: str, stored: str, threads: int = 2) -> _core.Model:
    """A model whose matrices come as blocks of ``stored`` where their rows are whole blocks."""
    config = ql.ModelConfig.from_hf(CONFIG).core()
    tensors = []
    for name, w in WEIGHTS.items():
        if w.ndim == 2 and w.shape[1] % 32 == 0:
            tensors.append((name, *quantised(stored, w)))
        else:
            tensors.append((name, w, "float32", w.shape))
    return _core.Model(config, tensors, dtype, threads)


@pytest.mark.parametrize("stored", ["q4_0", "q4_1", "q8_0"])
def test_q4_and_stored_keep_the_file_s_own_numbers(stored: str) -> None:
    dtype = "stored" if stored != "q8_0" else "int8"
    got = core_model(dtype, stored)
    expected = core_model("float32", stored).forward(IDS)
    error = np.sqrt(np.mean((got.forward(IDS) - expected) ** 2) / np.mean(expected**2))
    assert error < 0.025
    if stored != "q8_0":  # rows of 200 values are float32 in that model
        assert got.dtype == "q4+float32"


def test_names_of_what_is_held() -> None:
    assert [_core.held_as("stored", name) for name in BLOCKS] == [
        *("float32", "bfloat16", "bfloat16", "q4", "q4", "int8", "int8", "int8"),
        *("q4", "q4", "q4", "int8", "int8"),
    ]
    assert _core.held_as("q4", "float32") == "q4"
    assert _core.held_as("q4", "float32", vocabulary=True) == "int8"
    assert _core.held_as("stored", "q4_0", vocabulary=True) == "q4"
    for dtype in ("float32", "bfloat16", "int8", "q4"):
        model = ql.Model(CONFIG, WEIGHTS, dtype=dtype)
        assert model.dtype == dtype
        assert f", {dtype}, " in repr(model)
    assert ql.Model(CONFIG, WEIGHTS, dtype="stored").dtype == "float32"
    for wrong in (("q5", "float32"), ("int8", "int8"), ("stored", "q9_0")):
        with pytest.raises(ql.InvalidValue, match="expected one of"):
            _core.held_as(*wrong)
    with pytest.raises(ql.InvalidType):
        _core.held_as(8, "float32")


def test_bytes_of_what_is_held() -> None:
    config = {**CONFIG, "hidden_size": 128, "intermediate_size": 192, "vocab_size": 320}
    config["head_dim"] = 32  # all rows are of whole groups
    weights = random_weights(config, seed=1)
    rows = sum(w.shape[0] for w in weights.values() if w.ndim == 2)
    values = sum(w.size for w in weights.values() if w.ndim == 2)
    floats = sum(w.size for w in weights.values() if w.ndim == 1)
    int8 = ql.Model(config, weights, dtype="int8")
    assert int8.nbytes == values + 4 * rows + 4 * floats
    vocabulary = [weights["model.embed_tokens.weight"], weights["lm_head.weight"]]
    of_vocabulary = sum(w.size + 4 * w.shape[0] for w in vocabulary)
    layers = values - sum(w.size for w in vocabulary)
    q4 = ql.Model(config, weights, dtype="q4")
    assert q4.nbytes == layers * 20 // 32 + of_vocabulary + 4 * floats


@settings(max_examples=40, deadline=None)
@given(
    dtype=st.sampled_from(["int8", "q4"]),
    hidden=st.sampled_from([8, 32, 40, 64, 72, 160]),
    inner=st.integers(1, 140),
    vocab=st.integers(2, 70),
    count=st.integers(1, 40),
    seed=st.integers(0, 1000),
)
def test_every_variant_agrees_with_the_naive_one(
    dtype: str, hidden: int, inner: int, vocab: int, count: int, seed: int
) -> None:
    sizes = {"hidden_size": hidden, "intermediate_size": inner, "vocab_size": vocab}
    config = {**CONFIG, **sizes, "num_hidden_layers": 1, "head_dim": 8}
    weights = random_weights(config, seed)
    ids = random_ids(config, count, seed)
    logits = {}
    for name in ql.cpu_variants():
        ql.set_cpu_variant(name)
        logits[name] = ql.Model(config, weights, dtype=dtype, n_threads=2).forward(ids)
    scale = np.abs(logits["naive"]).max() + 1
    for got in logits.values():
        # What is rounded to 8 bits may differ by a step where float32 differs in its last bit.
        np.testing.assert_allclose(got, logits["naive"], rtol=0, atol=0.03 * scale)


def test_weights_that_are_not_finite_stay_so() -> None:
    for dtype in ("int8", "q4"):
        for bad in (np.nan, np.inf):
            weights = {name: w.copy() for name, w in WEIGHTS.items()}
            weights["model.layers.1.mlp.up_proj.weight"][7, 5] = bad
            logits = ql.Model(CONFIG, weights, dtype=dtype).forward(IDS)
            assert np.isnan(logits).all()
            weights = {name: w.copy() for name, w in WEIGHTS.items()}
            weights["lm_head.weight"][9, 3] = bad
            logits = ql.Model(CONFIG, weights, dtype=dtype).forward(IDS)
            assert np.isnan(logits[:, 9]).all() and np.isfinite(np.delete(logits, 9, axis=1)).all()


# The real model -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def texts(smollm2_path: Path) -> list[NDArray[np.int64]]:
    """Token ids of two pieces of Python's own documentation."""
    tokenizer = GGUFCheckpoint(smollm2_path).tokenizer()
    topics = importlib.import_module("pydoc_data.topics").topics
    manual = "\n\n".join(topics[name] for name in sorted(topics))[40_000:44_000]
    modules = ("decimal", "argparse", "statistics", "doctest", "unittest")
    docs = "\n\n".join(importlib.import_module(name).__doc__ or "" for name in modules)
    return [np.array(tokenizer.encode(text)[:768]) for text in (manual, docs)]


def log_losses(logits: Floats, ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """Of each token but the first: minus the logarithm of its probability."""
    rows = logits[:-1].astype(np.float64)
    rows -= rows.max(axis=1, keepdims=True)
    chosen = rows[np.arange(len(rows)), ids[1:]]
    losses: NDArray[np.float64] = np.log(np.exp(rows).sum(axis=1)) - chosen
    return losses


@pytest.fixture(scope="module")
def exact(smollm2_path: Path, texts: list[NDArray[np.int64]]) -> list[Floats]:
    """The logits of float32."""
    model = ql.Model.from_pretrained(smollm2_path, dtype="float32")
    return [model.forward(ids) for ids in texts]


@pytest.mark.parametrize(
    ("dtype", "most", "difference"),
    [("bfloat16", 0.01, 1.5), ("int8", 0.02, 12), ("q4", 0.08, 12), ("stored", 0.02, 12)],
)
def test_perplexity(
    smollm2_path: Path,
    texts: list[NDArray[np.int64]],
    exact: list[Floats],
    dtype: str,
    most: float,
    difference: float,
) -> None:
    """At most so much worse than float32 weights from the same file, and no logit far off."""
    model = ql.Model.from_pretrained(smollm2_path, dtype=dtype)
    got = [model.forward(ids) for ids in texts]
    losses = [
        np.concatenate([log_losses(each, ids) for each, ids in zip(logits, texts, strict=True)])
        for logits in (exact, got)
    ]
    worse = np.exp(losses[1].mean() - losses[0].mean()) - 1
    furthest = max(np.abs(a - b).max() for a, b in zip(exact, got, strict=True))
    print(f"{dtype}: perplexity {100 * worse:+.2f} %, largest difference {furthest:.2f}")
    assert -0.02 < worse < most
    assert furthest < difference


def test_q4_from_floats_finds_the_numbers_of_the_file(smollm2_path: Path) -> None:
    """A file's Q4_1 weights as float32 arrays become what they were, or nearly so."""
    found = GGUFCheckpoint(smollm2_path)
    tensors = {t.name: t for t in found.tensors()}
    floats = {
        name: _core.decode(t.data, t.dtype, int(np.prod(t.shape))).reshape(t.shape)
        for name, t in tensors.items()
    }
    ids = random_ids({"vocab_size": 40_000}, 64, seed=1)
    of_file = ql.Model.from_pretrained(smollm2_path, dtype="q4").forward(ids)
    of_floats = ql.Model(found.config, floats, dtype="q4").forward(ids)
    difference = of_file - of_floats
    assert np.sqrt(np.mean(difference**2)) < 0.05 * of_file.std()


def test_stored_is_what_the_file_has(smollm2_path: Path) -> None:
    model = ql.Model.from_pretrained(smollm2_path, dtype="stored")
    assert model.dtype == "q4+int8"
    assert model.nbytes < 1.1 * smollm2_path.stat().st_size


@pytest.mark.parametrize("dtype", ["int8", "stored"])
def test_loading_takes_no_time(smollm2_path: Path, dtype: str) -> None:
    """0.3 s on two idle cores; this much on a busy machine. The best of three counts."""
    times = []
    for _ in range(3):
        gc.collect()
        begin = time.process_time()
        ql.Model.from_pretrained(smollm2_path, dtype=dtype, n_threads=1)
        times.append(time.process_time() - begin)
    assert min(times) < 1
