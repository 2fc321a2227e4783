"""Stored numbers to float32: csrc/quant.c against the gguf package, for every format.

Everything is compared bit for bit, except that a NaN need only be a NaN.
"""

from __future__ import annotations

import ctypes
import subprocess
import sysconfig
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_core import CONFIG, core_config, ids
from tiny_models import random_weights

from quickllama import _core
from quickllama.checkpoint import BLOCKS, GGUFCheckpoint
from quickllama.errors import InvalidValue

ROOT = Path(__file__).resolve().parents[1]


def ggml_type(dtype: str) -> gguf.GGMLQuantizationType:
    """The gguf package's name of a format."""
    short = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
    return gguf.GGMLQuantizationType[short.get(dtype, dtype.upper())]


def expected(raw: np.ndarray, dtype: str) -> np.ndarray:
    """The gguf package's values; raw [rows, bytes]."""
    with np.errstate(all="ignore"):
        values: np.ndarray = gguf.dequantize(raw, ggml_type(dtype))
    return values.reshape(-1)


def check(got: np.ndarray, values: np.ndarray) -> None:
    """Equal bits; NaNs at the same places."""
    assert got.dtype == np.float32 and got.shape == values.shape
    nan = np.isnan(values)
    np.testing.assert_array_equal(np.isnan(got), nan)
    np.testing.assert_array_equal(got.view(np.uint32)[~nan], values.view(np.uint32)[~nan])


@pytest.mark.parametrize("dtype", BLOCKS)
def test_random_bytes(dtype: str) -> None:
    size = BLOCKS[dtype][1]
    raw = np.random.default_rng(len(dtype)).integers(0, 256, (3000, size), np.uint8)
    values = expected(raw, dtype)
    assert np.isnan(values).any() and np.isfinite(values).any()
    check(_core.decode(raw, dtype, values.size), values)


@pytest.mark.parametrize("bits", [0x0000, 0x8000, 0x0001, 0x83FF, 0x7BFF, 0x7C00, 0xFC00, 0x7E01])
@pytest.mark.parametrize("dtype", [name for name in BLOCKS if name.startswith("q")])
def test_extreme_scales(dtype: str, bits: int) -> None:
    """Every two bytes of a block in turn are zero, subnormal, largest, infinite, or NaN."""
    size = BLOCKS[dtype][1]
    raw = np.random.default_rng(bits).integers(0, 256, (size - 1, size), np.uint8)
    for place in range(size - 1):
        raw[place, place : place + 2] = (bits & 255, bits >> 8)
    values = expected(raw, dtype)
    check(_core.decode(raw, dtype, values.size), values)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_value_of_two_bytes(dtype: str) -> None:
    raw = np.arange(1 << 16, dtype="<u2").view(np.uint8).reshape(-1, 2)
    check(_core.decode(raw, dtype, 1 << 16), expected(raw, dtype))


@settings(max_examples=100, deadline=None)
@given(dtype=st.sampled_from(sorted(BLOCKS)), data=st.data())
def test_any_alignment_and_length(dtype: str, data: st.DataObject) -> None:
    values, size = BLOCKS[dtype]
    blocks = data.draw(st.integers(0, 9))
    offset = data.draw(st.integers(0, 15))
    store = np.frombuffer(
        data.draw(st.binary(min_size=16 + 9 * size, max_size=16 + 9 * size)), "u1"
    )
    raw = store[offset : offset + blocks * size]
    got = _core.decode(raw, dtype, blocks * values)
    check(got, expected(raw.reshape(blocks, size).copy(), dtype) if blocks else got[:0])


@pytest.mark.parametrize("dtype", BLOCKS)
def test_wrong_sizes(dtype: str) -> None:
    values, size = BLOCKS[dtype]
    raw = np.zeros(2 * size, np.uint8)
    for n in (values, 3 * values, 2 * values + 1, -values, 2**62):
        with pytest.raises(InvalidValue):
            _core.decode(raw, dtype, n)


def test_every_tensor_of_smollm2(smollm2_path: Path) -> None:
    """All values of the real model, decoded in the order of HuggingFace's rows."""
    n_values = 0
    for tensor in GGUFCheckpoint(smollm2_path).tensors():
        n = int(np.prod(tensor.shape))
        got = _core.decode(tensor.data, tensor.dtype, n)
        check(got, expected(tensor.data, tensor.dtype))
        assert np.abs(got).max() < 100
        n_values += n
    assert n_values == 134_515_008


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """csrc/quant.c alone, as another program would build it."""
    target = tmp_path_factory.mktemp("quant") / "quant.so"
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    flags = ["-std=gnu11", "-O3", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror"]
    source = str(ROOT / "csrc" / "quant.c")
    subprocess.run([compiler, *flags, source, "-o", str(target)], check=True)
    loaded = ctypes.CDLL(str(target))
    loaded.ql_dtype_name.restype = ctypes.c_char_p
    for function in (loaded.ql_dtype_block, loaded.ql_dtype_block_bytes):
        function.restype = ctypes.c_size_t
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    loaded.ql_decode.argtypes = [pointer, pointer, ctypes.c_int, size]
    return loaded


def test_the_table_of_formats_is_the_core_s(library: ctypes.CDLL) -> None:
    names = names_in_order(library)
    sizes = [
        (library.ql_dtype_block(number), library.ql_dtype_block_bytes(number))
        for number in range(len(names))
    ]
    assert dict(zip(names, sizes, strict=True)) == dict(BLOCKS)
    for dtype, block in BLOCKS.items():
        assert tuple(map(int, gguf.GGML_QUANT_SIZES[ggml_type(dtype)])) == block


def test_speed(library: ctypes.CDLL) -> None:
    """As many values as SmolLM2 has, in panels on two threads, in well under 0.3 s."""
    n, panels = 1 << 18, 134_515_008 >> 18
    raw = np.random.default_rng(0).integers(0, 256, n // 32 * 20, np.uint8)
    number = names_in_order(library).index("q4_1")
    outputs = [np.empty(n, np.float32) for _ in range(2)]

    def work(thread: int) -> None:
        for _ in range(thread, panels, 2):
            library.ql_decode(outputs[thread].ctypes.data, raw.ctypes.data, number, n)

    times = []
    with ThreadPoolExecutor(2) as pool:
        for _ in range(5):
            begin = time.perf_counter()
            list(pool.map(work, range(2)))
            times.append(time.perf_counter() - begin)
    assert min(times) < 0.2


def names_in_order(library: ctypes.CDLL) -> list[str]:
    """The names of ql_dtype, by number."""
    return [library.ql_dtype_name(number).decode() for number in range(len(BLOCKS))]


@pytest.mark.parametrize("variant", _core.cpu_variants())
def test_layers_may_be_stored_in_different_formats(variant: str) -> None:
    """Room for products is that of the layer that needs most, not of the first one."""
    wide = {**CONFIG, "intermediate_size": 4096}
    _core.set_cpu_variant(variant)
    tensors = []
    for name, w in random_weights(wide, seed=5).items():
        if "layers.1.mlp.down" in name:
            tensors.append((name, w.astype(np.float16), "float16", w.shape))
        elif w.ndim == 2:
            blocks = gguf.quantize(w, gguf.GGMLQuantizationType.Q8_0)
            tensors.append((name, blocks, "q8_0", w.shape))
        else:
            tensors.append((name, w, "float32", w.shape))
    models = [_core.Model(core_config(wide), tensors, dtype, 4) for dtype in ("stored", "float32")]
    assert models[0].dtype == "int8+bfloat16"
    got = [[model.forward(ids(n)) for n in (1, 8, 100)] for model in models]
    for one, other in zip(*got, strict=True):
        assert np.sqrt(np.mean((one - other) ** 2) / np.mean(other**2)) < 0.03
