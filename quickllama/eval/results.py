"""Results in a file of JSON lines, written as they come.

A line with ``"header"`` describes settings; every other line is one answered question and names its
settings by ``"settings"``, the first 12 hex digits of the description's SHA-256. So results of
different settings may stand in one file, and are never taken for each other. Processes may write
to one file at the same time, if they ask different questions.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from quickllama.errors import FileProblem, warn

__all__ = ["Store", "load_results", "settings_id"]

Row = dict[str, Any]


def settings_id(identity: Mapping[str, Any]) -> str:
    """Tells settings apart."""
    plain = json.dumps(identity, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(plain.encode()).hexdigest()[:12]


class Store:
    """The results of one file, or (without a path) of this process alone.

    ``rows``: the answered questions; ``headers``: identities by their ids.
    """

    def __init__(self, path: Path | None) -> None:
        """Read what is there. Raises FileProblem for a file that holds something else."""
        self.path = path
        self.headers: dict[str, Row] = {}
        self.rows: list[Row] = []
        if path is not None and path.exists():
            self._load(path)

    def header(self, identity: Mapping[str, Any], about: Mapping[str, Any]) -> str:
        """The id of ``identity``, noted in the file with what else there is to say ``about`` it."""
        name = settings_id(identity)
        if name not in self.headers:
            plain = json.loads(json.dumps(identity))  # as it comes back from a file
            self._write({"header": name, "identity": plain, "about": dict(about)})
            self.headers[name] = plain
        return name

    def add(self, row: Row) -> None:
        """Keep one more result."""
        self._write(row)
        self.rows.append(row)

    def _write(self, line: Row) -> None:
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab+") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                _mend(file)
                text = json.dumps(line, ensure_ascii=False) + "\n"
                file.write(text.encode("utf-8"))
        except OSError as problem:
            raise FileProblem(f"results cannot be kept in {self.path}: {problem}") from None

    def _load(self, path: Path) -> None:
        try:
            with path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH)
                data = file.read()
        except OSError as problem:
            raise FileProblem(f"{path} cannot be read: {problem}") from None
        whole = data[: data.rfind(b"\n") + 1]
        for number, line in enumerate(whole.decode("utf-8", "replace").split("\n")[:-1], 1):
            try:
                row = json.loads(line)
                if "header" in row:
                    self.headers[row["header"]] = row["identity"]
                else:
                    self.rows.append({**row, "settings": str(row["settings"])})
            except (ValueError, KeyError, TypeError) as problem:
                raise FileProblem(
                    f"line {number} of {path} is no result ({problem!r}); take the line out, or "
                    "give another folder"
                ) from None
        if len(whole) < len(data):  # the process ended while it wrote
            warn(f"the last line of {path} is incomplete; its question is asked again")
            with path.open("r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                _mend(file)


def _mend(file: BinaryIO) -> None:
    """Take away a last line that a process ended in; ``file`` is locked, so that nobody writes."""
    if file.seek(0, os.SEEK_END):
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)


def load_results(paths: Iterable[Path]) -> tuple[list[Row], dict[str, Row]]:
    """The rows and the identities of files, or of all ``.jsonl`` files of folders. Raises
    FileProblem if there are none."""
    rows: list[Row] = []
    headers: dict[str, Row] = {}
    for path in paths:
        files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
        if not files or not all(file.is_file() for file in files):
            raise FileProblem(f"{str(path)!r} is no file of results, nor a folder with any")
        for file in files:
            store = Store(file)
            rows += store.rows
            headers |= store.headers
    return rows, headers
