"""Documents that are closed, or that fail: their files are free, whoever still refers to them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_document import MEMORY, QUESTION, assert_same_bits, same
from test_document_file import LIMIT, TEXT, loaded_model, read

import quickllama as ql

pytestmark = pytest.mark.filterwarnings("ignore:the document takes")  # limits are small


@pytest.fixture(scope="module")
def model(folder: Path) -> ql.Model:
    return loaded_model(folder)


def test_a_closed_document_gives_up_its_memory(model: ql.Model) -> None:
    document = read(model)
    held, empty = document.nbytes, model.session(ql.MemoryConfig(mode="full")).nbytes
    document.close()
    document.close()
    assert document.nbytes < held / 4 + empty  # its text is left
    assert document.text == TEXT and len(document) > 100 and "Sylt" in repr(document)
    for call in (
        lambda: document.ask(QUESTION),
        lambda: document.append("more"),
        lambda: document.save("nowhere"),
        document._snapshot,
    ):
        with pytest.raises(ql.InvalidValue, match="is closed"):
            call()


def test_a_closed_document_frees_its_file(model: ql.Model, path: Path) -> None:
    with read(model, store=path, ram_limit=LIMIT) as kept:
        with pytest.raises(ql.Busy, match=r"close that one first"):
            read(model, store=path)
        expected = kept.ask(QUESTION, max_new_tokens=4)
    again = read(model, store=path)  # as a notebook's cell that is run twice
    assert same(again.ask(QUESTION, max_new_tokens=4), expected)
    again.close()
    loaded = model.load_document(path)
    with pytest.raises(ql.Busy):
        read(model, store=path)
    loaded.close()
    assert_same_bits(read(model, store=path), read(model))


def test_closing_waits_for_nobody_and_disturbs_no_answer(model: ql.Model, path: Path) -> None:
    document = read(model, store=path, ram_limit=LIMIT)
    expected = document.ask(QUESTION, max_new_tokens=8)
    begun, closed = threading.Event(), threading.Event()

    def hold(piece: str) -> None:
        begun.set()
        assert closed.wait(60)

    found: list[ql.Answer] = []
    asking = threading.Thread(
        target=lambda: found.append(document.ask(QUESTION, max_new_tokens=8, stream=hold))
    )
    asking.start()
    assert begun.wait(60)
    document.close()
    with pytest.raises(ql.Busy):  # it is being answered from
        read(model, store=path)
    closed.set()
    asking.join()
    assert [answer.text for answer in found] == [expected.text]
    read(model, store=path).close()


@pytest.mark.parametrize("begun", [False, True])
def test_what_fails_frees_its_file(model: ql.Model, path: Path, begun: bool) -> None:
    """Though the exception is kept, as a prompt's sys.last_traceback keeps it."""
    if begun:
        read(model, TEXT[:2000], store=path).close()

    def text() -> Iterator[str]:
        yield TEXT[:3000]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as kept:
        read(model, text(), store=path)
    document = read(model, store=path)  # goes on
    assert_same_bits(document, read(model))
    assert kept.traceback
    document.close()


def test_a_file_that_does_not_fit_is_free(model: ql.Model, path: Path) -> None:
    read(model, store=path).close()
    with pytest.raises(ql.InvalidValue) as kept:
        read(model, "Another text. " * 60, store=path)
    with pytest.raises(ql.InvalidValue) as kept_too:
        model.load_document(path, ram_limit="nothing")
    read(model, store=path).close()
    assert kept.traceback and kept_too.traceback


def test_inside_its_own_progress_it_cannot_be_closed(model: ql.Model) -> None:
    document = model.read(TEXT, memory=MEMORY)

    def progress(done: int, total: int) -> None:
        document.close()

    with pytest.raises(ql.Busy, match="closes"):
        document.append(TEXT, progress=progress)
    document.close()


def test_what_was_interrupted_is_read_once_by_who_asks(model: ql.Model, path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done > 300:
            raise KeyboardInterrupt

    for options in ({}, {"store": path}):
        document = read(model, TEXT[:60], **options)
        with pytest.raises(KeyboardInterrupt):
            document.append(TEXT[60:], progress=stop)
        before = document.nbytes
        answer = document.ask(QUESTION, max_new_tokens=4)
        assert document.nbytes > before
        done = len(document._session)
        assert done > len(document) - 2 * MEMORY.exc_block_size
        assert same(document.ask(QUESTION, max_new_tokens=4), answer)
        assert len(document._session) == done
        assert_same_bits(document, read(model))
        document.close()
