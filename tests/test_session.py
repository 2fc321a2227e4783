"""Sessions through the extension: what feed takes and gives, forks, traces, threads, Ctrl-C."""

from __future__ import annotations

import gc
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fresh_python import environment
from tiny_core import CONFIG, EXC, MEMORY, MODES, core_model, core_session, ids
from tiny_models import random_weights

import quickllama as ql
from quickllama import _core

MODEL = core_model()
VOCAB = CONFIG["vocab_size"]


def read(session: _core.Session, count: int = 150) -> Any:
    return session.feed(ids(count), all_logits=True)


# ---- feeding ----


def test_feed_gives_fresh_logits() -> None:
    session = core_session(MODEL)
    every = session.feed(ids(50), all_logits=True)
    assert every.shape == (50, VOCAB) and every.dtype == np.float32
    assert every.flags.owndata and every.flags.writeable
    before = every.copy()
    last = session.feed([3])
    assert last.shape == (VOCAB,) and last.dtype == np.float32
    np.testing.assert_array_equal(every, before)
    assert len(session) == 51
    again = core_session(MODEL)
    np.testing.assert_allclose(again.feed(ids(50)), every[-1], atol=1e-5)


@pytest.mark.parametrize(
    "convert",
    [
        *(lambda a, d=d: a.astype(d) for d in ("i1", "u1", "<i2", ">i2", ">u2", "i4", ">i4")),
        *(lambda a, d=d: a.astype(d) for d in ("u4", ">u4", "i8", ">i8", "u8", ">u8", "uintp")),
        lambda a: a[None],
        lambda a: np.repeat(a, 3)[::3],
        lambda a: np.asfortranarray(np.stack([a, a], 1))[None, :, 0],
        lambda a: a[::-1].copy()[::-1],
        lambda a: np.frombuffer(b"x" + a.astype("i4").tobytes(), np.uint8)[1:].view("i4"),
        lambda a: a.tolist(),
        lambda a: tuple(a.tolist()),
        lambda a: [a.tolist()],
        lambda a: list(a),
        lambda a: memoryview(a),
        lambda a: a.view(np.ma.MaskedArray),
    ],
)
def test_ids_of_every_kind(convert: Callable[[Any], Any]) -> None:
    tokens = ids(40)
    expected = core_session(MODEL).feed(tokens)
    np.testing.assert_array_equal(core_session(MODEL).feed(convert(tokens)), expected)


def test_a_range_is_a_list_of_ids() -> None:
    expected = core_session(MODEL).feed(np.arange(5, 30))
    np.testing.assert_array_equal(core_session(MODEL).feed(range(5, 30)), expected)


def test_feed_does_not_look_at_the_array_again() -> None:
    tokens = ids(20_000).astype(np.int32)
    session, expected = core_session(MODEL), core_session(MODEL).feed(tokens)
    result = []
    thread = threading.Thread(target=lambda: result.append(session.feed(tokens)))
    thread.start()
    while "computing" not in repr(session) and thread.is_alive():
        time.sleep(0.0005)
    tokens[:] = -1
    thread.join()
    np.testing.assert_array_equal(result[0], expected)


@pytest.mark.parametrize("mode", MODES)
def test_a_text_within_the_window_is_the_same_in_every_mode(mode: str) -> None:
    expected = MODEL.forward(ids(30))
    found = core_session(MODEL, mode=mode).feed(ids(30), all_logits=True)
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize("mode", MODES)
def test_pieces_of_whole_chunks_change_no_bit(mode: str) -> None:
    whole = read(core_session(MODEL, mode=mode))
    session = core_session(MODEL, mode=mode)
    pieces = np.split(ids(150), [EXC, 4 * EXC, 5 * EXC])
    found = np.concatenate([session.feed(piece, all_logits=True) for piece in pieces])
    np.testing.assert_array_equal(found, whole)


def test_reset_empties() -> None:
    session = core_session(MODEL, query_span=(2, 9), trace=True)
    first = read(session)
    vector = session.question_vector(0)
    session.reset()
    assert len(session) == session.n_blocks == 0
    assert session.trace == []
    with pytest.raises(ql.InvalidValue):
        session.question_vector(0)
    np.testing.assert_array_equal(read(session), first)
    np.testing.assert_array_equal(session.question_vector(0), vector)


def test_forks_go_their_own_ways() -> None:
    session = core_session(MODEL)
    session.feed(ids(100))
    fork, reference = session.fork(), core_session(MODEL)
    assert type(fork) is _core.Session and len(fork) == 100 and fork.model is MODEL
    assert (fork.mode, fork.topk, fork.query_span) == (session.mode, session.topk, None)
    fork.feed(ids(70, seed=9))
    reference.feed(ids(100))
    np.testing.assert_array_equal(session.feed(ids(64, 5)), reference.feed(ids(64, 5)))
    assert (len(session), len(fork)) == (164, 170)


def test_a_fork_keeps_a_trace_or_not() -> None:
    session = core_session(MODEL, trace=False)
    read(session)
    traced = session.fork(trace=True)
    traced.feed([3])
    assert [record.first_token for record in traced.trace] == [150] * CONFIG["num_hidden_layers"]
    assert len(traced.fork().trace) == 0
    with pytest.raises(ValueError, match="no trace"):
        _ = traced.fork(trace=False).trace
    with pytest.raises(TypeError, match="trace"):
        session.fork(trace=1)
    with pytest.raises(ValueError, match="expected True, False or 'choices'"):
        session.fork(trace="scores")


def test_a_question_in_a_later_call() -> None:
    first = core_session(MODEL, trace=True)
    first.feed(ids(96))
    other = first.fork()
    plain, asked = first.feed(ids(32, 7)), other.feed(ids(32, 7), query_span=(4, 20))
    assert other.question_vector(1).shape == (64,)
    np.testing.assert_array_equal(plain, asked)  # it is looked up from the next chunk on
    with pytest.raises(ql.InvalidValue):
        first.question_vector(1)
    scores = [s.trace for s in (first, other) if s.feed(ids(16, 8)) is not None]
    assert not np.array_equal(scores[0][-1].scores, scores[1][-1].scores)


# ---- attributes ----


def test_settings_can_be_read() -> None:
    session = core_session(MODEL, query_span=(1, 7), question_weight=2.5)
    for name, value in {**MEMORY, "question_weight": 2.5, "query_span": (1, 7)}.items():
        assert getattr(session, name) == value
    assert session.model is MODEL
    assert core_session(MODEL).query_span is None
    for name in MEMORY:
        with pytest.raises(AttributeError):
            setattr(session, name, getattr(session, name))
    for kv_dtype in ("bfloat16", "int8"):
        assert core_session(MODEL, kv_dtype=kv_dtype).kv_dtype == kv_dtype


def test_sizes() -> None:
    session = core_session(MODEL)
    assert len(session) == session.n_blocks == 0
    empty = session.nbytes
    session.feed(ids(200))
    # 4 first tokens; blocks while at least n_local tokens wait after them
    assert session.n_blocks == (200 - 4 - 32) // 8
    assert session.nbytes > empty + 200 * 2 * 2 * 32 * 4 // 2
    half = core_session(MODEL, kv_dtype="bfloat16")
    half.feed(ids(2000))
    session.feed(ids(1800))
    assert half.nbytes < session.nbytes


@pytest.mark.parametrize("mode", MODES)
def test_repr_tells_what_it_is(mode: str) -> None:
    session = core_session(MODEL, mode=mode)
    session.feed(ids(77))
    assert f"Session {mode}" in repr(session) and "77 tokens" in repr(session)


def test_sessions_can_be_weakly_referenced() -> None:
    session = core_session(MODEL)
    reference = weakref.ref(session)
    assert reference() is session
    del session
    assert reference() is None


# ---- what the memory shows ----


def test_trace_has_a_record_per_chunk_and_layer() -> None:
    session = core_session(MODEL, trace=True)
    session.feed(ids(150))
    session.feed([4])
    starts = [*range(0, 150, EXC), 150]
    records = session.trace
    assert [(r.first_token, r.layer) for r in records] == [(s, i) for s in starts for i in (0, 1)]
    seen = 0
    for record in records:
        assert record.n_tokens == min(EXC, 150 - record.first_token) or record.first_token == 150
        assert record.block_ids.dtype == np.int32 and record.scores.dtype == np.float32
        assert len(record.block_ids) == min(2, len(record.scores))
        assert (np.diff(record.block_ids) > 0).all()
        best = np.sort(np.argsort(-record.scores, kind="stable")[:2])
        np.testing.assert_array_equal(record.block_ids, best)
        seen = max(seen, len(record.scores))
    assert seen == session.n_blocks
    layer, first, n_tokens, _, scores = records[-1]
    assert (layer, first, n_tokens, len(scores)) == (1, 150, 1, records[-1].scores.size)
    assert type(records[0]) is _core.TraceRecord and "block_ids=" in repr(records[0])
    kept = records[-1].scores
    session.reset()
    del session, records
    gc.collect()
    assert np.isfinite(kept).all()


@pytest.mark.parametrize("mode", ["full", "stream", "infinite"])
def test_modes_without_blocks_have_empty_records(mode: str) -> None:
    session = core_session(MODEL, mode=mode, trace=True)
    session.feed(ids(100))
    assert {(r.block_ids.size, r.scores.size) for r in session.trace} == {(0, 0)}
    assert len(session.trace) == 2 * -(-100 // EXC)
    assert session.block_vectors(0).shape == (0, 64)


def test_no_trace_unless_asked_for() -> None:
    with pytest.raises(ql.InvalidValue, match="trace=True"):
        _ = core_session(MODEL).trace


def test_vectors_give_the_scores() -> None:
    """question_weight times the question's share is what a question adds to the scores."""
    question, plain = (
        core_session(MODEL, trace=True, topk=0, query_span=span) for span in ((2, 12), None)
    )
    for session in (question, plain):
        session.feed(ids(160))
    vectors = question.block_vectors(0)
    assert vectors.shape == (question.n_blocks, 64) and vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, plain.block_vectors(0))
    with_question, without = question.trace[-2].scores, plain.trace[-2].scores
    share = vectors[: len(without)] @ question.question_vector(0)
    np.testing.assert_allclose(with_question - without, share, rtol=1e-3, atol=1e-3)


# ---- several threads ----


def together(work: Callable[[int], object], count: int) -> list[Any]:
    """What work(0) ... work(count - 1) return or raise, each in a thread of its own."""
    found: list[Any] = [None] * count

    def run(number: int) -> None:
        try:
            found[number] = work(number)
        except BaseException as error:
            found[number] = error

    threads = [threading.Thread(target=run, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.mark.parametrize("n_threads", [1, 2, 5])
def test_many_sessions_over_one_model_equal_serial(n_threads: int) -> None:
    model = core_model(n_threads=n_threads)

    def work(number: int) -> Any:
        session = core_session(model, mode=MODES[number % len(MODES)])
        session.feed(ids(120, number))
        return session.fork().feed(ids(30, number + 50), all_logits=True)

    expected = [work(number) for number in range(10)]
    for found, one in zip(together(work, 10), expected, strict=True):
        np.testing.assert_array_equal(found, one)


@contextmanager
def reading(session: _core.Session) -> Iterator[None]:
    """Another thread reads for some seconds; the block runs meanwhile."""
    thread = threading.Thread(target=session.feed, args=(ids(100_000),))
    thread.start()
    while "computing" not in repr(session):
        assert thread.is_alive()
        time.sleep(0.0005)
    try:
        yield
        assert thread.is_alive(), "the reading was over too soon to prove anything"
    finally:
        thread.join()


def test_a_session_serves_one_call_at_a_time() -> None:
    session = core_session(MODEL, trace=False)
    calls: list[Callable[[], object]] = [
        lambda: session.feed([1]),
        lambda: session.fork(),
        lambda: session.reset(),
        lambda: len(session),
        lambda: session.n_blocks,
        lambda: session.block_vectors(0),
        lambda: session.question_vector(0),
    ]
    with reading(session):
        for call in calls:
            with pytest.raises(ql.Busy, match="one call at a time") as caught:
                call()
            assert isinstance(caught.value, RuntimeError)
        assert session.mode == "qllm" and "computing" in repr(session)
        assert session.n_layers == 2 and session.nbytes > 0
        assert len(core_session(MODEL)) == 0  # another session of the model is free
    assert len(session) == 100_000
    assert session.feed([1]).shape == (VOCAB,)


def test_two_threads_that_fight_for_a_session_corrupt_nothing() -> None:
    session = core_session(MODEL)

    def work(number: int) -> int:
        done = 0
        for _ in range(60):
            try:
                session.feed(ids(5, number))
                done += 1
            except ql.Busy:
                time.sleep(0)
        return done

    done = together(work, 4)
    assert len(session) == 5 * sum(done) > 0


# ---- Ctrl-C ----


@contextmanager
def alarm(after: float, action: Callable[[], None]) -> Iterator[None]:
    """A signal that comes in some seconds and runs action in its handler."""
    previous = signal.signal(signal.SIGALRM, lambda *_: action())
    signal.setitimer(signal.ITIMER_REAL, after)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("mode", MODES)
def test_an_interrupted_session_goes_on(mode: str) -> None:
    """The chunk that was interrupted leaves no trace: what is read next has the same bits."""
    model = core_model({**CONFIG, "num_hidden_layers": 5})
    session, other = (core_session(model, mode=mode, trace=True) for _ in range(2))
    tokens = ids(6_000 if mode == "full" else 400_000)
    begin = time.perf_counter()
    with alarm(0.1, interrupt), pytest.raises(KeyboardInterrupt):
        session.feed(tokens)
    assert time.perf_counter() - begin < 1
    done = len(session)
    assert 0 < done < len(tokens) and done % EXC == 0
    other.feed(tokens[:done])
    assert len(session.trace) == len(other.trace) == done // EXC * 5
    rest = tokens[done : done + 100]
    np.testing.assert_array_equal(session.feed(rest, True), other.feed(rest, True))
    np.testing.assert_array_equal(session.block_vectors(4), other.block_vectors(4))


def test_forward_can_be_interrupted() -> None:
    model = core_model({**CONFIG, "num_hidden_layers": 200})
    begin = time.perf_counter()
    with alarm(0.1, interrupt), pytest.raises(KeyboardInterrupt):
        model.forward(ids(4_000), logits_to_keep=1)
    assert time.perf_counter() - begin < 1
    assert model.forward([1, 2]).shape == (2, VOCAB)


def test_any_exception_of_a_handler_passes() -> None:
    class Stopped(Exception):
        pass

    def stop() -> None:
        raise Stopped("by the handler")

    session = core_session(MODEL)
    with alarm(0.1, stop), pytest.raises(Stopped, match="by the handler"):
        session.feed(ids(400_000))
    assert len(session) % EXC == 0


def test_a_handler_that_returns_stops_nothing() -> None:
    seen: list[str] = []
    session = core_session(MODEL)

    def look() -> None:
        try:
            session.feed([1])
        except ql.Busy as error:
            seen.append(str(error))

    with alarm(0.06, look):
        session.feed(ids(30_000))
    assert len(session) == 30_000
    assert len(seen) == 1 and "signal handler" in seen[0]


PROGRAM = """
import time
from tiny_core import core_model, core_session, ids
session = core_session(core_model())
tokens = ids(2_000_000)
print("reading", flush=True)
try:
    session.feed(tokens)
except KeyboardInterrupt:
    print("interrupted", time.time(), len(session), flush=True)
session.feed(ids(20))
print("usable", len(session), flush=True)
"""


def test_ctrl_c_answers_within_a_second() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], env=environment(), stdout=subprocess.PIPE, text=True,
        cwd=Path(__file__).parent,
    )  # fmt: skip
    assert process.stdout is not None
    with process:
        try:
            assert process.stdout.readline() == "reading\n"
            time.sleep(0.3)
            sent = time.time()
            process.send_signal(signal.SIGINT)
            word, stopped, done = process.stdout.readline().split()
            usable = process.stdout.readline().split()
        finally:
            process.kill()
    assert word == "interrupted"
    assert float(stopped) - sent < 1
    assert int(done) > 0 and int(done) % EXC == 0
    assert usable == ["usable", str(int(done) + 20)]


def test_nan_changes_no_bounds() -> None:
    """Scores of NaN choose blocks that exist, each once."""
    weights = random_weights(CONFIG, 0)
    weights["model.layers.0.self_attn.q_proj.weight"][3] = np.nan
    session = core_session(core_model(weights=weights), trace=True, query_span=(1, 9))
    session.feed(ids(300))
    assert np.isnan(session.trace[-1].scores).any()
    for record in session.trace:
        assert len(record.block_ids) == min(2, len(record.scores))
        assert len(set(record.block_ids.tolist())) == len(record.block_ids)
        assert all(0 <= block < len(record.scores) for block in record.block_ids)
