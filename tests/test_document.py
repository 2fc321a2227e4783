"""Documents: the same bits however a text arrives, forks that leave each other alone, offsets."""

from __future__ import annotations

import _thread
import dataclasses
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prompts import paper_prompt
from small_tokenizers import KINDS, pieces, small_tokenizer, texts

import quickllama as ql
from quickllama.documents.document import Document
from quickllama.documents.growing_text import GrowingText
from quickllama.documents.state_record import StateRecord
from quickllama.prompt import PASSAGES_PROMPT, POINTED_OUT, PromptForm, text_tokens

MEMORY = ql.MemoryConfig(
    mode="infllm", n_init=8, n_local=48, block_size=16, topk=0, exc_block_size=32
)
PAPER = ql.MemoryConfig(n_init=8, n_local=48, block_size=16, topk=2, exc_block_size=32)
TEXT = "Zwölf Boxkämpfer jagen Viktor 😀 quer über den großen Sylter Deich. Ende <|end|> nie. " * 12
QUESTION = "Wer jagt wen?"


@pytest.fixture(scope="module")
def model(folder: Path) -> ql.Model:
    return ql.Model.from_pretrained(folder, dtype="float32", n_threads=1)


def same(first: ql.Answer, second: ql.Answer) -> bool:
    """Whether two answers are equal but for the time they took."""
    timeless = [
        {k: v for k, v in answer.to_dict().items() if "seconds" not in k}
        for answer in (first, second)
    ]
    return timeless[0] == timeless[1]


def state(document: ql.Document) -> list[Any]:
    """Every number that an answer can depend on, read out of a fork that has read everything."""
    snapshot = document._snapshot()
    session = snapshot.fork_whole()
    heads = [(layer, head) for layer in range(2) for head in range(4)]
    queries = session.listen([1, 2, 3], heads)
    scores = session.rank(heads, queries, 0, len(session), 1)
    return [document.text, len(document), snapshot.offsets, queries, scores, session.feed([5])]


def assert_same_bits(first: ql.Document, second: ql.Document) -> None:
    for one, other in zip(state(first), state(second), strict=True):
        np.testing.assert_array_equal(one, other)


def same_state(first: StateRecord, second: StateRecord) -> bool:
    """Whether two texts and all their tokens are equal."""
    equal = [np.array_equal(array, second.arrays[name]) for name, array in first.arrays.items()]
    return first.table == second.table and all(equal)


def assert_same_looked_up(first: ql.Document, second: ql.Document) -> None:
    """The same question vectors, and the same logits of what is looked up by them."""
    forks = [document._snapshot().fork() for document in (first, second)]
    np.testing.assert_array_equal(*(fork.feed(range(3, 60)) for fork in forks))
    for layer in range(2):
        np.testing.assert_array_equal(*(fork.question_vector(layer) for fork in forks))


def asked_by_threads(
    document: ql.Document, questions: Sequence[str], **options: Any
) -> list[ql.Answer]:
    """The answers, each from a thread of its own."""
    with ThreadPoolExecutor(len(questions)) as pool:
        return list(pool.map(lambda question: document.ask(question, **options), questions))


class Arriving:
    """``Arriving()[SIGINT]``: the signal has come, and waits for where Python looks for signals. A
    call would look at once, at its return."""

    __getitem__ = _thread.interrupt_main


def ctrl_c_at(number: int, work: Callable[[], object], where: str) -> bool:
    """Run ``work``, and press Ctrl-C before line ``number`` of those that it comes to in functions
    whose "file:name" holds the expression ``where``. Whether there was such a line.

    KeyboardInterrupt is raised where Python next looks for signals, as always: between some lines
    it never does, and the code may rely on that.
    """
    left = number

    def trace(frame: Any, event: str, _: object) -> Any:
        nonlocal left
        if not re.search(where, f"{frame.f_code.co_filename}:{frame.f_code.co_name}"):
            return None
        left -= event == "line"
        if left == 0:
            sys.settrace(None)  # or it would look in the next call of this function
            Arriving()[signal.SIGINT]
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
        time.sleep(0)  # where it looks at the latest
    except KeyboardInterrupt:
        assert left == 0
    finally:
        sys.settrace(before)
    return left == 0


def whole_and_interrupted(read: Callable[..., ql.Document]) -> tuple[ql.Document, ql.Document]:
    """TEXT read at once, and read on after an interruption."""
    seen: list[tuple[int, int]] = []
    whole = read(TEXT, progress=lambda *done: seen.append(done))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == seen[-1][1] and len(seen) > 5

    def stop(done: int, total: int) -> None:
        if done > 300:
            raise KeyboardInterrupt

    stopped = read(TEXT[:60])
    with pytest.raises(KeyboardInterrupt):
        stopped.append(TEXT[60:], progress=stop)
    stopped.append("")
    return whole, stopped


# The text -----------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(KINDS), st.one_of(texts, pieces), st.data())
def test_tokens_do_not_depend_on_how_a_text_is_cut(kind: str, text: str, data: Any) -> None:
    tokenizer = small_tokenizer(kind)
    text = text * data.draw(st.integers(1, 4))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    growing = GrowingText(tokenizer)
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        growing.add(text[start:end])
    ids, offsets = tokenizer.encode_with_offsets(
        text, add_special_tokens=False, parse_special=False
    )
    tail, spans = growing.tail()
    assert growing.text == text
    np.testing.assert_array_equal(np.concatenate([growing.ids(), tail]), ids)
    np.testing.assert_array_equal(np.concatenate([growing.offsets(), spans]), offsets)


@pytest.mark.parametrize("kind", ["smollm", "llama-bpe", "llama"])
def test_most_tokens_are_certain_while_a_text_grows(kind: str) -> None:
    growing = GrowingText(small_tokenizer(kind))
    growing.add("The quick brown fox jumps over the lazy dog. " * 40)
    assert len(growing.tail()[0]) < 40 < len(growing)


@pytest.mark.parametrize("kind", ["smollm", "llama"])
def test_ctrl_c_while_a_text_grows_changes_nothing(kind: str) -> None:
    """At every line: what has arrived counts whole or not at all, and the rest goes on."""
    tokenizer = small_tokenizer(kind)
    ids = text_tokens(tokenizer, "drei 😀 Wörter ")[0]
    parts = ["Sylter Deich. " * 4, "", "Jagt 😀 wen? ", ids[:7], ids[7:], "Und mehr. " * 3]

    def grow(growing: GrowingText, arriving: Sequence[Any]) -> None:
        for part in arriving:
            growing.add(part) if isinstance(part, str) else growing.add_ids(part)

    stages = []
    for count in range(len(parts) + 1):
        grow(growing := GrowingText(tokenizer), parts[:count])
        stages.append(growing.state())
    number, stopped = 0, True
    while stopped:
        number += 1
        growing = GrowingText(tokenizer)
        work = partial(grow, growing, parts)
        stopped = ctrl_c_at(number, work, r"/(growing_text|stream)\.py:")
        state = growing.state()
        known = [index for index, stage in enumerate(stages) if same_state(stage, state)]
        assert known, number
        grow(growing, parts[known[-1] :])
        assert same_state(growing.state(), stages[-1]), number
    assert number > 200


def test_read_append_and_parts_give_the_same_bits(model: ql.Model) -> None:
    whole = model.read(TEXT, memory=MEMORY)
    rng = np.random.default_rng(4)
    for _ in range(6):
        a, b = sorted(rng.integers(1, len(TEXT), 2).tolist())
        parts = [TEXT[:a], TEXT[a:b], "", TEXT[b:]]
        assert_same_bits(model.read(parts, memory=MEMORY), whole)
        appended = model.read(parts[0], memory=MEMORY)
        appended.ask(QUESTION, max_new_tokens=1)  # leaves no trace in the document
        appended.append(parts[1])
        appended.append(iter(parts[2:]))
        assert_same_bits(appended, whole)
    ids = model.read(text_tokens(model.tokenizer, TEXT)[0], memory=MEMORY)
    for index in (0, 1, 3, 4, 5):  # but the characters of tokens that are parts of one
        np.testing.assert_array_equal(state(ids)[index], state(whole)[index])
    with pytest.raises(AssertionError):
        assert_same_bits(model.read(TEXT[:-1] + "?", memory=MEMORY), whole)


def test_the_timeline_holds_whole_chunks_only(model: ql.Model) -> None:
    document = model.read(TEXT[:500], memory=MEMORY)
    assert len(document._session) % MEMORY.exc_block_size == 0
    before = len(document._session)
    document.ask(QUESTION, max_new_tokens=2)
    assert len(document._session) == before
    assert len(document) == len(text_tokens(model.tokenizer, TEXT[:500])[0])


def test_ids_and_text_mix(model: ql.Model) -> None:
    ids = text_tokens(model.tokenizer, "drei 😀 Wörter ")[0]
    document = model.read([int(token) for token in ids[:8]], memory=MEMORY)
    document.append(ids[8:].astype(np.int32))
    assert document.text == "drei 😀 Wörter "
    document.append("und mehr")
    assert document.text == "drei 😀 Wörter und mehr"
    assert document._snapshot().offsets[-1].tolist() == [21, 22]


def test_what_cannot_be_read(model: ql.Model) -> None:
    for empty in ("", " \n", [], [""], iter(())):
        with pytest.raises(ql.InvalidValue, match="empty"):
            model.read(empty, memory=MEMORY)
    for wrong in (b"bytes", 3, None, ["text", 4]):
        with pytest.raises(ql.InvalidType):
            model.read(wrong, memory=MEMORY)
    for wrong, remedy in (
        (b"bytes", "bytes; decode bytes first$"),
        (Path("book.txt"), r"PosixPath; .*path\.read_text\(encoding='utf-8'\)$"),
        (None, "not NoneType$"),
    ):
        with pytest.raises(ql.InvalidType, match=remedy):
            model.read(wrong, memory=MEMORY)
    document = model.read("Kurz. ", memory=MEMORY)
    for half in ("word " * 14_000 + "\ud800 x", (part for part in ["word " * 14_000, "\ud800 x"])):
        with pytest.raises(ql.InvalidValue, match=r"surrogate .*D800.* at character 70,000"):
            document.append(half)
        assert len(document.text) == (6 if isinstance(half, str) else 70_006)
    with pytest.raises(ql.InvalidValue, match="vocabulary"):
        model.read([1, 9999], memory=MEMORY)
    with pytest.raises(ql.InvalidType, match="progress"):
        model.read("x", progress=3, memory=MEMORY)
    with pytest.raises(ql.InvalidValue, match=r"\{text\}"):
        model.read("x", prompt="no place", memory=MEMORY)
    with pytest.raises(ql.InvalidValue, match="question="):
        model.read("x", prompt=PASSAGES_PROMPT, memory=MEMORY)


def test_progress_and_an_interruption(model: ql.Model) -> None:
    assert_same_bits(*whole_and_interrupted(partial(model.read, memory=MEMORY)))


def test_what_append_calls_can_look_but_not_ask(model: ql.Model, tmp_path: Path) -> None:
    document = model.read(TEXT[:300], memory=MEMORY)
    seen: list[tuple[str, int]] = []

    def look(*_: object) -> None:
        seen.append((document.text, len(document)))
        assert f"{seen[-1][1]} tokens" in repr(document) and "tokens" in document._repr_html_()
        uses = (lambda: document.ask(QUESTION), lambda: document.save(tmp_path / "x"))
        for use in (*uses, lambda: document.append("x"), document._snapshot):
            with pytest.raises(ql.Busy, match="once it is done"):
                use()

    def parts() -> Iterator[str]:
        look()
        yield TEXT[300:700]
        look()
        yield TEXT[700:]

    # Apart, so that a thread that waits for itself is no end of the tests.
    reader = threading.Thread(target=document.append, args=(parts(), look), daemon=True)
    reader.start()
    reader.join(60)
    assert not reader.is_alive()
    assert seen[0][0] == TEXT[:300] and seen[-1] == (TEXT, len(document))
    assert_same_bits(document, model.read(TEXT, memory=MEMORY))


def test_others_look_while_it_grows(model: ql.Model) -> None:
    document = model.read(TEXT[:300], memory=MEMORY)
    parts = [TEXT[start : start + 50] for start in range(300, len(TEXT), 50)] * 4
    whole = TEXT[:300] + "".join(parts)
    seen: list[tuple[int, int]] = []
    done, until = threading.Event(), time.monotonic() + 60

    def look() -> None:
        while not done.is_set():
            seen.append((document.nbytes, len(document)))
            assert whole.startswith(document.text)

    def wait(*_: object) -> None:
        before = len(seen)
        while len(seen) == before and not watching.done() and time.monotonic() < until:
            time.sleep(0)

    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(look)
        try:
            document.append(parts, progress=wait)
        finally:
            done.set()
        watching.result()
    assert len({size for size, _ in seen}) > 10
    tokens = [count for _, count in seen]
    assert tokens == sorted(tokens)
    assert seen[-1][1] <= len(document) and document.text == whole


# Questions ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("use", ["reread", "reposition", "memory"])
def test_threads_get_the_serial_answers(model: ql.Model, use: str) -> None:
    document = model.read(TEXT, memory=MEMORY)
    questions = ["Wer?", "Wo 12?", "Warum denn nicht, du?", "x", "Zzz zzz", "🙂?"]
    ask = {"use": use, "passages": 2, "max_new_tokens": 16}
    serial = [document.ask(question, **ask) for question in questions]
    document.append("")  # a new snapshot
    answers = asked_by_threads(document, questions, **ask)
    assert all(map(same, answers, serial))
    assert len({tuple(answer.tokens) for answer in serial}) > 1  # the question matters


@pytest.mark.parametrize("own", [None, "Text {text} Frage: {question}"])
def test_passages_are_read_again_and_a_sentence_pointed_out(
    model: ql.Model, own: str | None
) -> None:
    """With a prompt of one's own nothing is added."""
    document = model.read(TEXT, memory=MEMORY, prompt=own)
    ask = {"passages": 2, "neighbours": 3, "max_new_tokens": 8, "always_answer": True}
    answer = document.ask(QUESTION, **ask)
    best, *others = answer.evidence
    assert best.sentence is not None
    words = "\n\n".join(passage.text for passage in [*reversed(others), best])
    form = PromptForm.of(own or PASSAGES_PROMPT)
    if own is None:
        words = POINTED_OUT.format(passages=words, sentence=TEXT[slice(*best.sentence)])
    prefix, _ = form.prefix(model.tokenizer, QUESTION)
    suffix, _ = form.suffix(model.tokenizer, QUESTION)
    prompt = np.concatenate([prefix, text_tokens(model.tokenizer, words)[0], suffix])
    ids = model.generate(prompt, max_new_tokens=8, memory=ql.MemoryConfig(mode="full"))
    assert answer.tokens == [token for token in ids[len(prompt) :].tolist() if token != 258]


@pytest.mark.parametrize("kv_dtype", ["float32", "int8"])
def test_what_a_question_reads_is_kept_as_the_document_is(
    model: ql.Model, kv_dtype: str, tmp_path: Path, kv_dtypes: list[str]
) -> None:
    document = model.read(TEXT, memory=MEMORY, kv_dtype=kv_dtype)
    document.save(tmp_path / "book.qlm")
    document.ask(QUESTION, always_answer=True, max_new_tokens=1)
    assert kv_dtypes == [kv_dtype] * 3  # to read, to judge passages, to answer from them
    loaded = model.load_document(tmp_path / "book.qlm")
    loaded.ask(QUESTION, always_answer=True, max_new_tokens=1)
    assert kv_dtypes == [kv_dtype] * 6


def test_the_papers_way_is_what_generate_does(model: ql.Model) -> None:
    ids, span = paper_prompt(model.tokenizer, QUESTION, TEXT)
    expected = model.generate(ids, max_new_tokens=12, memory=PAPER, query_span=span)
    expected = expected[len(ids) :].tolist()
    document = model.read(TEXT, question=QUESTION, memory=PAPER)
    answer = document.ask(max_new_tokens=12)
    assert answer.tokens == [token for token in expected if token != 258]
    assert answer.evidence and answer.confidence is None
    plain = model.read(TEXT, memory=PAPER)
    looked_up = plain.ask(QUESTION, retrieval="paper", max_new_tokens=12)
    other = plain.ask("Ganz anders?", retrieval="paper", max_new_tokens=12)
    assert looked_up.evidence and looked_up.tokens != other.tokens


def test_ctrl_c_around_the_question_that_a_text_is_read_for(model: ql.Model) -> None:
    whole = model.read(TEXT, question=QUESTION, memory=PAPER)
    number, stopped = 0, True
    while stopped:
        number += 1
        document = Document(model, PAPER, whole._form, None, QUESTION)
        work = partial(document.append, TEXT[:300])
        stopped = ctrl_c_at(number, work, "document.py:(_feed_full_chunks|_unheard)")
        document.append(TEXT[len(document.text) :])
        assert_same_looked_up(document, whole)
    assert number > 50


@pytest.mark.parametrize("chunks", [1, 4, 9])
def test_ctrl_c_within_a_long_question(model: ql.Model, chunks: int) -> None:
    """A session that has read some chunks of the call, and knows from the first one on where the
    question is."""
    memory = dataclasses.replace(PAPER, n_local=600)
    question = ("Wer jagt wen, und warum? " * 20).strip()
    whole = model.read(TEXT, question=question, memory=memory)
    document = Document(model, memory, whole._form, None, question)
    document._session = model.session(memory, query_span=(span := document._span))
    done = chunks * memory.exc_block_size
    assert span is not None and done < span[1]

    def stop(*_: object) -> None:
        document._session.read(document._prefix[:done])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        document.append(TEXT, stop)
    assert len(document._session) == done
    document.append(TEXT[len(document.text) :])
    assert_same_looked_up(document, whole)


def test_a_question_longer_than_the_window_is_refused(model: ql.Model) -> None:
    document = model.read("A short text. " * 20)
    with pytest.raises(ql.InvalidValue, match="more than the window"):
        document.ask("why " * 2000)
    with pytest.raises(ql.InvalidType, match="not dict"):
        model.read({"input_ids": [1, 2]})  # a tokenizer's output, not a text


def test_other_modes_answer_without_evidence(model: ql.Model) -> None:
    for mode in ("full", "stream", "infinite"):
        memory = ql.MemoryConfig(mode=mode, n_init=8, n_local=48, exc_block_size=32)
        answer = model.read(TEXT, memory=memory).ask(QUESTION, max_new_tokens=3)
        assert not answer.evidence and "looks nothing up" in answer.notes[0]


def test_wrong_ways_to_ask(model: ql.Model) -> None:
    document = model.read(TEXT, memory=MEMORY)
    for wrong, named in (
        ({"use": "rewrite"}, "use"),
        ({"retrieval": "bm25"}, "retrieval"),
        ({"retrieval": "paper"}, "mode 'qllm'"),
        ({"passages": -1}, "passages"),
        ({"always_answer": 1}, "always_answer"),
        ({"stream": 3}, "stream"),
        ({"max_tokens": 3}, "max_new_tokens"),
    ):
        with pytest.raises(ql.Error, match=named):
            document.ask(QUESTION, **wrong)
    for empty in (" ", None):
        with pytest.raises(ql.InvalidValue, match="question"):
            document.ask(empty)


def test_an_answer_is_streamed_whole(model: ql.Model, capsys: pytest.CaptureFixture[str]) -> None:
    document = model.read(TEXT, memory=MEMORY)
    parts: list[str] = []
    answer = document.ask(QUESTION, stream=parts.append, max_new_tokens=20)
    assert "".join(parts).strip() == answer.text and len(parts) > 1
    document.ask(QUESTION, stream=True, max_new_tokens=20)
    shown = "".join(c for c in "".join(parts) if c.isprintable() or c in "\n\t")
    assert capsys.readouterr().out == shown + "\n"


def test_the_prompt_around_a_document(model: ql.Model) -> None:
    form = PromptForm.of("A {text} B {question} C")
    tokenizer = model.tokenizer
    prefix, span = form.prefix(tokenizer)
    suffix, asked = form.suffix(tokenizer, "q<|end|>?")
    assert span is None
    shown = tokenizer.decode([*prefix, *suffix], skip_special_tokens=False)
    assert shown == "<|user|>A  B q<|end|>? C<|end|>\nANSWER:"
    assert tokenizer.decode(suffix[slice(*asked)]).strip() == "q<|end|>?"
    document = model.read("Wort " * 40, memory=MEMORY, prompt="A {text} B {question} C")
    assert document.ask("q?", max_new_tokens=1).evidence


def test_repr_and_size(model: ql.Model, tmp_path: Path) -> None:
    document = model.read(TEXT, memory=MEMORY, title="Deich")
    assert "'Deich'" in repr(document) and f"{len(document)} tokens" in repr(document)
    assert document.nbytes > len(TEXT)
    assert document.title == "Deich" and document.text == TEXT
