"""The file of a document: extents that are written once, and a state that is replaced as a whole.

docs/format.md describes it byte by byte. A commit writes the new state to a place of its own, then,
once that is on the disk, one of two slots that say where the newest state is. So whatever happens
in between, the state before it stays.
"""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import os
import stat
import struct
import sys
import zlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from quickllama.errors import Busy, FileProblem

__all__ = ["PAGE", "Extent", "VolumeFile", "is_document"]

MAGIC = b"\x89QLM\r\n\x1a\n"
VERSION = 1
PAGE = 4096
"""What the places of extents are multiples of."""

_HEAD = struct.Struct("=8sIII")  # magic, version, byte order, CRC-32 of these
_ORDER = 0x01020304
_SLOT = struct.Struct("=6QII")  # see Slot; behind them a zero and the CRC-32 of all before it
_SLOT_PLACES = (512, 1024)
_ROOM = 1.25  # of a state's place, as part of the first state in it: states grow
_THREADS = 4  # of checking


@dataclasses.dataclass(frozen=True)
class Extent:
    """Bytes of the file, and their CRC-32."""

    offset: int
    size: int
    crc: int


@dataclasses.dataclass(frozen=True)
class Slot:
    """Where a state is: the state of number ``sequence``, ``size`` bytes at ``offset`` with this
    CRC-32, in a place of ``room`` bytes; ``end``: what the file has used by then."""

    sequence: int
    offset: int
    size: int
    room: int
    end: int
    crc: int

    def packed(self) -> bytes:
        """As the file has it."""
        body = _SLOT.pack(*dataclasses.astuple(self), 0, 0)[:-4]
        return body + struct.pack("=I", zlib.crc32(body))

    @classmethod
    def unpacked(cls, data: bytes) -> Slot | None:
        """From the file; None if it was never written, or not to its end."""
        *values, _, crc = _SLOT.unpack(data)
        slot = cls(*values)
        return slot if slot.sequence and crc == zlib.crc32(data[:-4]) else None


def is_document(path: str | os.PathLike[str]) -> bool:
    """Whether a regular file begins as documents do. Pipes are not looked into: what is read of
    them is gone."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return False
        with Path(path).open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except (OSError, ValueError):
        return False


class VolumeFile:
    """An open file of a document; made by :meth:`create` or :meth:`open`, used by one thread.

    It is locked as long as it, or a mapping of it, is open: by one writer or by any number of
    readers. Every method raises FileProblem for what the system refuses.
    """

    def __init__(self, fd: int, path: Path) -> None:
        self._fd = fd
        self.path = path
        self._slots: list[Slot | None] = [None, None]
        self._end = PAGE

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; mappings of it stay, and so does the lock as long as there are any."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with suppress(OSError):
                os.close(fd)

    def unlock(self) -> None:
        """Close the file and let others use it, though mappings of it may stay."""
        with suppress(OSError):
            fcntl.flock(self._fd, fcntl.LOCK_UN)
        self.close()

    def fileno(self) -> int:
        """The file descriptor."""
        return self._fd

    @property
    def nbytes(self) -> int:
        """Bytes of the file that are used."""
        return self._end

    # Opening --------------------------------------------------------------------------------------

    @classmethod
    def create(cls, path: Path) -> VolumeFile:
        """A new file beside ``path``, empty and locked; :meth:`publish` gives it that name."""
        part = path.with_name(f".{path.name}.part")
        while True:
            fd = _opened(part, os.O_RDWR | os.O_CREAT, path)
            file = cls(fd, path)
            file._lock(fcntl.LOCK_EX, f"{path} is being written by another process")
            with suppress(OSError):
                if os.path.samestat(os.fstat(fd), os.stat(part)):
                    break  # else the one who had it locked has given it its name meanwhile
        if os.fstat(fd).st_nlink > 1:  # its name was given, and only this one not taken away
            os.unlink(part)
            return cls.create(path)
        if os.fstat(fd).st_size and not is_document(part):
            raise FileProblem(f"{part} stands in the way and is no document; delete it")
        try:
            os.ftruncate(fd, 0)
        except OSError as problem:
            file._refused(problem, "emptied")
        head = _HEAD.pack(MAGIC, VERSION, _ORDER, 0)[:-4]
        file._write(0, (head + struct.pack("=I", zlib.crc32(head))).ljust(PAGE, b"\0"))
        return file

    def publish(self, *, replace: bool) -> None:
        """Give a new file its name, once it has a state. ``replace``: also if there is a file of
        that name."""
        part = self.path.with_name(f".{self.path.name}.part")
        try:
            if replace:
                os.replace(part, self.path)
            else:
                _rename_new(part, self.path)
            folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as problem:
            self._refused(problem, "given its name")
        with suppress(OSError):  # some file systems cannot
            os.fsync(folder)
        os.close(folder)

    def remove(self) -> None:
        """Delete the file."""
        with suppress(OSError):
            os.unlink(self.path)

    def abandon(self) -> None:
        """Delete a new file that has no name yet."""
        with suppress(OSError):
            os.unlink(self.path.with_name(f".{self.path.name}.part"))
        self.close()  # a kept traceback refers to it, and would keep its place on the disk

    @classmethod
    def open(cls, path: Path, *, write: bool) -> VolumeFile:
        """An existing file. Raises FileProblem if it is none of a document, is damaged, or there is
        none; Busy if somebody else writes it (``write``: or reads it)."""
        flags = os.O_RDWR if write else os.O_RDONLY
        file = cls(_opened(path, flags | os.O_NONBLOCK, path), path)
        try:
            if not os.path.isfile(path):
                raise FileProblem(f"{path} is no regular file")
            busy = (
                f"{path} is in use by another document, in this process or in another one; close "
                "that one first (document.close())"
            )
            file._lock(fcntl.LOCK_EX if write else fcntl.LOCK_SH, busy)
            file._look_at(write)
        except BaseException:
            file.close()  # or a kept traceback would lock it
            raise
        return file

    def _look_at(self, write: bool) -> None:
        self._check_head()
        for index, place in enumerate(_SLOT_PLACES):
            self._slots[index] = Slot.unpacked(self.read(place, _SLOT.size))
        newest = self._newest()
        if newest is None:
            raise FileProblem(f"{self.path} is damaged: it says nowhere where its state is")
        size = os.fstat(self._fd).st_size
        if size < newest.end:
            raise FileProblem(
                f"{self.path} is shortened: it should have {newest.end:,} bytes and has {size:,}"
            )
        self._end = newest.end
        if write and os.fstat(self._fd).st_nlink > 1:
            self._take_first_name_away()

    def _take_first_name_away(self) -> None:
        """Its writer ended between giving it its name and taking away the one it was made under."""
        part = self.path.with_name(f".{self.path.name}.part")
        with suppress(OSError):
            if os.path.samefile(part, self.path):
                os.unlink(part)

    def _check_head(self) -> None:
        head = os.pread(self._fd, PAGE, 0)
        if not head.startswith(MAGIC):
            raise FileProblem(f"{self.path} is no document of QuickLLaMA")
        if len(head) < PAGE:
            raise FileProblem(f"{self.path} is shortened: not even its first page is whole")
        _, version, order, crc = _HEAD.unpack(head[: _HEAD.size])
        if order not in (_ORDER, int.from_bytes(_ORDER.to_bytes(4, "little"), "big")):
            crc = -1
        elif order != _ORDER:
            raise FileProblem(
                f"{self.path} was made on a machine of the other byte order; this one is "
                f"{sys.byteorder}-endian: read the text here"
            )
        if crc != zlib.crc32(head[: _HEAD.size - 4]):
            raise FileProblem(f"{self.path} is damaged in its first bytes")
        if version != VERSION:
            raise FileProblem(
                f"{self.path} has format {version}, and this version of QuickLLaMA knows {VERSION}"
            )

    def _lock(self, kind: int, busy: str) -> None:
        try:
            fcntl.flock(self._fd, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(busy) from None
        except OSError as problem:
            self._refused(problem, "locked")

    # Reading --------------------------------------------------------------------------------------

    def _newest(self) -> Slot | None:
        slots = [slot for slot in self._slots if slot is not None]
        return max(slots, key=lambda slot: slot.sequence, default=None)

    def state(self) -> bytes:
        """The newest state. Raises FileProblem if it is damaged."""
        slot = self._newest()
        assert slot is not None, "a file that was opened has one"
        return self.checked(Extent(slot.offset, slot.size, slot.crc))

    def read(self, offset: int, size: int) -> bytes:
        """Bytes of the file. Raises FileProblem if it ends before."""
        parts: list[bytes] = []
        left = size
        while left:
            try:
                data = os.pread(self._fd, left, offset)
            except (OSError, OverflowError) as problem:
                raise FileProblem(f"{self.path} cannot be read: {problem}") from None
            if not data:
                raise FileProblem(f"{self.path} is shortened: bytes at {offset:,} are missing")
            parts.append(data)
            left -= len(data)
            offset += len(data)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def checked(self, extent: Extent) -> bytes:
        """What an extent holds. Raises FileProblem if that is not what was written."""
        if extent.offset < 0 or not 0 <= extent.size <= self._end:
            raise FileProblem(f"{self.path} is damaged: it names bytes that it has not")
        data = self.read(extent.offset, extent.size)
        if zlib.crc32(data) != extent.crc:
            raise FileProblem(
                f"{self.path} is damaged: {extent.size:,} bytes at {extent.offset:,} are not those "
                "that were written; read the text anew"
            )
        return data

    def check(self, extents: Iterable[Extent]) -> None:
        """Check many extents, in several threads. Raises FileProblem, or MemoryError."""
        threads = min(_THREADS, os.cpu_count() or 1)
        try:
            with ThreadPoolExecutor(threads) as pool:
                for _ in pool.map(lambda extent: self.checked(extent) and None, extents):
                    pass
        except RuntimeError as problem:  # so says Python
            raise MemoryError(f"no memory to check {self.path}: {problem}") from None

    # Writing --------------------------------------------------------------------------------------

    def append(self, data: bytes | memoryview) -> Extent:
        """Write a new extent. It counts once a state that names it is committed."""
        self._check_whole()
        offset = self._end
        self._write(offset, data)
        # Writing begins at once, so that the next commit has less to wait for.
        if hasattr(os, "posix_fadvise"):  # not on macOS
            with suppress(OSError):
                os.posix_fadvise(self._fd, offset, len(data), os.POSIX_FADV_DONTNEED)
        self._end = _aligned(offset + len(data))
        return Extent(offset, len(data), zlib.crc32(data))

    def commit(self, state: Sequence[bytes | memoryview]) -> None:
        """Make ``state``, the parts one behind the other, the newest one, and sure that it and all
        extents are on the disk."""
        size, crc = 0, 0
        for part in state:
            size, crc = size + len(part), zlib.crc32(part, crc)
        self._check_whole()
        newest = self._newest()
        index = 0 if newest is None or newest is self._slots[1] else 1
        older = self._slots[index]
        place = (older.offset, older.room) if older is not None else (0, 0)
        if place[1] < size:
            place = self._end, _aligned(int(size * _ROOM))
            self._end += place[1]
        offset = place[0]
        for part in state:
            self._write(offset, part)
            offset += len(part)
        try:
            if os.fstat(self._fd).st_size < self._end:
                os.ftruncate(self._fd, self._end)
            os.fsync(self._fd)
        except OSError as problem:
            self._refused(problem, "written")
        sequence = 1 if newest is None else newest.sequence + 1
        slot = Slot(sequence, place[0], size, place[1], self._end, crc)
        # If this does not end well, nobody knows where the slot leads, and no place of a state that
        # it may lead to is written to again.
        self._slots[index] = None
        self._write(_SLOT_PLACES[index], slot.packed())
        try:
            os.fsync(self._fd)
        except OSError as problem:
            self._refused(problem, "written")
        self._slots[index] = slot

    def _check_whole(self) -> None:
        """Nobody has shortened or deleted the file since it was written."""
        try:
            status = os.fstat(self._fd)
        except OSError as problem:
            self._refused(problem, "examined")
        newest = self._newest()
        if newest is not None and status.st_size < newest.end:
            raise FileProblem(
                f"{self.path} was shortened while it was in use; what was read is lost: read the "
                "text anew"
            )
        if not status.st_nlink:
            raise FileProblem(
                f"{self.path} was removed or replaced while it was in use; nothing more can be "
                "kept in it: read the text anew"
            )

    def _write(self, offset: int, data: bytes | memoryview) -> None:
        rest = memoryview(data)
        try:
            while rest:
                written = os.pwrite(self._fd, rest, offset)
                rest = rest[written:]
                offset += written
        except OSError as problem:
            self._refused(problem, "written")

    def _refused(self, problem: OSError, done: str) -> NoReturn:
        reason = problem.strerror or str(problem)
        remedy = ""
        if problem.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = "; make room, and go on: what was read until the last commit is kept"
        elif problem.errno == errno.EFBIG:
            remedy = "; the file may not grow that large here (ulimit -f, or the file system)"
        elif problem.errno == errno.EEXIST:
            remedy = "; choose another name"
        raise FileProblem(f"{self.path} cannot be {done}: {reason}{remedy}") from problem


def _aligned(offset: int) -> int:
    return -(-offset // PAGE) * PAGE


def _rename_new(part: Path, path: Path) -> None:
    """Rename, unless there is a file of that name."""
    try:
        os.link(part, path)
    except OSError as problem:
        if problem.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
            raise
        if os.path.lexists(path):  # this file system has no links
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        os.rename(part, path)
        return
    os.unlink(part)


def _opened(name: Path, flags: int, path: Path) -> int:
    try:
        return os.open(name, flags | os.O_CLOEXEC, 0o666)
    except FileNotFoundError:
        what = f"there is no file {path}" if name == path else f"there is no folder {path.parent}"
        raise FileProblem(what) from None
    except (OSError, ValueError) as problem:
        reason = getattr(problem, "strerror", None) or problem
        verb = "opened" if name == path else "written"
        raise FileProblem(f"{path} cannot be {verb}: {reason}") from None
