"""Killed while it reads or saves: the file opens, reading goes on, and the bits are the same."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_document import assert_same_bits
from test_document_file import TEXT, loaded_model
from test_document_file import read as read_text

import quickllama as ql
from quickllama.documents import keeping

pytestmark = pytest.mark.filterwarnings("ignore:the document takes")  # limits are small

BOOK = TEXT[:1200]
CALLS = ("pwrite", "fsync", "ftruncate", "link", "unlink", "replace")


def read(model: ql.Model, text: str = BOOK, **options: Any) -> ql.Document:
    return read_text(model, text, **options)


@pytest.fixture(scope="module")
def model(folder: Path) -> ql.Model:
    return loaded_model(folder)


@pytest.fixture(autouse=True)
def commit_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "_INTERVAL", 0.0)
    monkeypatch.setattr(keeping, "_SHARE", 0.0)


def in_child(work: Callable[[], object], seconds: float | None = None) -> bool:
    """Run in a process of its own, which is killed after a while; whether it came to its end."""
    child = os.fork()
    if not child:
        try:
            work()
            os._exit(0)
        except BaseException as problem:
            os.write(2, f"{problem!r}\n".encode())
            os._exit(1)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL), "the child failed by itself"
    return status == 0


def killed_at(number: int, half: bool) -> None:
    """From now on this process lives until its call ``number`` of those that change files; of a
    write that is the last one, half is done."""
    left = number

    def limited(name: str) -> Callable[..., Any]:
        usual = getattr(os, name)

        def call(*given: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                if half and name == "pwrite":
                    fd, data, offset = given
                    usual(fd, memoryview(data)[: len(data) // 2], offset)
                os.kill(os.getpid(), signal.SIGKILL)
            return usual(*given, **options)

        return call

    for name in CALLS:
        setattr(os, name, limited(name))


def assert_goes_on(model: ql.Model, path: Path, whole: ql.Document) -> None:
    if path.exists():
        try:
            document = model.load_document(path)
        except ql.InvalidValue as problem:
            assert "not read to its end" in str(problem)
        else:
            assert_same_bits(document, whole)
            del document
    document = read(model, store=path, ram_limit="20KB")
    assert_same_bits(document, whole)
    del document
    assert_same_bits(model.load_document(path), whole)
    assert os.listdir(path.parent) == [path.name]


def kills_while_reading(model: ql.Model, folder: Path, count: int) -> None:
    whole = read(model)
    path = folder / "book.qlm"
    started = time.perf_counter()
    assert in_child(lambda: read(model, store=path))
    usual = time.perf_counter() - started
    rng = np.random.default_rng(count)
    killed = 0
    while killed < count:
        path.unlink()
        for _ in range(int(rng.integers(1, 4))):  # killed again while it goes on
            killed += not in_child(lambda: read(model, store=path), rng.uniform(0, usual))
        assert_goes_on(model, path, whole)


def kills_while_saving(model: ql.Model, folder: Path, count: int) -> None:
    old, new = read(model, BOOK[:300]), read(model)
    path = folder / "book.qlm"
    started = time.perf_counter()
    assert in_child(lambda: new.save(path))
    usual = time.perf_counter() - started
    rng = np.random.default_rng(count)
    killed = 0
    while killed < count:
        old.save(path)
        killed += not in_child(lambda: new.save(path), rng.uniform(0, usual))
        document = model.load_document(path)
        assert_same_bits(document, new if len(document) == len(new) else old)


def test_killed_at_random_moments(model: ql.Model, tmp_path: Path) -> None:
    kills_while_reading(model, tmp_path, 6)
    kills_while_saving(model, tmp_path, 6)


@pytest.mark.slow
def test_killed_at_a_hundred_random_moments(model: ql.Model, tmp_path: Path) -> None:
    kills_while_reading(model, tmp_path, 70)
    kills_while_saving(model, tmp_path, 40)


def test_killed_at_each_of_the_first_calls(model: ql.Model, tmp_path: Path) -> None:
    whole = read(model)
    path = tmp_path / "book.qlm"

    def reading(number: int) -> None:
        killed_at(number, half=number % 2 == 0)
        read(model, store=path)

    for number in [*range(1, 24), 31, 40, 51, 60]:
        assert not in_child(lambda number=number: reading(number))
        assert_goes_on(model, path, whole)
        path.unlink()


def test_killed_at_each_call_of_saving(model: ql.Model, tmp_path: Path) -> None:
    old, new = read(model, BOOK[:300]), read(model, BOOK[:500])
    path = tmp_path / "book.qlm"

    def saving(number: int) -> None:
        killed_at(number, half=number % 2 == 0)
        new.save(path)

    old.save(path)
    number, done = 0, False
    while not done:
        number += 1
        done = in_child(lambda number=number: saving(number))
        document = model.load_document(path)
        assert_same_bits(document, new if len(document) == len(new) else old)
        if not done and len(document) == len(new):
            old.save(path)
    assert number > 20
