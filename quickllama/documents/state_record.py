"""A document's state as bytes: a table in JSON, and named arrays behind it (docs/format.md)."""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quickllama.checkpoint.mapped_file import parse_json
from quickllama.errors import FileProblem

__all__ = ["StateRecord"]

_MARK = b"QLMSTATE"
_LENGTH = struct.Struct("=8sQ")
_ALIGNMENT = 64
_DTYPES = ("|u1", "<u4", "<i4", "<i8", ">u4", ">i4", ">i8")


@dataclasses.dataclass(frozen=True)
class StateRecord:
    """``table``: what JSON can hold; ``arrays``: names to integer arrays."""

    table: dict[str, Any]
    arrays: Mapping[str, NDArray[Any]]

    def buffers(self) -> list[bytes | memoryview]:
        """As the file has it, one behind the other; nothing that is long is copied."""
        places: dict[str, Any] = {}
        parts: list[bytes | memoryview] = []
        offset = 0
        for name, array in self.arrays.items():
            data = np.ascontiguousarray(array).view(np.uint8).data
            places[name] = {"dtype": array.dtype.str, "n": array.size, "offset": offset}
            padding = bytes(-data.nbytes % _ALIGNMENT)
            parts += [data, padding]
            offset += data.nbytes + len(padding)
        # All escaped: a title may hold halves of surrogate pairs, which a file's name can have.
        words = json.dumps({**self.table, "arrays": places}).encode("ascii")
        head = _LENGTH.pack(_MARK, len(words)) + words
        return [head, bytes(-len(head) % _ALIGNMENT), *parts]

    @classmethod
    def unpacked(cls, data: bytes, name: str) -> StateRecord:
        """From what a file holds; the arrays are views of ``data``. Raises FileProblem, naming
        ``name``."""
        try:
            mark, length = _LENGTH.unpack_from(data)
            if mark != _MARK or length > len(data) - _LENGTH.size:
                raise ValueError("no table")
            end = _LENGTH.size + length
            table = parse_json(data[_LENGTH.size : end], name)
            begin = end + -end % _ALIGNMENT
            arrays = {}
            for array, place in table.pop("arrays").items():
                if place["dtype"] not in _DTYPES:
                    raise ValueError(f"numbers of type {place['dtype']!r}")
                if int(place["offset"]) < 0 or int(place["n"]) < 0:
                    raise ValueError("a place before the beginning")
                arrays[array] = np.frombuffer(
                    data, place["dtype"], int(place["n"]), begin + int(place["offset"])
                )
        except (AttributeError, KeyError, TypeError, ValueError, struct.error) as problem:
            raise FileProblem(
                f"{name} holds no state of a document ({problem}); read the text anew"
            ) from None
        return cls(table, arrays)

    def array(self, name: str, dtype: type[np.generic]) -> NDArray[Any]:
        """One array. Raises KeyError or ValueError if it is missing or of another type."""
        found = self.arrays[name]
        if found.dtype != dtype:
            raise ValueError(f"{name} is of type {found.dtype}")
        return found
