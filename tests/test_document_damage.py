"""What can go wrong with a document's file: an error that says so, and never another answer."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_document import MEMORY, PAPER, QUESTION, assert_same_bits
from test_document_file import LIMIT, TEXT, loaded_model, read
from tiny_folder import write_folder

import quickllama as ql
from quickllama.documents import document_file, keeping
from quickllama.documents.state_record import StateRecord
from quickllama.documents.volume_file import PAGE, Slot, VolumeFile

pytestmark = pytest.mark.filterwarnings("ignore:the document takes")  # limits are small


@pytest.fixture(scope="module")
def model(folder: Path) -> ql.Model:
    return loaded_model(folder)


@pytest.fixture
def saved(model: ql.Model, path: Path) -> Path:
    read(model).save(path)
    return path


@pytest.fixture
def short(model: ql.Model, path: Path) -> Path:
    """A file of few slabs, for tests that load it often."""
    read(model, TEXT[:800]).save(path)
    return path


def used(path: Path) -> list[tuple[int, int]]:
    """Bytes [begin, end) of a saved file that count, in order."""
    file = VolumeFile.open(path, write=False)
    slot = file._newest()
    assert slot is not None
    slabs = keeping.Saved.of(file).slabs()
    spans = [(e.offset, e.offset + e.size) for extents in slabs.values() for e in extents]
    return sorted([(0, 20), (512, 568), (slot.offset, slot.offset + slot.size), *spans])


# Damaged files ------------------------------------------------------------------------------------


def test_shortened_at_every_interesting_length(model: ql.Model, short: Path) -> None:
    whole = short.read_bytes()
    edges = {edge for span in used(short) for edge in span} | {PAGE, len(whole)}
    lengths = sorted({edge + by for edge in edges for by in (-1, 0, 1)})
    for length in lengths:
        if 0 <= length < len(whole):
            short.write_bytes(whole[:length])
            with pytest.raises(ql.FileProblem, match=r"book\.qlm (is|holds|cannot)"):
                model.load_document(short)
            with pytest.raises(ql.FileProblem):
                read(model, TEXT[:800], store=short)
            assert short.stat().st_size == length
    short.write_bytes(whole)
    assert_same_bits(model.load_document(short), read(model, TEXT[:800]))


def test_altered_in_every_region(model: ql.Model, short: Path) -> None:
    whole = short.read_bytes()
    rng = np.random.default_rng(1)
    for begin, end in used(short):
        for place in (begin, end - 1, *rng.integers(begin, end, 6).tolist()):
            altered = bytearray(whole)
            altered[place] ^= 1 << int(rng.integers(8))
            short.write_bytes(altered)
            with pytest.raises(ql.FileProblem, match=r"damaged|no document|byte order"):
                model.load_document(short)
    covered = np.zeros(len(whole), bool)
    for begin, end in used_of(whole, short):
        covered[begin:end] = True
    altered = np.frombuffer(whole, np.uint8).copy()
    altered[~covered] ^= 255  # only what fills up pages
    short.write_bytes(altered.tobytes())
    assert_same_bits(model.load_document(short), read(model, TEXT[:800]))


def used_of(whole: bytes, saved: Path) -> list[tuple[int, int]]:
    saved.write_bytes(whole)
    head = [(0, PAGE)]  # with the slot that was never written
    return head + used(saved)


def test_either_slot_of_a_kept_document_is_enough(model: ql.Model, path: Path) -> None:
    kept = read(model, store=path)
    del kept
    whole = path.read_bytes()
    for slot in (512, 1024):
        altered = bytearray(whole)
        altered[slot + 8] ^= 1
        path.write_bytes(altered)
        assert_same_bits(model.load_document(path), read(model))


def rewritten(path: Path, prefix: list[int] | None = None, **changes: Any) -> None:
    """The same file with another table, and with the right checksums."""
    file = VolumeFile.open(path, write=True)
    record = StateRecord.unpacked(file.state(), str(path))
    table = {**record.table, **changes}
    dropped = {key for key, value in changes.items() if value is ...}
    arrays = dict(record.arrays)
    if prefix is not None:
        arrays["prefix"] = np.array(prefix, dtype=np.int32)
    file.commit(StateRecord({k: table[k] for k in table if k not in dropped}, arrays).buffers())


@pytest.mark.parametrize(
    "changes",
    [
        {"memory": {}},
        {"memory": {"n_local": -1}},
        {"memory": 3},
        {"model": {}},
        {"model": []},
        {"prompt": ["a"]},
        {"prompt": [1, 2]},
        {"kv_dtype": "int3"},
        {"title": 3},
        {"skim": {"heads": [[0]]}},
        {"skim": {"heads": [[9, 9]], "found": None}},
        {"counters": {}},
        {"counters": ...},
        {"slabs": {"first": 1}},
        {"prefix": [-1] * 90},
        {"prefix": [10**6] * 90},
        {"prefix": []},
        {"text": {"tail": -1, "dropped": False, "stream_from": None}},
        {"text": {"tail": 10**9, "dropped": False, "stream_from": None}},
        {"text": {"tail": "x", "dropped": False, "stream_from": None}},
    ],
)
def test_a_state_that_makes_no_sense(model: ql.Model, saved: Path, changes: Any) -> None:
    rewritten(saved, **changes)
    with pytest.raises((ql.FileProblem, ql.InvalidValue)):
        model.load_document(saved)


def test_files_of_other_kinds(model: ql.Model, path: Path, tmp_path: Path) -> None:
    for data in (b"", b"text", b"GGUF" + bytes(5000), b"\x89QLM\r\n\x1a\n"):
        path.write_bytes(data)
        for use in (
            lambda: model.load_document(path),
            lambda: read(model, store=path),
            lambda: read(model, store=path, resume=False),
        ):
            with pytest.raises(ql.FileProblem):
                use()
        if data != b"\x89QLM\r\n\x1a\n":
            with pytest.raises(ql.FileProblem, match="no document"):
                read(model, "Kurz.").save(path)
        assert path.read_bytes() == data
    for wrong in (tmp_path, tmp_path / "none" / "x.qlm"):
        with pytest.raises(ql.FileProblem, match="folder"):
            read(model, "Kurz.", store=wrong)
        with pytest.raises(ql.FileProblem, match=r"folder|no file"):
            read(model, "Kurz.").save(wrong)
    with pytest.raises(ql.FileProblem, match="there is no file"):
        model.load_document(tmp_path / "none.qlm")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ql.FileProblem):
        model.load_document(tmp_path / "pipe")
    for value, kind in ((3, ql.InvalidType), ("a\0b", ql.InvalidValue)):
        with pytest.raises(kind):
            model.load_document(value)


def test_a_later_format_and_the_other_byte_order(model: ql.Model, saved: Path) -> None:
    whole = bytearray(saved.read_bytes())
    for version, order, expected in ((2, "=", "format 2"), (1, "swapped", "byte order")):
        sign = {"=": "=", "swapped": ">" if sys.byteorder == "little" else "<"}[order]
        head = whole[:8] + struct.pack(f"{sign}II", version, 0x01020304)
        saved.write_bytes(head + struct.pack("=I", zlib.crc32(head)) + whole[20:])
        with pytest.raises(ql.FileProblem, match=expected):
            model.load_document(saved)


# Another model, other settings --------------------------------------------------------------------


def test_another_model(folder: Path, saved: Path, tmp_path: Path) -> None:
    others: list[tuple[Any, str]] = []
    for name, options, expected in (
        ("weights", {"seed": 6}, "other weights"),
        ("sizes", {"intermediate_size": 64}, "another model"),
        ("template", {"template": None}, "tokenizer or chat template"),
    ):
        write_folder(tmp_path / name, **options)
        others.append((loaded_model(tmp_path / name), expected))
    others.append((loaded_model(folder, dtype="bfloat16"), "held as float32"))
    for other, expected in others:
        with pytest.raises(ql.InvalidValue, match=expected):
            other.load_document(saved)
        with pytest.raises(ql.InvalidValue, match=expected):
            read(other, store=saved)


def test_other_settings(model: ql.Model, saved: Path) -> None:
    before = saved.read_bytes()
    for options, named in (
        ({"memory": PAPER}, "memory"),
        ({"kv_dtype": "float32"}, "kv_dtype"),
        ({"prompt": "{text} {question}"}, "prompt"),
        ({"question": "Wer?", "memory": MEMORY}, "prompt|question"),
    ):
        with pytest.raises(ql.InvalidValue, match=f"with ({named}) ="):
            read(model, store=saved, **options)
    with pytest.raises(ql.InvalidValue, match="characters 0 to"):
        read(model, "Ganz anders. " + TEXT, store=saved)
    with pytest.raises(ql.FileProblem, match="resume=True"):
        read(model, store=saved, resume=False)
    for options in ({"ram_limit": "much"}, {"ram_limit": 0}, {"ram_limit": "1GB", "store": None}):
        with pytest.raises(ql.InvalidValue, match="ram_limit"):
            read(model, **{"store": saved, **options})
    with pytest.raises(ql.InvalidType):
        read(model, store=saved, ram_limit=1.5)
    assert saved.read_bytes() == before


# Two at a time ------------------------------------------------------------------------------------


def test_two_at_a_time(model: ql.Model, path: Path, folder: Path) -> None:
    kept = read(model, store=path)
    code = (
        "import sys, quickllama as ql\n"
        "model = ql.Model.from_pretrained(sys.argv[1], dtype='float32')\n"
        "try:\n    model.load_document(sys.argv[2])\n"
        "except ql.Busy as problem:\n    print(problem)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), str(path)],
        cwd=Path(__file__).parent,  # not the source tree, whose package may not be built
        capture_output=True,
        text=True,
    )
    assert "in use by another document" in done.stdout, done.stderr
    for use in (lambda: model.load_document(path), lambda: read(model, store=path)):
        with pytest.raises(ql.Busy, match="in use"):
            use()
    with pytest.raises(ql.Busy):
        read(model, "Kurz.").save(path)
    del kept
    first, second = model.load_document(path), model.load_document(path)
    with pytest.raises(ql.Busy):
        read(model, store=path)
    assert_same_bits(first, second)


# While it is in use -------------------------------------------------------------------------------


def test_removed_while_mapped(model: ql.Model, saved: Path) -> None:
    loaded = model.load_document(saved, ram_limit=LIMIT)
    saved.unlink()
    assert_same_bits(loaded, read(model))  # the file lives as long as it is open
    loaded.save(saved)
    assert_same_bits(model.load_document(saved), loaded)


def test_removed_while_it_is_written(model: ql.Model, path: Path) -> None:
    def remove(done: int, total: int) -> None:
        path.unlink(missing_ok=True)

    with pytest.raises(ql.FileProblem, match="removed or replaced"):
        read(model, store=path, progress=remove)
    assert not path.exists()


def test_shortened_while_it_is_written(model: ql.Model, path: Path) -> None:
    def shorten(done: int, total: int) -> None:
        if done > 800:
            os.truncate(path, PAGE)

    with pytest.raises(ql.FileProblem, match="shortened"):
        read(model, store=path, progress=shorten)
    with pytest.raises(ql.FileProblem, match="shortened"):
        read(model, store=path)


@pytest.mark.parametrize("use", ["reread", "reposition", "memory"])
def test_shortened_while_mapped(model: ql.Model, saved: Path, use: str) -> None:
    loaded = model.load_document(saved, ram_limit=LIMIT)
    os.truncate(saved, 5 * PAGE)
    for _ in range(2):
        with pytest.raises(ql.FileProblem, match="shortened"):
            loaded.ask(QUESTION, use=use, max_new_tokens=3)
    with pytest.raises(ql.FileProblem):
        loaded.save(saved.with_name("copy"))
    assert not saved.with_name("copy").exists()
    assert read(model).ask(QUESTION, max_new_tokens=1).evidence  # the process goes on


# Disk and permissions -----------------------------------------------------------------------------


@pytest.fixture
def small_files() -> Iterator[Any]:
    """A limit for the size of files, in bytes; Python ignores the signal."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_the_disk_gets_full(model: ql.Model, path: Path, small_files: Any) -> None:
    whole = read(model)
    for size in (100_000, 300_000, 500_000):
        small_files(size)
        with pytest.raises(ql.FileProblem, match="File too large"):
            read(model, store=path)
        if path.exists():
            assert path.stat().st_size <= size
    small_files(resource.RLIM_INFINITY)
    assert_same_bits(read(model, store=path), whole)
    small_files(200_000)
    with pytest.raises(ql.FileProblem, match="File too large"):
        whole.save(path.with_name("copy"))
    assert sorted(os.listdir(path.parent)) == ["book.qlm"]


def test_no_room_is_told_before(
    model: ql.Model, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status = os.statvfs(path.parent)
    room = os.statvfs_result((*status[:4], 3, *status[5:]))
    monkeypatch.setattr(document_file.os, "statvfs", lambda _: room)
    with pytest.raises(ql.FileProblem, match=r"tokens need .* GB .* KB a token"):
        read(model, store=path)
    with pytest.raises(ql.FileProblem, match="make room"):
        read(model).save(path)
    assert not os.listdir(path.parent)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_write_that_fails_can_be_repeated(
    model: ql.Model, path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """At every write once; the document in memory goes on as well."""
    write, count = os.pwrite, 0

    def failing(fd: int, data: Any, offset: int) -> int:
        nonlocal count
        count += 1
        if count == fails_at:
            raise OSError(code, os.strerror(code))
        return write(fd, data, offset)

    whole = read(model)
    monkeypatch.setattr(os, "pwrite", failing)
    fails_at = 12
    document: list[ql.Document] = []
    with pytest.raises(ql.FileProblem, match=os.strerror(code)):
        read(model, store=path)
    count = 10**6
    assert_same_bits(read(model, store=path), whole)
    for later in (1, 3, 7):
        path.unlink()
        fails_at, count = later, 10**6
        document.append(read(model, TEXT[:1000], store=path))
        count = 0
        with pytest.raises(ql.FileProblem):
            document[-1].append(TEXT[1000:])
        document[-1].append("")
        assert_same_bits(document[-1], whole)
        document.clear()
        assert_same_bits(model.load_document(path), whole)


def test_a_slot_that_may_stand_on_the_disk_leads_to_a_whole_state(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit ends between its slot and the word that it is on the disk; the process, while the
    next one is written."""
    file = VolumeFile.create(path)
    for number in range(3):
        file.commit([bytes([number]) * 100])
    file.publish(replace=False)
    write, sync = os.pwrite, os.fsync
    syncs = iter((sync, lambda _: os.close(-1)))
    monkeypatch.setattr(os, "fsync", lambda fd: next(syncs)(fd))
    with pytest.raises(ql.FileProblem, match="cannot be written"):
        file.commit([bytes([3]) * 100])
    monkeypatch.setattr(
        os, "pwrite", lambda fd, data, at: write(fd, data[:50], at) and os.close(-1)
    )
    with pytest.raises(ql.FileProblem, match="cannot be written"):
        file.commit([bytes([4]) * 100])
    monkeypatch.undo()
    del file
    assert VolumeFile.open(path, write=True).state() == bytes([3]) * 100


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become nobody")
def test_no_permission(model: ql.Model, saved: Path) -> None:
    document = read(model, "Kurz.")
    os.chmod(saved, 0o600)
    with tempfile.TemporaryDirectory() as shared:  # pytest's own folders are closed to others
        os.chmod(shared, 0o755)
        path = Path(shared) / "book.qlm"
        secret = Path(shared) / "secret.qlm"
        shutil.copy(saved, secret)
        os.seteuid(65534)
        try:
            for use in (
                lambda: read(model, "Kurz.", store=path),
                lambda: read(model, store=secret),
                lambda: document.save(path),
                lambda: model.load_document(secret),
            ):
                with pytest.raises(ql.FileProblem, match="Permission denied"):
                    use()
        finally:
            os.seteuid(0)


# Memory -------------------------------------------------------------------------------------------

STARVED = """
import resource, sys
import quickllama as ql
from pathlib import Path
from test_document import assert_same_bits
from test_document_file import TEXT, loaded_model, read
model = loaded_model(Path(sys.argv[1]))
ids = model.tokenizer.encode(TEXT * 4)  # tokenizers ends the process when there is no memory
read(model, ids[:99], store=sys.argv[3])  # all that is loaded once
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
for spare in (0, 1 << 18, 1 << 20, 4 << 20, 1 << 24, 1 << 26):
    resource.setrlimit(resource.RLIMIT_AS, (used + spare, resource.RLIM_INFINITY))
    for use in (
        lambda: model.load_document(sys.argv[2]).append(ids),
        lambda: read(model, ids, store=sys.argv[3]),
    ):
        try:
            use()
        except (MemoryError, ql.Error) as problem:
            print(spare, type(problem).__name__, str(problem)[:200])
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
document = read(model, ids, store=sys.argv[3])
assert len(document) == len(ids)
assert_same_bits(document, read(model, ids))
print("alive")
"""


def test_no_memory(folder: Path, saved: Path, tmp_path: Path) -> None:
    tests = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", STARVED, str(folder), str(saved), str(tmp_path / "other.qlm")],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": tests},
        timeout=300,
    )
    assert done.stdout.endswith("alive\n"), (done.returncode, done.stdout, done.stderr[-2000:])
    assert "MemoryError" in done.stdout


def test_slots_are_whole_or_nothing() -> None:
    slot = Slot(3, PAGE, 100, PAGE, 3 * PAGE, 77)
    data = slot.packed()
    assert Slot.unpacked(data) == slot
    assert Slot.unpacked(bytes(len(data))) is None
    for index in range(len(data)):
        assert Slot.unpacked(data[:index] + bytes([data[index] ^ 4]) + data[index + 1 :]) is None
