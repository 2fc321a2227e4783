"""Reader of one safetensors file: a JSON header, then the tensors' bytes (F32, F16, BF16).

The ``safetensors`` package is not used: its NumPy front end copies every tensor that it returns
(128 MiB of weights take 128 MiB more), gives bfloat16 only if ``ml_dtypes`` is installed, and would
be one more dependency for a header of JSON. It is the oracle in tests.
Source: the format's section in the README of huggingface/safetensors.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from quickllama.checkpoint.mapped_file import MappedFile, parse_json
from quickllama.checkpoint.tensor import BLOCKS, Tensor, view
from quickllama.errors import FileProblem, InvalidValue

__all__ = ["Entry", "SafetensorsFile"]

MOST_HEADER_BYTES = 100_000_000  # the limit of the safetensors library
MOST_DIMENSIONS = 8
LARGEST_DIMENSION = 2**48

_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_QUANTISED = ("F8_", "F6_", "F4", "I8", "U8", "I4", "U4", "E8M0")


class Entry(NamedTuple):
    """A tensor of the header: bytes ``begin`` to ``end`` of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsFile:
    """A checked safetensors file: ``entries`` by name, in the order of their bytes.

    Raises FileProblem if the file is no safetensors file, is truncated or contradicts itself;
    InvalidValue if a tensor is stored in a dtype that is not read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = MappedFile(path)
        self._bytes = self._file.bytes
        size = len(self._bytes)
        length = int.from_bytes(self._bytes[:8].tobytes(), "little")
        if size < 8 or length > min(size - 8, MOST_HEADER_BYTES):
            raise FileProblem(
                f"{path} is not a safetensors file, or truncated: it has {size:,} bytes, and its "
                f"header would have {length:,}"
            )
        text = self._bytes[8 : 8 + length].tobytes()
        if not text.startswith(b"{"):
            raise FileProblem(f"{path} is not a safetensors file: its header is not a JSON object")
        header = parse_json(text, f"the header of {path}")
        header.pop("__metadata__", None)
        found = {name: self._entry(name, value, 8 + length) for name, value in header.items()}
        self.entries = dict(sorted(found.items(), key=lambda item: (item[1].begin, item[1].end)))
        self._check_layout(8 + length)

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor, over the mapped file."""
        for name, (dtype, shape, begin, end) in self.entries.items():
            yield Tensor(name, view(self._bytes[begin:end], dtype, shape), dtype, shape)
            self._file.release(begin, end)

    def _entry(self, name: str, value: Any, start: int) -> Entry:
        where = f"{self.path}: tensor {name[:200]!r}"
        if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
            raise FileProblem(f"{where} needs dtype, shape and data_offsets, and nothing else")
        stored, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
        if not _is_list_of_sizes(shape) or len(shape) > MOST_DIMENSIONS:
            raise FileProblem(f"{where} has no valid shape")
        if not _is_list_of_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
            raise FileProblem(f"{where} has no valid data_offsets")
        if not isinstance(stored, str) or stored not in _DTYPES:
            raise InvalidValue(f"{where} {_refusal(stored)}")
        dtype = _DTYPES[stored]
        expected = prod(shape) * BLOCKS[dtype][1]
        if offsets[1] - offsets[0] != expected:
            raise FileProblem(
                f"{where} has {offsets[1] - offsets[0]:,} bytes, and its shape {shape} in {stored} "
                f"needs {expected:,}"
            )
        return Entry(dtype, tuple(shape), start + offsets[0], start + offsets[1])

    def _check_layout(self, start: int) -> None:
        """The tensors' bytes follow each other without gap or overlap and end with the file."""
        position = start
        for name, entry in self.entries.items():
            if entry.begin != position:
                how = "overlaps the one before" if entry.begin < position else "leaves a gap"
                raise FileProblem(
                    f"{self.path}: tensor {name[:200]!r} {how}: it begins at byte "
                    f"{entry.begin - start:,} of the data, and {position - start:,} was expected"
                )
            position = entry.end
        if position != len(self._bytes):
            raise FileProblem(
                f"{self.path} has {len(self._bytes):,} bytes, and its header describes "
                f"{position:,}; it is truncated or damaged: download it again"
            )


def _is_list_of_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(
        type(item) is int and 0 <= item <= LARGEST_DIMENSION for item in value
    )


def _refusal(stored: Any) -> str:
    advice = "convert the model to float32, float16 or bfloat16"
    if isinstance(stored, str) and stored.startswith(_QUANTISED):
        advice = "it is a quantised model: take the original one, or a GGUF file of it"
    return f"is stored as {str(stored)[:40]!r}, which is not read; F32, F16 and BF16 are; {advice}"
