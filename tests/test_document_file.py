"""Documents in files: the same bits once saved, loaded, interrupted, and under a small limit."""

from __future__ import annotations

import dataclasses
import itertools
import os
import warnings
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_document import (
    MEMORY,
    PAPER,
    QUESTION,
    asked_by_threads,
    assert_same_bits,
    ctrl_c_at,
    same,
    state,
)
from test_skim import EVERY_HEAD, assert_same_numbers
from test_skim import MEMORY as SKIM_MEMORY
from tiny_folder import write_folder

import quickllama as ql
from quickllama.documents import keeping
from quickllama.documents.head_store import RetrievalHeads, SkimHeads
from quickllama.documents.keeping import Room
from quickllama.documents.volume_file import VolumeFile, is_document
from quickllama.prompt import PASSAGES_PROMPT, text_tokens

pytestmark = pytest.mark.filterwarnings("ignore:the document takes")  # limits are small

TEXT = "Zwölf Boxkämpfer jagen Viktor 😀 quer über den großen Sylter Deich. Ende <|end|> nie. " * 60
LIMIT = 20_000  # bytes; a page of the tiny model has 4,096


def loaded_model(folder: Path, **options: Any) -> ql.Model:
    model = ql.Model.from_pretrained(folder, **{"dtype": "float32", "n_threads": 1, **options})
    heads = RetrievalHeads(
        model.fingerprint, ((1, 3), (0, 1)), "made up", None, SkimHeads(EVERY_HEAD)
    )
    model.retrieval_heads = heads
    return model


@pytest.fixture(scope="module")
def model(folder: Path) -> ql.Model:
    return loaded_model(folder)


def read(model: ql.Model, text: Any = TEXT, **options: Any) -> ql.Document:
    return model.read(text, **{"memory": MEMORY, "title": "Sylt", **options})


def answers(document: ql.Document) -> list[ql.Answer]:
    uses = ("reread",) if document.skimmed else ("reread", "reposition", "memory")
    return [document.ask(QUESTION, use=use, passages=2, max_new_tokens=6) for use in uses]


# The same bits ------------------------------------------------------------------------------------


def test_saved_and_loaded(model: ql.Model, path: Path) -> None:
    document = read(model)
    expected = answers(document)
    document.save(path)
    assert is_document(path) and not list(path.parent.glob(".*"))
    for limit in (None, LIMIT, "1 KB", "1GB"):
        again = model.load_document(path, ram_limit=limit, verify=limit != "1GB")
        assert len(again) == len(document) and (again.title, again.question) == ("Sylt", None)
        assert again.text == document.text and again.memory.n_local == MEMORY.n_local
        assert_same_bits(again, document)
        assert all(map(same, answers(again), expected))
    assert (
        again.ask(QUESTION, max_new_tokens=2).notes
        == document.ask(QUESTION, max_new_tokens=2).notes
    )


def test_kept_while_it_is_read(model: ql.Model, path: Path) -> None:
    document = read(model)
    kept = read(model, store=path, ram_limit=LIMIT)
    assert_same_bits(kept, document)
    assert kept.nbytes < document.nbytes / 2
    roomy = read(model, store=path.with_name("roomy"), ram_limit="400 KB")
    assert_same_bits(roomy, document)
    assert 250_000 < roomy.nbytes <= 400_000 < document.nbytes  # its window and text included
    assert all(map(same, answers(kept), answers(document)))
    del kept
    loaded = model.load_document(path, ram_limit=LIMIT)
    assert_same_bits(loaded, document)
    assert loaded.nbytes < document.nbytes / 2


def test_more_than_the_limit_is_told(model: ql.Model, path: Path) -> None:
    with pytest.warns(UserWarning, match=r"takes .* MiB, more than its ram_limit"):
        read(model, store=path, ram_limit=LIMIT).close()
    with pytest.warns(UserWarning, match=r"takes .* MiB, more than its ram_limit"):
        model.load_document(path, ram_limit=LIMIT).close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.load_document(path, ram_limit="1MB")


def test_the_limit_counts_what_is_not_in_the_file(model: ql.Model, path: Path) -> None:
    """Window and what is not full four times, the text twice; a quarter stays in any case."""
    document = read(model, store=path, ram_limit="2 MB")
    keeper = document._keeper
    assert keeper is not None and keeper._room is not None
    session, text, volume = document._session, document._text, keeper._room.volume
    budgets: list[int] = []

    class Budget:
        nbytes = volume.nbytes
        set_budget = budgets.append

    held = 4 * (session.nbytes - volume.nbytes) + 2 * text.nbytes
    for limit in (10 * held, held + 1, 1000):
        Room(Budget(), limit).fit(session, text)  # as the volume
    assert budgets == [9 * held, (held + 1) // 4, 250]


@pytest.mark.parametrize("kv_dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("mode", ["full", "stream", "infinite", "infllm", "qllm"])
def test_every_mode(model: ql.Model, path: Path, mode: str, kv_dtype: str) -> None:
    memory = dataclasses.replace(PAPER, mode=mode)
    options = {"memory": memory, "kv_dtype": kv_dtype}
    document = read(model, **options)
    expected = document.ask(QUESTION, retrieval=None, max_new_tokens=5)
    document.save(path)
    kept = read(model, **options, store=path.with_name("kept"), ram_limit=LIMIT)
    for other in (model.load_document(path, ram_limit=LIMIT), kept):
        assert same(other.ask(QUESTION, max_new_tokens=5), expected)
        forks = [d._snapshot().fork_whole() for d in (other, document)]
        np.testing.assert_array_equal(*(fork.feed([1, 2, 3]) for fork in forks))


@pytest.mark.parametrize("keep", [False, True])
def test_read_for_a_question(model: ql.Model, path: Path, keep: bool) -> None:
    memory = dataclasses.replace(PAPER, n_init=3, keep_query_tokens=keep)
    options = {"question": QUESTION, "memory": memory}
    document = read(model, **options)
    kept = read(model, **options, store=path)
    loaded = [kept]
    document.save(path.with_name("saved"))
    loaded.append(model.load_document(path.with_name("saved")))
    for other in loaded:
        assert other.question == QUESTION and other.memory.keep_query_tokens is keep
        assert same(other.ask(max_new_tokens=8), document.ask(max_new_tokens=8))
    short = read(model, "Kurz.", **options)  # its question is still to be read
    short.save(path.with_name("short"))
    again = model.load_document(path.with_name("short"))
    assert same(again.ask(max_new_tokens=4), short.ask(max_new_tokens=4))


def test_skimmed(model: ql.Model, path: Path) -> None:
    document = model.skim(TEXT, memory=SKIM_MEMORY)
    kept = model.skim(TEXT, memory=SKIM_MEMORY, store=path, ram_limit=LIMIT)
    assert kept.nbytes < document.nbytes
    document.save(path.with_name("saved"))
    loaded = model.load_document(path.with_name("saved"), ram_limit=LIMIT)
    for other in (kept, loaded):
        assert other.skimmed
        assert_same_numbers(other, document)
        assert all(map(same, answers(other), answers(document)))


def test_token_ids(model: ql.Model, path: Path) -> None:
    ids = text_tokens(model.tokenizer, TEXT)[0]
    for count in (len(ids) - 1, 57, 58, 59):  # also within a character
        document = read(model, ids[:count])
        document.save(path)
        again = model.load_document(path)
        for one in (document, again):
            one.append(ids[count:])
            one.append("und mehr")
        assert_same_bits(again, document)


# Going on -----------------------------------------------------------------------------------------


def stop_after(tokens: int) -> Any:
    def stop(done: int, total: int) -> None:
        if done >= tokens:
            raise KeyboardInterrupt

    return stop


@pytest.mark.parametrize("options", [{}, {"memory": PAPER}, {"question": QUESTION}])
def test_an_interrupted_reading_goes_on(model: ql.Model, path: Path, options: Any) -> None:
    options = {"memory": PAPER if "question" in options else MEMORY, **options}
    whole = read(model, **options)
    for tokens in (1, 500, 900, 2000):
        with pytest.raises(KeyboardInterrupt):
            read(model, **options, store=path, progress=stop_after(tokens))
        with pytest.raises(ql.InvalidValue, match="not read to its end"):
            model.load_document(path)
    seen: list[int] = []
    document = read(model, **options, store=path, progress=lambda done, _: seen.append(done))
    assert seen[0] > 2000 and seen[-1] > len(whole) - MEMORY.exc_block_size
    if "question" in options:
        assert same(document.ask(max_new_tokens=6), whole.ask(max_new_tokens=6))
    else:
        assert_same_bits(document, whole)
    del document
    seen.clear()
    again = read(model, **options, store=path, progress=lambda done, _: seen.append(done))
    assert min(seen) > len(whole) - MEMORY.exc_block_size and len(again) == len(whole)


@pytest.mark.parametrize(("where", "step"), [("keeping.py:take_full", 1), ("documents/", 43)])
def test_ctrl_c_while_it_is_read(model: ql.Model, path: Path, where: str, step: int) -> None:
    """The document in memory goes on, and so does the file."""
    text = TEXT[:240]
    whole = read(model, text)
    number, stopped = 0, True
    while stopped:
        number += step
        document = read(model, text[:150], store=path)
        stopped = ctrl_c_at(number, partial(document.append, text[150:]), where)
        if number % 2:
            document.append(text[len(document.text) :])
            assert_same_bits(document, whole)
        del document
        assert_same_bits(read(model, text, store=path), whole)
        path.unlink()
    assert number > 40 * step


def test_a_longer_text_goes_on_too(model: ql.Model, path: Path) -> None:
    whole = read(model)
    cuts = (0, 300, 301, 2000, len(TEXT))
    for end in cuts[1:]:
        read(model, TEXT[:end], store=path)
    assert_same_bits(model.load_document(path), whole)
    parts = [TEXT[a:b] for a, b in itertools.pairwise(cuts)]
    assert_same_bits(read(model, iter(parts), store=path), whole)
    grown = read(model, parts, store=path)
    grown.append("Und mehr.")
    whole.append("Und mehr.")
    del grown
    assert_same_bits(model.load_document(path), whole)
    with pytest.raises(ql.InvalidValue, match="goes on behind"):
        read(model, store=path)


def test_ids_go_on(model: ql.Model, path: Path) -> None:
    ids = text_tokens(model.tokenizer, TEXT)[0]
    read(model, ids[:1000], store=path)
    assert_same_bits(read(model, ids.tolist(), store=path), read(model, ids))
    for batch in (ids[np.newaxis], [ids.tolist()]):  # as tokenizers give them
        assert_same_bits(read(model, batch, store=path), read(model, ids))
        assert_same_bits(read(model, batch, store=path.with_name("batch")), read(model, ids))
    with pytest.raises(ql.InvalidValue, match="vocabulary"):
        read(model, [*ids.tolist(), 9999], store=path)
    with pytest.raises(ql.InvalidValue, match="token ids"):
        read(model, store=path)
    with pytest.raises(ql.InvalidValue, match="another text"):
        read(model, ids[::-1].copy(), store=path)


def test_what_is_appended_to_a_loaded_document_is_saved_anew(model: ql.Model, path: Path) -> None:
    half, whole = len(TEXT) // 2, read(model)
    read(model, TEXT[:half]).save(path)
    loaded = model.load_document(path, ram_limit=LIMIT)
    before = path.read_bytes()
    loaded.append(TEXT[half:])
    assert path.read_bytes() == before
    assert_same_bits(loaded, whole)
    loaded.save(path)  # over the file that it is read from
    assert_same_bits(loaded, whole)
    assert_same_bits(model.load_document(path), whole)
    loaded.append("Noch mehr.")


def test_saving_a_kept_document(model: ql.Model, path: Path) -> None:
    kept = read(model, store=path)
    kept.save(path)
    kept.save(path.with_name("copy"))
    del kept
    assert_same_bits(model.load_document(path), model.load_document(path.with_name("copy")))


def test_what_cannot_be_appended_leaves_a_document_whole(model: ql.Model, path: Path) -> None:
    copy = path.with_name("copy")
    kept = read(model, store=path)
    for wrong in (None, [1, 9999], "half \ud800", [b"bytes"]):
        with pytest.raises(ql.Error):
            kept.append(wrong)
        kept.save(copy)
        kept.save(path)
    with pytest.raises(KeyboardInterrupt):
        kept.append(TEXT, progress=stop_after(1))
    for where in (copy, path):
        with pytest.raises(ql.InvalidValue, match="interrupted"):
            kept.save(where)
    assert_same_bits(model.load_document(copy), read(model))
    kept.append("")
    kept.save(path)
    del kept
    assert_same_bits(model.load_document(path), read(model, TEXT + TEXT))


def test_commits_come_now_and_then_and_do_not_grow_the_file(
    model: ql.Model, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read(model, store=path)
    usual = path.stat().st_size
    monkeypatch.setattr(keeping, "_INTERVAL", 0.0)
    monkeypatch.setattr(keeping, "_SHARE", 0.0)
    commits: list[int] = []
    commit = VolumeFile.commit
    monkeypatch.setattr(
        VolumeFile, "commit", lambda self, *given: commits.append(1) or commit(self, *given)
    )
    other = path.with_name("other")
    document = read(model, store=other)
    assert len(commits) > len(document) // MEMORY.exc_block_size
    assert other.stat().st_size < 1.2 * usual
    assert_same_bits(document, read(model))


def test_others_go_on_while_it_is_saved(
    model: ql.Model, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document, half = read(model, TEXT[:2000]), read(model, TEXT[:2000])
    append = VolumeFile.append

    def meanwhile(self: VolumeFile, data: Any) -> Any:
        monkeypatch.setattr(VolumeFile, "append", append)
        document.append(TEXT[2000:])
        document.ask(QUESTION, max_new_tokens=2)
        return append(self, data)

    monkeypatch.setattr(VolumeFile, "append", meanwhile)
    document.save(path)
    assert_same_bits(model.load_document(path), half)
    assert_same_bits(document, read(model))


def test_nobody_appends_from_within(
    model: ql.Model, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a signal handler could, in the thread that copies the document or writes it."""
    document, other = read(model, store=path, ram_limit=LIMIT), read(model)
    text = document.text
    tries: list[type[BaseException]] = []

    def within(of: Any) -> Any:
        def call(*given: Any, **named: Any) -> Any:
            with pytest.raises(ql.Busy, match="once it is done") as refused:
                document.append("Mehr. ")
            tries.append(refused.type)
            return of(*given, **named)

        return call

    with monkeypatch.context() as patched:
        patched.setattr(document._text, "tail", within(document._text.tail))
        assert_same_bits(document, other)
        patched.setattr(document, "_reading", within(document._reading))
        document.save(path)
    assert len(tries) == 2
    document.append("Mehr. ")
    assert document.text == text + "Mehr. "


def test_a_slab_that_could_not_be_mapped_is_mapped_later(
    model: ql.Model, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mapped: list[int] = []

    class Session:
        """As a real one; every third mapping fails."""

        def slabs(self, part: str) -> tuple[int, ...]:
            return (16, 8, 5, 0, 5) if part == "pages" else (16, 8, 0, 0, 0)

        def copy_slab(self, part: str, index: int) -> Any:
            return np.full(16, index, np.uint8)

        def map_slab(self, part: str, index: int, volume: Any, offset: int) -> None:
            failing.append(index)
            if len(failing) % 3 == 0:
                raise MemoryError
            mapped.append(index)

    failing: list[int] = []
    session: Any = Session()
    document = read(model, store=path, ram_limit=LIMIT)
    keeper = document._keeper
    assert keeper is not None and keeper._room is not None
    keeper.known({part: [] for part in keeping.PARTS})
    for _ in range(3):
        with suppress(MemoryError):
            keeper.take_full(session)
    assert mapped == [0, 1, 2, 3, 4] and len(keeper._slabs["pages"]) == 5


def test_nothing_to_read_leaves_no_file(model: ql.Model, path: Path) -> None:
    for source in ("", " \n", [], ["", " "], 3, b"bytes", [1, 9999]):
        with pytest.raises(ql.Error):
            read(model, source, store=path)
    with pytest.raises(ql.InvalidType, match="progress"):
        read(model, store=path, progress=3)
    assert not os.listdir(path.parent)


def test_threads_ask_a_loaded_document(model: ql.Model, path: Path) -> None:
    document = read(model)
    document.save(path)
    loaded = model.load_document(path, ram_limit="5KB")
    questions = ["Wer?", "Wo 12?", "Warum denn nicht, du?", "x"]
    serial = [document.ask(question, max_new_tokens=8) for question in questions]
    assert all(map(same, asked_by_threads(loaded, questions, max_new_tokens=8), serial))


def test_another_cpu_is_noted(folder: Path, model: ql.Model, path: Path) -> None:
    read(model).save(path)
    other = loaded_model(folder)
    other.cpu = "an abacus"
    notes = other.load_document(path).ask(QUESTION, max_new_tokens=2).notes
    assert any("abacus" in note for note in notes)


def test_a_file_that_was_renamed_or_linked_to(model: ql.Model, path: Path) -> None:
    document = read(model)
    document.save(path)
    link = path.with_name("link")
    link.symlink_to(path)
    longer = read(model, TEXT + TEXT)
    longer.save(link)
    assert link.is_symlink() and len(model.load_document(path)) == len(longer)
    os.rename(path, path.with_name("moved"))
    assert len(model.load_document(path.with_name("moved"))) == len(longer)


def test_settings_stay(model: ql.Model, path: Path) -> None:
    read(model, prompt="A {text} B {question} C", kv_dtype="float32").save(path)
    loaded = model.load_document(path)
    assert loaded._form.after == " B {question} C" and loaded._session.kv_dtype == "float32"
    assert PASSAGES_PROMPT and state(loaded)[0] == TEXT


@pytest.mark.parametrize("question", [None, QUESTION])
def test_a_chat_template_that_tells_the_date(
    tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch, question: str | None
) -> None:
    """Llama 3's does: what was read goes on the next day, as it began."""
    dated = "{{ strftime_now('%d %b') }} {% for m in messages %}{{ m['content'] }}{% endfor %}"
    write_folder(tmp_path / "dated", template=dated)
    model = loaded_model(tmp_path / "dated")
    options: dict[str, Any] = {"question": question, "memory": MEMORY if not question else PAPER}

    def today(date: str) -> None:
        monkeypatch.setattr("quickllama.chat._strftime_now", lambda form: date)
        monkeypatch.setattr(model, "_tokenizer", None)

    today("30 Nov")
    document = read(model, **options)
    document.save(path)
    short = read(model, "Kurz.", **options)  # nothing of it is computed yet
    short.save(path.with_name("short"))
    with pytest.raises(KeyboardInterrupt):
        read(model, **options, store=path.with_name("kept"), progress=stop_after(900))
    today("1st of December, Tuesday")
    loaded = model.load_document(path)
    assert_same_bits(loaded, document)
    assert same(
        loaded.ask(question or QUESTION, max_new_tokens=6),
        document.ask(question or QUESTION, max_new_tokens=6),
    )
    again = model.load_document(path.with_name("short"))
    assert_same_bits(again, short)
    assert_same_bits(read(model, store=path.with_name("kept"), **options), document)
    assert not np.array_equal(read(model, "Kurz.", **options)._prefix, short._prefix)
