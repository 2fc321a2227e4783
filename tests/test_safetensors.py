"""The safetensors reader: equal to the library on what is right, a sentence for every lie."""

from __future__ import annotations

import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from quickllama.checkpoint.safetensors import SafetensorsFile
from quickllama.errors import Error, FileProblem, InvalidValue

DTYPES = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype(ml_dtypes.bfloat16)}
SETTINGS = settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture
def save(tmp_path: Path) -> Callable[[bytes], Path]:
    """Writes a file and returns its path."""

    def write(data: bytes) -> Path:
        path = tmp_path / "model.safetensors"
        path.write_bytes(data)
        return path

    return write


def assemble(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A file; ``header``: an object for JSON, or the bytes themselves; ``length``: for lies."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    """A tensor of the header; the default is two numbers of float32."""
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


VALID = assemble(
    {
        "__metadata__": {"format": "pt"},
        "a": entry("F32", [2, 3], [0, 24]),
        "b": entry("BF16", [4], [24, 32]),
        "c": entry("F16", [1, 2], [32, 36]),
    },
    bytes(range(36)),
)


def read_all(path: Path) -> dict[str, Any]:
    """Opens a file and touches everything in it."""
    tensors = {tensor.name: tensor for tensor in SafetensorsFile(path).tensors()}
    for tensor in tensors.values():
        assert tensor.data.size == 0 or tensor.data.tobytes()
    return tensors


@settings(SETTINGS, max_examples=60)
@given(
    tensors=st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=8).filter(
            lambda name: name != "__metadata__"
        ),
        st.tuples(st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 5), max_size=3)),
        max_size=6,
    ),
    seed=st.integers(0, 2**32 - 1),
)
def test_files_of_the_library(
    tmp_path: Path, tensors: dict[str, tuple[str, list[int]]], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    written = {
        name: rng.standard_normal(shape).astype(DTYPES[dtype])
        for name, (dtype, shape) in tensors.items()
    }
    path = tmp_path / "library.safetensors"
    safetensors.numpy.save_file(written, path)
    found = read_all(path)
    assert found.keys() == written.keys()
    names = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    for name, values in written.items():
        tensor = found[name]
        assert tensor.dtype == names[tensors[name][0]]
        assert tensor.shape == tensor.data.shape == values.shape
        assert tensor.data.dtype == (np.uint16 if tensor.dtype == "bfloat16" else values.dtype)
        assert tensor.data.flags.c_contiguous and not tensor.data.flags.writeable
        assert tensor.data.tobytes() == values.tobytes()


def test_tensors_lie_over_the_file(save: Callable[[bytes], Path]) -> None:
    """No copy where the header aligns the values, as every writer does; else a copy that fits."""
    values = np.arange(1 << 20, dtype=np.float32)
    for spaces in range(4):
        text = json.dumps({"a": entry("F32", [1 << 20], [0, 4 << 20])}).encode()
        text += b" " * (-len(text) % 8 + spaces)
        path = save(assemble(text, values.tobytes()))
        tracemalloc.start()
        tensor = read_all_lazily(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert (peak < 1 << 20) == (spaces == 0)
        assert tensor.flags.aligned and not tensor.flags.writeable
        np.testing.assert_array_equal(tensor, values)


def read_all_lazily(path: Path) -> np.ndarray:
    """The first tensor, untouched."""
    return next(SafetensorsFile(path).tensors()).data


@pytest.mark.parametrize("dtype", ["F64", "I8", "U8", "BOOL", "I64", "F8_E4M3", "F8_E5M2", "F4"])
def test_other_dtypes_are_named(save: Callable[[bytes], Path], dtype: str) -> None:
    path = save(assemble({"x.weight": entry(dtype, [8], [0, 8])}, bytes(8)))
    advice = "convert" if dtype in ("F64", "BOOL", "I64") else "GGUF"
    with pytest.raises(InvalidValue, match=rf"'x\.weight' is stored as '{dtype}'.*{advice}"):
        SafetensorsFile(path)


DEEP = b'{"a":' * 100_000
HUGE = b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,8]}}'


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "is empty"),
        (b"1234567", "not a safetensors file, or truncated"),
        (bytes(8), "not a JSON object"),
        (assemble({}, length=3), "truncated"),
        (assemble({}, length=2**63), "truncated"),
        (assemble({}, length=2**64 - 1), "truncated"),
        (assemble(b"[]"), "not a JSON object"),
        (assemble(b'{"a":'), "valid JSON"),
        (assemble(b'{"a\xff":1}'), "not UTF-8"),
        (assemble(DEEP), "nested too deeply|valid JSON"),
        (assemble(HUGE, bytes(8)), "valid JSON"),
        (assemble(b'{"a":1,"a":2}'), "'a' stands there twice"),
        (assemble(b'{"a":{"dtype":"F32","dtype":"F32"}}'), "'dtype' stands there twice"),
        (assemble({"a": 1}), "needs dtype, shape and data_offsets"),
        (assemble({"a": {**entry(), "more": 1}}, bytes(8)), "and nothing else"),
        (assemble({"a": entry(shape=2)}, bytes(8)), "no valid shape"),
        (assemble({"a": entry(shape=[-2])}, bytes(8)), "no valid shape"),
        (assemble({"a": entry(shape=[2.0])}, bytes(8)), "no valid shape"),
        (assemble({"a": entry(shape=[True, 2])}, bytes(8)), "no valid shape"),
        (assemble({"a": entry(shape=[2**64, 0])}, bytes(8)), "no valid shape"),
        (assemble({"a": entry(shape=[1] * 100)}, bytes(8)), "no valid shape"),
        (assemble({"a": entry(shape=[2**40, 2**40])}, bytes(8)), "needs 4,835,703"),
        (assemble({"a": entry(offsets=[8, 0])}, bytes(8)), "no valid data_offsets"),
        (assemble({"a": entry(offsets=[0])}, bytes(8)), "no valid data_offsets"),
        (assemble({"a": entry(offsets=[0, 4])}, bytes(4)), "has 4 bytes, and its shape"),
        (assemble({"a": entry(dtype=7)}, bytes(8)), "stored as '7'"),
        (assemble({"a": entry(dtype=["F32"])}, bytes(8)), "stored as"),
        (assemble({"a": entry(), "b": entry()}, bytes(8)), "overlaps the one before"),
        (assemble({"a": entry(), "b": entry(offsets=[4, 12])}, bytes(12)), "overlaps"),
        (assemble({"a": entry(), "b": entry(offsets=[9, 17])}, bytes(17)), "leaves a gap"),
        (assemble({"a": entry(offsets=[4, 12])}, bytes(12)), "leaves a gap"),
        (assemble({"a": entry()}, bytes(7)), "truncated or damaged"),
        (assemble({"a": entry()}, bytes(9)), "truncated or damaged"),
    ],
)
def test_lies(save: Callable[[bytes], Path], data: bytes, text: str) -> None:
    path = save(data)
    tracemalloc.start()
    with pytest.raises((FileProblem, InvalidValue), match=text):
        read_all(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 << 20


def test_truncated_at_every_byte(save: Callable[[bytes], Path]) -> None:
    path = save(VALID)
    assert read_all(path)["a"].shape == (2, 3)
    for length in range(len(VALID) - 1, -1, -1):
        os.truncate(path, length)
        with pytest.raises(FileProblem):
            SafetensorsFile(path)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """The valid file with bytes changed, put in, or taken out."""
    data = bytearray(VALID)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(VALID) - 36))
        if draw(st.booleans()):
            data[at : at + 1] = draw(st.sampled_from((b"", b"0", b"9", b"}", b"]", b'"', b"\xff")))
        else:
            data[at:at] = draw(st.sampled_from((b"00", b"{", b"[", b"-", b".", b"e9", b"\0")))
    if draw(st.booleans()):
        end = data.find(b"}}", 8) + 2
        data[:8] = max(end - 8, 0).to_bytes(8, "little")
    return bytes(data)


@SETTINGS
@given(data=damaged())
@example(data=VALID)
def test_damaged_files(save: Callable[[bytes], Path], data: bytes) -> None:
    try:
        read_all(save(data))
    except Error as problem:
        assert isinstance(problem, FileProblem | InvalidValue)
        assert len(str(problem)) > 20


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
FIELDS = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(("F32", "F16", "BF16", "F64")) | JSON,
        "shape": st.lists(st.integers(-1, 4), max_size=3) | JSON,
        "data_offsets": st.lists(st.integers(-1, 16), min_size=2, max_size=2) | JSON,
    }
)


@SETTINGS
@given(
    header=st.dictionaries(st.text(max_size=5), FIELDS | JSON, max_size=3), size=st.integers(0, 16)
)
def test_headers_of_the_wrong_structure(
    save: Callable[[bytes], Path], header: dict[str, Any], size: int
) -> None:
    path = save(assemble(header, bytes(size)))
    try:
        tensors = read_all(path)
    except Error as problem:
        assert isinstance(problem, FileProblem | InvalidValue)
        return
    assert sum(tensor.data.nbytes for tensor in tensors.values()) == size
