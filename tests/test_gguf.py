"""The GGUF reader: what it reads right, and that every lie ends in a sentence."""

from __future__ import annotations

import os
import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import gguf_files as files
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from quickllama.checkpoint.gguf import GGUFFile
from quickllama.checkpoint.gguf_checkpoint import GGUFCheckpoint
from quickllama.config import ModelConfig
from quickllama.errors import Error, FileProblem, InvalidValue, MissingKey

VALID = files.changed()
HEADER = VALID[: VALID.index(b"blk.0.ffn_down.weight") + 100]


@pytest.fixture
def save(tmp_path: Path) -> Callable[[bytes], Path]:
    """Writes a file and returns its path."""

    def write(data: bytes) -> Path:
        path = tmp_path / "model.gguf"
        path.write_bytes(data)
        return path

    return write


def read_all(path: Path) -> GGUFCheckpoint:
    """Opens a file and touches everything in it."""
    model = GGUFCheckpoint(path)
    for key in model.metadata:
        assert model.metadata[key] is not None
    for tensor in model.tensors():
        assert isinstance(int(tensor.data.view(np.uint8).max()), int)
    return model


# ---- what is read right ---------------------------------------------------------------------


def test_every_metadata_type(save: Callable[[bytes], Path]) -> None:
    values: dict[str, tuple[int, str, Any]] = {
        "u8": (files.U8, "<B", 200),
        "i8": (files.I8, "<b", -100),
        "u16": (files.U16, "<H", 60000),
        "i16": (files.I16, "<h", -30000),
        "u32": (files.U32, "<I", 2**32 - 1),
        "i32": (files.I32, "<i", -(2**31)),
        "f32": (files.F32, "<f", 0.5),
        "bool": (files.BOOL, "<B", True),
        "u64": (files.U64, "<Q", 2**64 - 1),
        "i64": (files.I64, "<q", -(2**63)),
        "f64": (files.F64, "<d", 0.1),
    }
    metadata = {}
    for name, (kind, form, value) in values.items():
        metadata[name] = files.u32(kind) + struct.pack(form, value)
        payload = struct.pack(form, value) * 3
        metadata[name + "s"] = files.u32(files.ARRAY) + files.array(kind, payload, 3)
    inner = files.array(files.STRING, files.string("x") + files.string("ß"), 2)
    metadata["nested"] = files.u32(files.ARRAY) + files.array(files.ARRAY, inner * 2, 2)
    metadata["none"] = files.strings([])
    file = GGUFFile(save(files.assemble(metadata, {})))
    for name, (_, _, value) in values.items():
        assert file.metadata[name] == value
        assert type(file.metadata[name]) is type(value)
        assert file.metadata[name + "s"] == [value] * 3
    assert file.metadata["nested"] == [["x", "ß"]] * 2
    assert file.metadata["none"] == []
    assert list(file.metadata) == list(metadata)
    assert dict(file.metadata.copy()) == dict(file.metadata)
    assert "u8" in file.metadata and "u9" not in file.metadata
    with pytest.raises(MissingKey, match="no metadata 'u9'"):
        file.metadata["u9"]


def test_a_file_of_the_gguf_package(tmp_path: Path) -> None:
    """The writer and the reader of the gguf package agree with ours."""
    rng = np.random.default_rng(1)
    path = tmp_path / "written.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(64)
    writer.add_array("some.list", [1, 2, 3])
    writer.add_array("some.words", ["a", "ö"])
    written = {
        "a": rng.standard_normal((3, 5)).astype(np.float32),
        "b": rng.standard_normal((2, 3, 4)).astype(np.float16),
        "c": rng.integers(0, 256, (4, 36), dtype=np.uint8),
    }
    for name, values in written.items():
        kind = gguf.GGMLQuantizationType.Q4_0 if name == "c" else None
        writer.add_tensor(name, values, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GGUFFile(path)
    assert file.metadata["some.list"] == [1, 2, 3]
    assert file.metadata["some.words"] == ["a", "ö"]
    assert {name: (entry.dtype, entry.shape) for name, entry in file.tensors.items()} == {
        "a": ("float32", (3, 5)),
        "b": ("float16", (2, 3, 4)),
        "c": ("q4_0", (4, 64)),
    }
    for name, values in written.items():
        assert file.bytes_of(name).tobytes() == values.tobytes()


# ---- what is refused ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metadata", "text"),
    [
        ({"general.architecture": files.number("gemma")}, "'gemma'"),
        ({"general.architecture": None}, "architecture None"),
        ({"general.architecture": files.strings(["llama"])}, "architecture"),
        ({"split.count": files.number(3)}, "llama-gguf-split --merge"),
        ({"llama.expert_count": files.number(8)}, "expert_count"),
        ({"llama.rope.scaling.type": files.number("yarn")}, "'yarn'"),
        ({"llama.rope.dimension_count": files.number(4)}, "rope.dimension_count is 4"),
        ({"llama.attention.value_length": files.number(4)}, "value_length is 4"),
        ({"llama.something.new": files.number(1.5)}, "'llama.something.new' = 1.5"),
        ({"llama.embedding_length": files.number("many")}, "embedding_length must be one number"),
        ({"llama.block_count": None}, "lacks the metadata 'llama.block_count'"),
        ({"llama.attention.head_count": files.number(0)}, "at least 1"),
        ({"llama.attention.head_count": files.number(3)}, "cannot share"),
        ({"llama.vocab_size": files.number(7)}, "7 tokens"),
        ({"tokenizer.ggml.eos_token_id": files.number(6)}, "below 6, not 6"),
        ({"tokenizer.ggml.eos_token_id": files.number(True)}, "below 6, not True"),
        ({"general.alignment": files.number(24)}, "power of two, not 24"),
        ({"general.alignment": files.number(0)}, "power of two"),
        ({"general.alignment": files.strings(["a"])}, "power of two"),
        ({"llama.use": files.u32(files.BOOL) + b"\2"}, "neither 0 nor 1: 2"),
        ({"some.key": files.u32(13)}, "type 13"),
        ({"some.key": files.u32(files.STRING) + files.string(b"\xff")}, "not UTF-8"),
        ({"some.key": files.u32(files.STRING) + files.u64(2**64 - 1)}, "ends at byte"),
        ({"some.key": files.u32(files.ARRAY) + files.array(77, b"", 0)}, "type 77"),
        ({"some.key": files.u32(files.ARRAY) + files.array(files.U8, b"", 2**63)}, "ends at byte"),
        ({"some.key": files.u32(files.ARRAY) + files.array(files.STRING, b"", 9**6)}, "ends at"),
        ({"some.key": files.u32(files.ARRAY) + files.array(8, b"", 2**60)}, "elements; at most"),
        ({"some.key": files.u32(files.ARRAY) + files.array(9, b"", 2**60)}, "elements; at most"),
        ({"some.key": files.u32(9) + files.array(9, (files.u32(9) + files.u64(1)) * 9, 1)}, "deep"),
    ],
)
def test_bad_metadata(save: Callable[[bytes], Path], metadata: dict[str, Any], text: str) -> None:
    with pytest.raises((FileProblem, InvalidValue), match=text):
        read_all(save(files.changed(metadata)))


def test_bad_strings_in_arrays_are_found_when_asked_for(save: Callable[[bytes], Path]) -> None:
    model = GGUFCheckpoint(save(files.changed({"tokenizer.ggml.tokens": files.strings([b"\xe4"])})))
    with pytest.raises(FileProblem, match="not UTF-8"):
        model.metadata["tokenizer.ggml.tokens"]


NORM = files.tiny_tensors()["output_norm.weight"]


@pytest.mark.parametrize(
    ("tensors", "lies", "text"),
    [
        ({"token_embd.weight": None}, {}, "no token_embd.weight"),
        ({"n": files.Stored((32,), 0, NORM.data[:-1])}, {}, "truncated or damaged"),
        ({"n": files.Stored((), 0, b"")}, {}, "0 dimensions"),
        ({"n": files.Stored((1,) * 5, 0, b"")}, {}, "5 dimensions"),
        ({"n": files.Stored((2**63, 2**63, 2**63, 2**63), 0, b"")}, {}, "truncated or damaged"),
        ({"n": files.Stored((2**62, 4), 0, b"")}, {}, "truncated or damaged"),
        ({"n": files.Stored((0, 4), 0, b"")}, {}, "none may be empty"),
        ({"n": files.Stored((31, 4), 8, b"")}, {}, "whole blocks of 32"),
        ({"n": files.Stored((32,), 9, NORM.data)}, {}, "stored as Q8_1"),
        ({"n": files.Stored((32,), 16, NORM.data)}, {}, "stored as IQ2_XXS.*Q4_K"),
        ({"n": files.Stored((32,), 28, NORM.data)}, {}, "stored as F64"),
        ({"n": files.Stored((32,), 41, NORM.data)}, {}, "type 41"),
        ({"n": NORM}, {"offsets": {"n": 2**64 - 32}}, "truncated or damaged"),
        ({"n": NORM}, {"offsets": {"n": 0}}, "overlap"),
        ({"n": NORM}, {"offsets": {"n": 4}}, "aligned to 32"),
        ({"x" * 2000: NORM}, {}, "would have 2,000 bytes"),
        ({}, {"n_tensors": 2**63}, "9,223,372,036,854,775,808 tensors"),
        ({}, {"n_entries": 2**40}, "metadata entries"),
        ({}, {"n_tensors": 60000}, "truncated or damaged|dimensions"),
        ({}, {"version": 1}, "version 1; versions 2 and 3"),
        ({}, {"version": 4}, "version 4"),
        ({}, {"version": 3 << 24}, "big-endian"),
    ],
)
def test_bad_tables(
    save: Callable[[bytes], Path], tensors: dict[str, Any], lies: dict[str, Any], text: str
) -> None:
    with pytest.raises((FileProblem, InvalidValue), match=text):
        read_all(save(files.changed(None, tensors, **lies)))


def test_duplicates(save: Callable[[bytes], Path]) -> None:
    key, name = b"llama.block_count", b"blk.0.attn_norm.weight"
    with pytest.raises(FileProblem, match=r"key 'llama\.block_count' twice"):
        GGUFCheckpoint(
            save(
                files.changed({"llama.block_coun2": files.number(1)}).replace(
                    b"llama.block_coun2", key
                )
            )
        )
    with pytest.raises(FileProblem, match=r"tensor 'blk\.0\.attn_norm\.weight' twice"):
        GGUFCheckpoint(
            save(
                files.changed(None, {"blk.0.attn_nor2.weight": NORM}).replace(
                    b"blk.0.attn_nor2.weight", name
                )
            )
        )


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "is empty"),
        (b"GG", "not a GGUF file"),
        (b"FUGG" + VALID[4:], "big-endian"),
        (b"PK\3\4" + VALID[4:], "not a GGUF file: it begins with b'PK"),
        (b"GGUF", "within the version"),
    ],
)
def test_other_files(save: Callable[[bytes], Path], data: bytes, text: str) -> None:
    with pytest.raises((FileProblem, InvalidValue), match=text):
        GGUFCheckpoint(save(data))


def test_truncated_at_every_byte(save: Callable[[bytes], Path]) -> None:
    path = save(VALID)
    for length in [*range(len(VALID) - 1, len(HEADER), -37), *range(len(HEADER), -1, -1)]:
        os.truncate(path, length)
        with pytest.raises(FileProblem):
            GGUFCheckpoint(path)


def test_lies_allocate_nothing(save: Callable[[bytes], Path]) -> None:
    """However large a count is, memory stays in proportion to the file."""
    payload = b"\0" * 4096
    for kind in range(14):
        for count in (2**16, 2**24, 2**32, 2**63 - 1, 2**64 - 1):
            path = save(files.changed({"k": files.u32(9) + files.array(kind, payload, count)}))
            tracemalloc.start()
            with pytest.raises(Error):
                read_all(path)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak < 1 << 20


# ---- fuzzing --------------------------------------------------------------------------------


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """The valid file with bytes changed, put in, taken out, or its end cut off."""
    data = bytearray(VALID)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(HEADER) - 1))
        kind = draw(st.sampled_from(("byte", "number", "insert", "delete", "copy", "cut")))
        if kind == "byte":
            data[at : at + 1] = bytes([draw(st.integers(0, 255))])
        elif kind == "number":
            size = draw(st.sampled_from((4, 8)))
            values = st.sampled_from((0, 1, 2, 7, 8, 9, 31, 2**16, 2**31, 2**32 - 1, 2**63))
            value = draw(values) % 2 ** (8 * size)
            data[at : at + size] = value.to_bytes(size, "little")
        elif kind == "insert":
            data[at:at] = draw(st.binary(max_size=12))
        elif kind == "delete":
            del data[at : at + draw(st.integers(1, 12))]
        elif kind == "copy":
            begin = draw(st.integers(0, len(HEADER) - 1))
            data[at : at + 16] = data[begin : begin + 16]
        else:
            del data[max(at, 8) :]
    return bytes(data)


FUZZ = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@FUZZ
@given(data=damaged())
@example(data=VALID)
def test_damaged_files(save: Callable[[bytes], Path], data: bytes) -> None:
    begin = time.monotonic()
    try:
        model = read_all(save(data))
    except Error as problem:
        assert isinstance(problem, FileProblem | InvalidValue | MissingKey)
        assert len(str(problem)) > 20
    else:
        try:
            ModelConfig.from_hf(model.config)
        except Error as problem:
            assert len(str(problem)) > 10
    assert time.monotonic() - begin < 5


def test_every_bit_of_the_header(save: Callable[[bytes], Path]) -> None:
    path, refused = save(VALID), 0
    with path.open("r+b", buffering=0) as file:
        for at, byte in enumerate(HEADER):
            os.pwrite(file.fileno(), bytes([byte ^ 1 << (at * 5 % 8)]), at)
            try:
                read_all(path)
            except Error:
                refused += 1
            os.pwrite(file.fileno(), bytes([byte]), at)
    assert refused > len(HEADER) // 3
    read_all(path)
