"""Documents in files: keeping one while it is read, saving and loading one (docs/format.md).

What is full is written once and then read from the file, so that memory does not grow. All else is
the state, which is written anew at each commit: every few seconds while reading, and at the end,
be it good or bad. A document that is read again from the last commit on has the same bits as one
that was never interrupted.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import quickllama
from quickllama import _core
from quickllama.arrays import token_ids
from quickllama.config import MemoryConfig
from quickllama.documents.growing_text import GrowingText
from quickllama.documents.head_store import SkimHeads, skim_heads_of
from quickllama.documents.identity import ModelIdentity
from quickllama.documents.state_record import StateRecord
from quickllama.documents.volume_file import Extent, VolumeFile
from quickllama.errors import FileProblem
from quickllama.prompt import PromptForm

if TYPE_CHECKING:
    from quickllama.model import Model

__all__ = ["Keeper", "Reading", "Room", "Saved", "settings_of"]

PARTS = ("first", "pages", "vectors", "keys")
ARRAYS = (
    "window_keys",
    "window_scores",
    "query_sums",
    "question_queries",
    "question_vectors",
    "chosen",
)
COUNTERS = (
    "tokens",
    "first_tokens",
    "blocks",
    "question_begin",
    "question_end",
    "question_known",
    "chosen",
)
_DROPPED, _INLINE = -1, -2
_COPIES = 4  # the document, what it was at the last question, that with its end read, who asks
_INTERVAL = 5.0  # seconds from one commit to the next, at least
_SHARE = 20.0  # and so many times what the last commit took


@dataclasses.dataclass
class Reading:
    """What a document consists of: how it is read, and how far it is.

    ``complete``: nothing that was to be read is missing.
    """

    model: Model
    session: _core.Session
    text: GrowingText
    prefix: NDArray[np.int64]
    memory: MemoryConfig
    form: PromptForm
    title: str | None
    question: str | None
    skim: SkimHeads | None
    complete: bool


def settings_of(reading: Reading) -> dict[str, Any]:
    """What a text must have been read with, to be read on."""
    return {
        "memory": dataclasses.asdict(reading.memory.resolved(reading.model.config)),
        "kv_dtype": reading.session.kv_dtype,
        "prompt": [reading.form.before, reading.form.after],
        "question": reading.question,
        "skim_heads": None if reading.skim is None else [list(h) for h in reading.skim.heads],
    }


@dataclasses.dataclass(frozen=True)
class Room:
    """A mapping of a document's file, and the memory that the document may take: None: as much as
    the system likes."""

    volume: _core.Volume
    limit: int | None

    def fit(self, session: _core.Session, text: GrowingText) -> None:
        """What is not in the file counts first: window and slabs that are not full, of which there
        are :data:`_COPIES`, and the text, the places of whose tokens are copied once. A quarter
        stays for the file whatever they take."""
        if self.limit is not None:
            held = _COPIES * (session.nbytes - self.volume.nbytes) + 2 * text.nbytes
            self.volume.set_budget(max(self.limit - held, self.limit // 4))


class Keeper:
    """Writes a document to its file; used by one thread at a time.

    ``room``: slabs that are full move to the file, and are read there. None: they are copied.
    """

    def __init__(self, file: VolumeFile, room: Room | None) -> None:
        self.file = file
        self._room = room
        self._slabs: dict[str, list[Extent]] = {part: [] for part in PARTS}
        self._committed = time.monotonic()
        self._interval = _INTERVAL

    def known(self, slabs: dict[str, list[Extent]]) -> None:
        """Slabs that the file holds already, and the session reads there."""
        self._slabs = slabs

    def take_full(self, session: _core.Session) -> None:
        """Write what has got full. Raises FileProblem; what could not be written stays in memory,
        and is written with the next call."""
        for part in PARTS:
            extents = self._slabs[part]
            for index in range(len(extents), session.slabs(part)[-1]):
                extents.append(self.file.append(session.copy_slab(part, index).data))
                if self._room is None:
                    continue
                try:  # if Ctrl-C comes before, it stays in memory as well
                    session.map_slab(part, index, self._room.volume, extents[-1].offset)
                except (FileProblem, MemoryError):
                    extents.pop()
                    raise

    def commit(self, reading: Reading) -> None:
        """Make what was read so far the document that the file holds. Raises FileProblem."""
        started = time.monotonic()
        self.take_full(reading.session)
        self.file.commit(self._record(reading).buffers())
        self._committed = time.monotonic()
        self._interval = max(_INTERVAL, _SHARE * (self._committed - started))

    def after_chunk(self, reading: Reading) -> None:
        """Write what has got full, and commit now and then. Raises FileProblem."""
        self.take_full(reading.session)
        if self._room is not None:
            self._room.fit(reading.session, reading.text)
        if time.monotonic() - self._committed >= self._interval:
            self.commit(reading)

    def finish(self, reading: Reading) -> None:
        """Commit twice, so that both slots lead to the same state, and damage to one changes
        nothing. Raises FileProblem."""
        self.commit(reading)
        self.commit(reading)

    def holds(self, path: Path) -> bool:
        """Whether ``path`` is the file."""
        with suppress(OSError):
            return os.path.samestat(os.fstat(self.file.fileno()), os.stat(path))
        return False

    def _record(self, reading: Reading) -> StateRecord:
        session, text = reading.session, reading.text.state()
        counters, arrays = session.state()
        named = dict(zip(ARRAYS, arrays, strict=True))
        sizes = {}
        for part in PARTS:
            size, _, n, dropped, full = session.slabs(part)
            extents = self._slabs[part]
            rest = [session.copy_slab(part, index) for index in range(max(full, dropped), n)]
            sizes[part] = {"bytes": size, "n": n, "dropped": dropped}
            named[f"{part}.places"] = np.array([e.offset for e in extents], dtype=np.int64)
            named[f"{part}.crcs"] = np.array([e.crc for e in extents], dtype=np.uint32)
            named[f"{part}.rest"] = np.concatenate([*rest, np.zeros(0, np.uint8)])
        named |= {f"text.{name}": array for name, array in text.arrays.items()}
        table = {
            "quickllama": quickllama.__version__,
            "model": dataclasses.asdict(ModelIdentity.of(reading.model)),
            "title": reading.title,
            **settings_of(reading),
            "skim": None if reading.skim is None else dataclasses.asdict(reading.skim),
            "complete": reading.complete,
            "text": text.table,
            "counters": dict(zip(COUNTERS, counters, strict=True)),
            "slabs": sizes,
        }
        return StateRecord(table, {**named, "prefix": reading.prefix.astype(np.int32)})


@dataclasses.dataclass(frozen=True)
class Saved:
    """What the state of a file says. Every method raises FileProblem for what cannot be."""

    record: StateRecord
    name: str

    @classmethod
    def of(cls, file: VolumeFile) -> Saved:
        """The newest state of ``file``."""
        return cls(StateRecord.unpacked(file.state(), str(file.path)), str(file.path))

    @contextmanager
    def _sense(self) -> Iterator[dict[str, Any]]:
        """The table; what it lacks is a FileProblem."""
        try:
            yield self.record.table
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as problem:
            if isinstance(problem, FileProblem):
                raise
            raise FileProblem(
                f"{self.name} holds a state that makes no sense ({problem!r}); read the text anew"
            ) from None

    def __getitem__(self, key: str) -> Any:
        """A value of the table."""
        with self._sense() as table:
            return table[key]

    def array(self, name: str, dtype: type[np.generic]) -> NDArray[Any]:
        """One of the arrays."""
        with self._sense():
            return self.record.array(name, dtype)

    @property
    def title(self) -> str | None:
        """What names the document."""
        return self._text_or_none("title")

    @property
    def question(self) -> str | None:
        """The question that it was read for."""
        return self._text_or_none("question")

    def _text_or_none(self, key: str) -> str | None:
        with self._sense() as table:
            value = table[key]
            if value is not None and not isinstance(value, str):
                raise TypeError(f"{key} is no text")
            return value

    @property
    def prompt(self) -> PromptForm:
        """The words around the text."""
        with self._sense() as table:
            before, after = table["prompt"]
            return PromptForm.of(f"{before}{{text}}{after}")

    @property
    def memory(self) -> MemoryConfig:
        """How what has left the window is remembered."""
        with self._sense() as table:
            return MemoryConfig(**table["memory"])

    @property
    def identity(self) -> ModelIdentity:
        """The model that it was read with."""
        with self._sense() as table:
            return ModelIdentity.from_dict(table["model"])

    @property
    def skim(self) -> SkimHeads | None:
        """The heads that it was skimmed with."""
        with self._sense() as table:
            return None if table["skim"] is None else skim_heads_of(table["skim"])

    def slabs(self) -> dict[str, list[Extent]]:
        """The extents of each part's full slabs."""
        with self._sense() as table:
            found = {}
            for part in PARTS:
                size = int(table["slabs"][part]["bytes"])
                places = self.record.array(f"{part}.places", np.int64).tolist()
                crcs = self.record.array(f"{part}.crcs", np.uint32).tolist()
                found[part] = [Extent(at, size, c) for at, c in zip(places, crcs, strict=True)]
            return found

    def text(self, model: Model) -> GrowingText:
        """The text and its tokens."""
        with self._sense() as table:
            own = "text."
            arrays = {
                name.removeprefix(own): array
                for name, array in self.record.arrays.items()
                if name.startswith(own)
            }
            return GrowingText.restored(model.tokenizer, StateRecord(table["text"], arrays))

    def prefix(self, model: Model) -> NDArray[np.int64]:
        """The tokens before the text."""
        with self._sense():
            ids = self.record.array("prefix", np.int32)
            if not len(ids):  # a prompt that begins with the text
                return ids.astype(np.int64)
            return token_ids(ids, model.vocab_size, "prefix")[0]

    def restore(self, session: _core.Session, volume: _core.Volume) -> None:
        """Make the empty ``session`` stand where the saved one stood."""
        with self._sense() as table:
            counters = tuple(int(table["counters"][name]) for name in COUNTERS)
            if counters[0] == 0:
                return
            arrays = tuple(self.record.array(name, np.uint8) for name in ARRAYS)
            parts = []
            for part in PARTS:
                full = self.record.array(f"{part}.places", np.int64)
                n, dropped = (int(table["slabs"][part][key]) for key in ("n", "dropped"))
                if not 0 <= len(full) + dropped <= n or (len(full) and dropped):
                    raise ValueError(f"{n} slabs")
                gone = np.full(dropped, _DROPPED, np.int64)
                rest = np.full(n - dropped - len(full), _INLINE, np.int64)
                places = np.concatenate([gone, full, rest])
                parts.append((places, self.record.array(f"{part}.rest", np.uint8)))
            session.restore(counters, arrays, tuple(parts), volume)
