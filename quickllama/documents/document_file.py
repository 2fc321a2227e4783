"""Reading into a file, saving and loading: what Model.read(store=), Document.save and
Model.load_document do."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quickllama import _core
from quickllama.documents.document import Document
from quickllama.documents.identity import check_same_settings
from quickllama.documents.keeping import PARTS, Keeper, Reading, Room, Saved, settings_of
from quickllama.documents.source import Source, expected_tokens, unread
from quickllama.documents.volume_file import VolumeFile, is_document
from quickllama.dtypes import WEIGHT_DTYPES
from quickllama.errors import FileProblem, InvalidType, InvalidValue, warn
from quickllama.progress import Progress

if TYPE_CHECKING:
    from quickllama.model import Model

__all__ = [
    "checked_path",
    "facts_of",
    "held_as_in",
    "load_document",
    "read_into_file",
    "save_document",
]

_TEXT_BYTES = 60  # of a token's text, id and place, in both states of a file with room to grow
_STATES = 3  # sizes of what is in memory, which both states hold


def checked_path(value: object) -> Path:
    """A path from outside, absolute and without links. Raises InvalidType or InvalidValue."""
    if not isinstance(value, str | os.PathLike):
        raise InvalidType(f"the file of a document is a path, not {type(value).__name__}")
    try:
        path = Path(os.path.realpath(os.fspath(value)))
    except (TypeError, ValueError) as problem:
        raise InvalidValue(f"{value!r} is no path: {problem}") from None
    if path.is_dir():
        raise FileProblem(f"{path} is a folder; give the name of a file")
    return path


def read_into_file(
    document: Document,
    source: Source,
    store: object,
    *,
    budget: int | None,
    resume: bool,
    progress: bool | Progress | None,
) -> None:
    """Read ``source`` into the empty ``document``, which from then on is kept in a file."""
    path = checked_path(store)
    if os.path.lexists(path):
        if not resume:
            raise FileProblem(
                f"{path} exists; resume=True goes on with it, or give another name or delete it"
            )
        file = VolumeFile.open(path, write=True)
        with _unlocked_on_failure(file):
            rest = _resumed(document, source, file, budget)
            document.append(rest, progress)
        return
    _check_disk(document._reading(), expected_tokens(source, document.model.tokenizer), path)
    file = VolumeFile.create(path)
    keeper = Keeper(file, Room(_core.Volume(file.fileno(), budget), budget))
    try:
        keeper.commit(document._reading())
        file.publish(replace=False)
    except BaseException:
        file.abandon()
        raise
    document._keep(keeper)
    with _unlocked_on_failure(file):
        try:
            document.append(source, progress)
        finally:
            if not document.text.strip():  # nothing came that could be read
                file.remove()
    warn_of_limit(document, budget)


def warn_of_limit(document: Document, budget: int | None) -> None:
    """Tell that a document takes more than its limit."""
    if budget is not None and document.nbytes > budget:
        warn(
            f"the document takes {document.nbytes / 2**20:,.1f} MiB, more than its ram_limit "
            f"({budget / 2**20:,.1f} MiB): its window and text are in memory whatever that is"
        )


@contextmanager
def _unlocked_on_failure(file: VolumeFile) -> Iterator[None]:
    """The caller does not get the document of what fails, but the traceback, which may live long,
    refers to it: the file must be free all the same."""
    try:
        yield
    except BaseException:
        file.unlock()
        raise


def _resumed(document: Document, source: Source, file: VolumeFile, budget: int | None) -> Source:
    """Bring the document where its file is; returns what is left to read."""
    saved = Saved.of(file)
    name = str(file.path)
    saved.identity.check(document.model, name)
    asked = settings_of(document._reading())
    was = {key: saved[key] for key in asked} | {"memory": dataclasses.asdict(saved.memory)}
    check_same_settings(was, asked, name)
    text = saved.text(document.model)
    rest = list(unread(source, text, name, document.model.vocab_size))
    _restore(document, saved, file, budget, verify=True, keeps=True)
    return rest[0] if len(rest) == 1 else rest


def _restore(
    document: Document,
    saved: Saved,
    file: VolumeFile,
    budget: int | None,
    *,
    verify: bool,
    keeps: bool,
) -> None:
    slabs = saved.slabs()
    if verify:
        file.check(extent for part in PARTS for extent in slabs[part])
    reading = document._reading()
    room = Room(_core.Volume(file.fileno(), budget), budget)
    saved.restore(reading.session, room.volume)
    prefix, text = saved.prefix(document.model), saved.text(document.model)
    if len(reading.session) > len(prefix) + len(text):
        raise FileProblem(f"{saved.name} holds more tokens than its text; read the text anew")
    try:
        document._goes_on(prefix, text, bool(saved["complete"]))
    except InvalidValue as problem:
        raise FileProblem(f"{saved.name} makes no sense: {problem}; read the text anew") from None
    room.fit(reading.session, text)
    warn_of_limit(document, budget)
    if keeps:
        keeper = Keeper(file, room)
        keeper.known(slabs)
        document._keep(keeper)
    note = saved.identity.note(document.model)
    if note is not None:
        document._add_note(note)


def _check_disk(reading: Reading, tokens: int | None, path: Path) -> None:
    """Raises FileProblem if there is not room enough on the disk."""
    if tokens is None:
        return
    parts = [reading.session.slabs(part) for part in PARTS]
    each = sum(part[0] / part[1] for part in parts if part[1])
    need = int(tokens * (each + _TEXT_BYTES)) + _STATES * (reading.session.nbytes + (1 << 20))
    try:
        status = os.statvfs(path.parent)
    except FileNotFoundError:
        raise FileProblem(f"there is no folder {path.parent}") from None
    except OSError as problem:
        raise FileProblem(f"{path.parent} cannot be used: {problem.strerror}") from None
    free = status.f_bavail * status.f_frsize
    if need > free:
        raise FileProblem(
            f"about {tokens:,} tokens need {need / 1e9:,.2f} GB on the disk of {path.parent} "
            f"({each / 1e3:,.1f} KB a token), and {free / 1e9:,.2f} GB are free: make room, choose "
            "another disk, or skim the text"
        )


def save_document(reading: Reading, path: Path) -> None:
    """Write a document to a file of its own, whole or not at all."""
    if os.path.lexists(path):
        if not is_document(path):
            raise FileProblem(f"{path} exists and is no document; choose another name")
        VolumeFile.open(path, write=False).close()  # nobody may be writing it
    _check_disk(reading, len(reading.text), path)
    file = VolumeFile.create(path)
    try:
        Keeper(file, None).commit(reading)
        file.publish(replace=True)
    except BaseException:
        file.abandon()
        raise


def facts_of(path: Path) -> dict[str, Any]:
    """What a document's file says of itself; its keys and values are not looked at. Raises
    FileProblem or Busy."""
    with closing(VolumeFile.open(path, write=False)) as file:
        saved, file_bytes = Saved.of(file), file.nbytes
    memory, identity = saved.memory, saved.identity
    text = saved.array("text.text", np.uint8).tobytes().decode("utf-8", "replace")
    return {
        "path": str(path),
        "title": saved.title,
        "complete": bool(saved["complete"]),
        "characters": len(text),
        "tokens": len(saved.array("text.ids", np.int32)),
        "tokens_in_memory": saved["counters"]["tokens"],
        "question": saved.question,
        "skimmed": saved.skim is not None,
        "model": identity.words,
        "dtype": identity.dtype,
        "read_on": identity.cpu,
        "key_value_dtype": saved["kv_dtype"],
        **dataclasses.asdict(memory),
        "file_bytes": file_bytes,
        "written_by": f"quickllama {saved['quickllama']}",
    }


def held_as_in(path: str) -> str:
    """The ``dtype`` to load a model with, so that it can answer from the document in a file."""
    with closing(VolumeFile.open(checked_path(path), write=False)) as file:
        dtype = Saved.of(file).identity.dtype
    return dtype if dtype in WEIGHT_DTYPES else "stored"


def load_document(model: Model, path: Path, *, budget: int | None, verify: bool) -> Document:
    """What :meth:`quickllama.Model.load_document` does."""
    file = VolumeFile.open(path, write=False)
    with _unlocked_on_failure(file):
        return _loaded(model, file, budget, verify=verify)


def _loaded(model: Model, file: VolumeFile, budget: int | None, *, verify: bool) -> Document:
    saved = Saved.of(file)
    saved.identity.check(model, saved.name)
    if not saved["complete"]:
        raise InvalidValue(
            f"{saved.name} holds a document that was not read to its end; model.read(text, "
            "store=...) with the same text and settings goes on (quickllama read FILE --save ...)"
        )
    parts = (saved.memory, saved.prompt, saved.title, saved.question)
    try:
        document = Document(model, *parts, saved["kv_dtype"], saved.skim)
    except (TypeError, ValueError) as problem:
        raise FileProblem(f"{saved.name} holds settings that make no sense ({problem})") from None
    _restore(document, saved, file, budget, verify=verify, keeps=False)
    return document
