"""Files as they come from outside: mapped into memory, or read as JSON of a limited size."""

from __future__ import annotations

import json
import mmap
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np
import numpy.typing as npt

from quickllama.errors import FileProblem

__all__ = ["MappedFile", "parse_json", "read_json"]

MOST_JSON_BYTES = 64 << 20


class MappedFile:
    """A file as memory: ``bytes``, a read-only array [bytes] over its pages; none is read yet.

    The array keeps the mapping alive. Somebody who shortens the file meanwhile crashes the
    process, as with every mapped file. Raises FileProblem if it is no readable, regular,
    non-empty file.
    """

    bytes: npt.NDArray[np.uint8]

    def __init__(self, path: Path) -> None:
        with _open(path) as file:
            try:
                self._pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as problem:
                raise FileProblem(f"{path} cannot be mapped into memory: {problem}") from problem
        self.bytes = np.frombuffer(self._pages, np.uint8)

    def release(self, begin: int, end: int) -> None:
        """Bytes ``begin`` to ``end`` will hardly be read again: their pages no longer count as
        memory of this process, so that loading does not hold the file and the model at once.
        They stay valid; reading them brings them back."""
        begin -= begin % mmap.PAGESIZE
        if end > begin:
            self._pages.madvise(mmap.MADV_DONTNEED, begin, end - begin)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object that a file holds.

    Raises FileProblem if it is no readable regular file of at most 64 MiB, or holds anything else.
    """
    with _open(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MOST_JSON_BYTES:
            raise FileProblem(f"{path} has {size:,} bytes, too many for a JSON file of a model")
        try:
            text = file.read(MOST_JSON_BYTES + 1)
        except OSError as problem:
            raise FileProblem(f"{path} cannot be read: {problem.strerror}") from problem
    return parse_json(text, str(path))


def parse_json(text: bytes, source: str) -> dict[str, Any]:
    """The JSON object in ``text`` (UTF-8); ``source`` names it in messages.

    Raises FileProblem if it is broken, nested too deeply, no object, or names a key twice.
    """
    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except UnicodeDecodeError as problem:
        raise FileProblem(f"{source} is not UTF-8 text (byte {problem.start})") from problem
    except RecursionError as problem:
        raise FileProblem(f"{source} holds JSON that is nested too deeply") from problem
    except ValueError as problem:
        raise FileProblem(f"{source} does not hold valid JSON: {problem}") from problem
    if not isinstance(value, dict):
        raise FileProblem(f"{source} holds a JSON {type(value).__name__}, not an object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {key[:100]!r} stands there twice")
            seen.add(key)
    return result


@contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    """The file, opened for reading, after a look at what it is: a pipe could wait forever."""
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise FileProblem(f"{path} is a folder; a file was expected")
        if not stat.S_ISREG(status.st_mode):
            raise FileProblem(f"{path} is not a regular file")
        if status.st_size == 0:
            raise FileProblem(f"{path} is empty")
        file = path.open("rb")
    except (OSError, ValueError) as problem:
        _cannot_open(path, problem)
    with file:
        yield file


def _cannot_open(path: Path, problem: OSError | ValueError) -> NoReturn:
    if isinstance(problem, FileProblem):
        raise problem
    if isinstance(problem, FileNotFoundError):
        raise FileProblem(f"there is no file {path}") from problem
    reason = problem.strerror if isinstance(problem, OSError) else problem
    raise FileProblem(f"{path} cannot be opened: {reason}") from problem
