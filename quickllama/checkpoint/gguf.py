"""Reader of GGUF files, versions 2 and 3, little-endian: header, metadata and tensor table.

Every count, length, type and offset is checked against the file's size before it is used, so that
a damaged or hostile file ends in an Error: no crash, no long loop, no allocation beyond the size of
the file. Big arrays of the metadata are walked over when the file is opened and decoded when asked
for. Source: ggml's docs/gguf.md.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from quickllama.checkpoint.mapped_file import MappedFile
from quickllama.checkpoint.tensor import BLOCKS, n_bytes
from quickllama.errors import FileProblem, InvalidValue, MissingKey

__all__ = ["GGUFFile", "Metadata", "TensorEntry"]

MOST_ENTRIES = 1 << 16  # of metadata, and of tensors
MOST_STRINGS = 1 << 24  # in all arrays together
MOST_KEY_BYTES = (1 << 16) - 1
MOST_NAME_BYTES = 1 << 10
MOST_DIMENSIONS = 4
MOST_NESTING = 4

_STRING, _ARRAY, _BOOL = 8, 9, 7
_SCALARS: Mapping[int, np.dtype[Any]] = {
    0: np.dtype("u1"),
    1: np.dtype("i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    _BOOL: np.dtype("u1"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}
"""Metadata value types of a fixed size."""

_TENSOR_TYPES = (
    *("F32", "F16", "Q4_0", "Q4_1", "Q4_2", "Q4_3", "Q5_0", "Q5_1", "Q8_0", "Q8_1", "Q2_K", "Q3_K"),
    *("Q4_K", "Q5_K", "Q6_K", "Q8_K", "IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S", "IQ4_NL", "IQ3_S"),
    *("IQ2_S", "IQ4_XS", "I8", "I16", "I32", "I64", "F64", "IQ1_M", "BF16", "Q4_0_4_4"),
    *("Q4_0_4_8", "Q4_0_8_8", "TQ1_0", "TQ2_0", "IQ4_NL_4_4", "IQ4_NL_4_8", "IQ4_NL_8_8"),
    *("MXFP4", "NVFP4"),
)
"""The names of ggml's tensor types, by number."""

_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_DTYPES |= {name.upper(): name for name in BLOCKS if name.startswith("q")}

_u32 = struct.Struct("<I").unpack_from
_u64 = struct.Struct("<Q").unpack_from


class TensorEntry(NamedTuple):
    """A tensor of the table: bytes ``begin`` to ``end`` of the file; ``shape`` is [out, in]."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class _Array:
    """An array of the metadata that was walked over: its elements lie at ``begin`` ... ``end``."""

    kind: int
    count: int
    begin: int
    end: int


class Metadata(Mapping[str, Any]):
    """Metadata by key: str, int, float, bool, or a list of them (of lists, where nested).

    Arrays are decoded when first asked for; getting one raises FileProblem if a string of it is
    not UTF-8 or a bool neither 0 nor 1. A key that is not there raises MissingKey.
    """

    def __init__(self, path: Path, data: npt.NDArray[np.uint8], entries: dict[str, Any]) -> None:
        self._path = path
        self._data = data
        self._entries = entries

    def copy(self) -> Metadata:
        """The same, with arrays decoded by its own asking, which live no longer than it does."""
        return Metadata(self._path, self._data, dict(self._entries))

    def __getitem__(self, key: str) -> Any:
        """The value of ``key``."""
        try:
            value = self._entries[key]
        except KeyError:
            raise MissingKey(f"{self._path} has no metadata {key!r}") from None
        if isinstance(value, _Array):
            value = self._entries[key] = _Reader(self._path, self._data).decode(value)
        return value

    def __contains__(self, key: object) -> bool:
        """Whether there is such a key; decodes nothing."""
        return key in self._entries

    def __iter__(self) -> Iterator[str]:
        """The keys, in the order of the file."""
        return iter(self._entries)

    def __len__(self) -> int:
        """How many keys there are."""
        return len(self._entries)


class GGUFFile:
    """A checked GGUF file.

    * ``metadata``: see :class:`Metadata`.
    * ``tensors``: TensorEntry by GGUF name, in the order of the file's table.

    Raises FileProblem if the file is no GGUF file, is truncated or contradicts itself; InvalidValue
    for a version, byte order or tensor type that is not read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = MappedFile(path)
        self._data = self._file.bytes
        reader = _Reader(path, self._data)
        n_tensors, n_entries = reader.header()
        entries: dict[str, Any] = {}
        for _ in range(n_entries):
            key = reader.string("a metadata key", MOST_KEY_BYTES)
            if key in entries:
                raise FileProblem(f"{path} has the metadata key {key!r} twice")
            entries[key] = reader.value(f"the metadata {key!r}")
        self.metadata = Metadata(path, self._data, entries)
        table = [reader.tensor() for _ in range(n_tensors)]
        self.tensors = self._place(table, reader.position)

    def bytes_of(self, name: str) -> npt.NDArray[np.uint8]:
        """The bytes of a tensor [bytes], over the mapped file."""
        entry = self.tensors[name]
        return self._data[entry.begin : entry.end]

    def release(self, name: str) -> None:
        """The bytes of a tensor will hardly be read again; see MappedFile.release."""
        entry = self.tensors[name]
        self._file.release(entry.begin, entry.end)

    def _place(
        self, table: list[tuple[str, str, tuple[int, ...], int]], end_of_table: int
    ) -> dict[str, TensorEntry]:
        """The tensors with their places in the file, none beyond its end, no two overlapping."""
        alignment = self.metadata.get("general.alignment", 32)
        power_of_two = type(alignment) is int and alignment > 0 and not alignment & (alignment - 1)
        if not power_of_two:
            raise FileProblem(
                f"{self.path}: general.alignment must be a power of two, not {alignment!r:.40}"
            )
        start = -(-end_of_table // alignment) * alignment
        tensors: dict[str, TensorEntry] = {}
        for name, dtype, shape, offset in table:
            if name in tensors:
                raise FileProblem(f"{self.path} has the tensor {name!r} twice")
            begin = start + offset
            end = begin + n_bytes(dtype, shape)
            if offset % alignment or end > len(self._data):
                raise FileProblem(
                    f"{self.path}: tensor {name!r} would lie at bytes {begin:,} to {end:,}, and "
                    f"the file has {len(self._data):,}, aligned to {alignment}; it is truncated or "
                    "damaged: download it again"
                )
            tensors[name] = TensorEntry(dtype, shape, begin, end)
        position, before = start, ""
        for name, entry in sorted(tensors.items(), key=lambda item: item[1][2:]):
            if entry.begin < position:
                raise FileProblem(f"{self.path}: tensors {before!r} and {name!r} overlap")
            position, before = entry.end, name
        return tensors


class _Reader:
    """Reads one value after the other from ``position`` on, never beyond the end."""

    def __init__(self, path: Path, data: npt.NDArray[np.uint8]) -> None:
        self.path = path
        self.data = data.data
        self.position = 0
        self.n_strings = 0

    def header(self) -> tuple[int, int]:
        """Numbers of tensors and of metadata entries."""
        magic = bytes(self.data[:4])
        if magic == b"FUGG":
            raise InvalidValue(f"{self.path} is a big-endian GGUF file; only little-endian is read")
        if magic != b"GGUF":
            raise FileProblem(f"{self.path} is not a GGUF file: it begins with {magic!r}")
        self.position = 4
        version = self.u32("the version")
        if version not in (2, 3):
            if version & 0xFFFF == 0:
                what = "is a big-endian GGUF file; only little-endian is read"
            else:
                what = f"is GGUF version {version}; versions 2 and 3 are read"
            raise InvalidValue(f"{self.path} {what}; convert the model again")
        n_tensors, n_entries = self.u64("the number of tensors"), self.u64("the size of metadata")
        for number, what in ((n_tensors, "tensors"), (n_entries, "metadata entries")):
            if number > MOST_ENTRIES:
                raise FileProblem(
                    f"{self.path} says that it holds {number:,} {what}, and at most "
                    f"{MOST_ENTRIES:,} are read; it is damaged"
                )
        return n_tensors, n_entries

    def tensor(self) -> tuple[str, str, tuple[int, ...], int]:
        """Name, dtype, shape and offset of the next tensor of the table."""
        name = self.string("a tensor's name", MOST_NAME_BYTES)
        where = f"{self.path}: tensor {name!r}"
        rank = self.u32("a tensor's number of dimensions")
        if not 1 <= rank <= MOST_DIMENSIONS:
            raise FileProblem(f"{where} has {rank} dimensions; 1 to {MOST_DIMENSIONS} are possible")
        # GGUF's first dimension is the one whose values lie side by side.
        shape = tuple(self.u64("a tensor's shape") for _ in range(rank))[::-1]
        kind, offset = self.u32("a tensor's type"), self.u64("a tensor's offset")
        if kind >= len(_TENSOR_TYPES):
            raise FileProblem(f"{where} has the type {kind}, which is not a type of GGUF")
        dtype = _DTYPES.get(_TENSOR_TYPES[kind], "")
        if not dtype:
            raise InvalidValue(
                f"{where} is stored as {_TENSOR_TYPES[kind]}, which is not read; take the model "
                f"in one of {', '.join(_DTYPES)}"
            )
        if prod(shape) == 0 or shape[-1] % BLOCKS[dtype][0]:
            raise FileProblem(
                f"{where} has the shape {shape}; in {dtype} its rows must be whole blocks of "
                f"{BLOCKS[dtype][0]} values, and none may be empty"
            )
        return name, dtype, shape, offset

    def value(self, what: str) -> Any:
        """The next metadata value, with its type before it; an array is only walked over."""
        kind = self.u32(f"the type of {what}")
        if kind == _STRING:
            return self.string(what)
        if kind == _ARRAY:
            return self.array(what)
        if kind not in _SCALARS:
            raise FileProblem(
                f"{self.path}: {what} has the type {kind}, which is not a type of GGUF"
            )
        return self._scalars(kind, self._take(_SCALARS[kind].itemsize, what), 1)[0]

    def array(self, what: str, depth: int = 1) -> _Array:
        """Walks over the next array."""
        kind, count = self.u32(f"the type of {what}"), self.u64(f"the length of {what}")
        begin = self.position
        if kind in _SCALARS:
            self._take(count * _SCALARS[kind].itemsize, what)
        elif kind in (_STRING, _ARRAY):
            self.n_strings += count
            if self.n_strings > MOST_STRINGS:
                raise FileProblem(
                    f"{self.path} says that the arrays up to {what} have {self.n_strings:,} "
                    f"elements; at most {MOST_STRINGS:,} are read; it is damaged"
                )
            if kind == _STRING:
                self._walk_strings(count, what)
            elif depth == MOST_NESTING:
                raise FileProblem(f"{self.path}: {what} is nested too deeply")
            else:
                for _ in range(count):
                    self.array(what, depth + 1)
        else:
            raise FileProblem(
                f"{self.path}: {what} has the type {kind}, which is not a type of GGUF"
            )
        return _Array(kind, count, begin, self.position)

    def decode(self, array: _Array) -> list[Any]:
        """The elements of an array that was walked over."""
        if array.kind in _SCALARS:
            return self._scalars(array.kind, array.begin, array.count)
        if array.kind == _ARRAY:
            inner, position = [], array.begin
            for _ in range(array.count):
                self.position = position
                found = self.array("a nested array")
                inner.append(self.decode(found))
                position = found.end
            return inner
        region = bytes(self.data[array.begin : array.end])
        strings, position = [], 0
        try:
            for _ in range(array.count):
                begin = position + 8
                position = begin + _u64(region, position)[0]
                strings.append(region[begin:position].decode("utf-8"))
        except UnicodeDecodeError as problem:
            raise FileProblem(f"{self.path} has a string that is not UTF-8: {problem}") from problem
        return strings

    def string(self, what: str, most: int | None = None) -> str:
        """The next string."""
        length = self.u64(f"the length of {what}")
        if most is not None and length > most:
            raise FileProblem(f"{self.path}: {what} would have {length:,} bytes; {most:,} may be")
        begin = self._take(length, what)
        try:
            return str(self.data[begin : self.position], "utf-8")
        except UnicodeDecodeError as problem:
            raise FileProblem(f"{self.path}: {what} is not UTF-8: {problem}") from problem

    def u32(self, what: str) -> int:
        """The next unsigned number of 4 bytes."""
        number: int = _u32(self.data, self._take(4, what))[0]
        return number

    def u64(self, what: str) -> int:
        """The next unsigned number of 8 bytes."""
        number: int = _u64(self.data, self._take(8, what))[0]
        return number

    def _take(self, n: int, what: str) -> int:
        """Where the next ``n`` bytes begin; they are read."""
        begin = self.position
        if n > len(self.data) - begin:
            raise FileProblem(
                f"{self.path} ends at byte {len(self.data):,}, within {what}; it is truncated or "
                "damaged: download it again"
            )
        self.position = begin + n
        return begin

    def _walk_strings(self, count: int, what: str) -> None:
        data, position, last = self.data, self.position, len(self.data) - 8
        for _ in range(count):
            if position > last:
                break
            position += 8 + _u64(data, position)[0]
        else:
            self._take(position - self.position, what)
            return
        self._take(len(data) + 1, what)

    def _scalars(self, kind: int, begin: int, count: int) -> list[Any]:
        values = np.frombuffer(self.data, _SCALARS[kind], count, begin)
        if kind == _BOOL:
            if values.size and values.max() > 1:
                raise FileProblem(f"{self.path} has a bool that is neither 0 nor 1: {values.max()}")
            values = values.astype(bool)
        result: list[Any] = values.tolist()
        return result
