"""A session taken apart and put together again, in memory or over a file: the same bits go on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fresh_python import run_program
from tiny_core import CONFIG, EXC, MEMORY, MODES, core_model, core_session, ids

import quickllama as ql
from quickllama import _core

PARTS = ("first", "pages", "vectors", "keys")
PAGE = 4096
HEADS = [(1, 0), (0, 3)]
SKIM = {"mode": "stream", "skim_heads": HEADS}
COUNT = 48 * EXC


@pytest.fixture(scope="module")
def model() -> _core.Model:
    return core_model()


def parts_of(session: _core.Session, file: Any = None) -> tuple[tuple[Any, Any], ...]:
    """All slabs as restore() takes them; with a file: the full ones in it."""
    parts = []
    for part in PARTS:
        _, _, n, dropped, full = session.slabs(part)
        places, inlined = [], [np.zeros(0, np.uint8)]
        for index in range(n):
            slab = session.copy_slab(part, index) if index >= dropped else None
            if slab is None:
                places.append(-1)
            elif file is not None and index < full:
                places.append(file.tell())
                file.write(slab.tobytes() + bytes(-slab.size % PAGE))
            else:
                places.append(-2)
                inlined.append(slab)
        parts.append((np.array(places, dtype=np.int64), np.concatenate(inlined)))
    return tuple(parts)


def results(session: _core.Session, skims: bool = False) -> list[Any]:
    """What follows from a session's state: after more tokens, and by its heads."""
    more = ids(3 * EXC + 5, seed=3)
    found: list[Any] = []
    if skims:
        session.read(more)
    else:
        found = [session.feed(more), *(session.feed(more[i : i + 1]) for i in range(4))]
    if skims or session.mode in ("infllm", "qllm"):
        queries = np.linspace(-1, 1, 2 * 3 * 16, dtype=np.float32).reshape(2, 3, 16)
        found += [session.rank(HEADS, queries, 0, len(session), 7), session.mean_query(0)]
    return found


def assert_same(one: list[Any], other: list[Any]) -> None:
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("mode", [*MODES, "skim", "question kept"])
@pytest.mark.parametrize("kv_dtype", ["float32", "bfloat16", "int8"])
def test_a_session_goes_on_where_the_saved_one_stood(
    model: _core.Model, mode: str, kv_dtype: str, tmp_path: Path
) -> None:
    settings = {**(SKIM if mode == "skim" else {"mode": mode}), "kv_dtype": kv_dtype}
    if mode == "question kept":
        settings |= {"mode": "qllm", "keep_query_tokens": True}
    asks = settings["mode"] == "qllm"
    question = {"query_span": (3, 9)} if asks else {}
    for count in (9, EXC, COUNT, COUNT + 7, 2 * COUNT + 1):
        session = core_session(model, **settings)
        session.read(ids(count), **question)
        again = core_session(model, **settings)
        again.restore(*session.state(), parts_of(session))
        with (tmp_path / "slabs").open("wb+") as file:
            parts = parts_of(session, file)
            file.flush()
            volume = _core.Volume(file.fileno(), 8192)
        mapped = core_session(model, **settings)
        mapped.restore(*session.state(), parts, volume)
        assert len(again) == len(mapped) == count
        fork = mapped.fork()
        expected = results(session, mode == "skim")
        for other in (again, mapped, fork):
            assert_same(results(other, mode == "skim"), expected)
        if (asks or mode == "infllm") and count > COUNT:
            assert 0 < volume.nbytes <= 4 * 8192 and mapped.nbytes < session.nbytes


def test_full_slabs_move_to_a_file_while_it_reads(model: _core.Model, tmp_path: Path) -> None:
    text, step = ids(2 * COUNT), 2 * EXC
    whole = core_session(model)
    session = core_session(model)
    placed = dict.fromkeys(PARTS, 0)
    with (tmp_path / "slabs").open("wb+", buffering=0) as file:
        volume = _core.Volume(file.fileno(), 2048)
        for start in range(0, len(text), step):
            session.read(text[start : start + step])
            if start == 0:  # what could not be mapped leaves the session free to map another file
                (tmp_path / "short").write_bytes(b"x")
                with (tmp_path / "short").open("rb") as short, pytest.raises(ql.FileProblem):
                    session.map_slab("first", 0, _core.Volume(short.fileno(), 0), 0)
            whole.read(text[start : start + step])
            for part in PARTS:
                full = session.slabs(part)[4]
                for index in range(placed[part], full):
                    slab = session.copy_slab(part, index)
                    offset = os.fstat(file.fileno()).st_size
                    file.seek(offset)
                    file.write(slab.tobytes() + bytes(-slab.size % PAGE))
                    session.map_slab(part, index, volume, offset)
                    np.testing.assert_array_equal(session.copy_slab(part, index), slab)
                placed[part] = full
    assert session.nbytes < whole.nbytes / 2 and min(placed["pages"], placed["vectors"]) > 0
    for layer in range(2):
        np.testing.assert_array_equal(session.block_vectors(layer), whole.block_vectors(layer))
    with pytest.raises(ql.InvalidValue, match="already"):
        session.map_slab("pages", 0, volume, 0)
    with pytest.raises(ql.InvalidValue, match="not full"):
        session.map_slab("pages", placed["pages"], volume, 0)
    assert_same(results(session), results(whole))
    session.reset()
    whole.reset()
    session.read(text)
    whole.read(text)
    assert_same(results(session), results(whole))


@pytest.mark.parametrize("left", [0, PAGE, 5 * PAGE + 1, -1])
def test_a_file_that_is_shortened_ends_in_an_error(
    model: _core.Model, tmp_path: Path, left: int
) -> None:
    session = core_session(model, mode="infllm")
    session.read(ids(COUNT))
    path = tmp_path / "slabs"
    with path.open("wb+") as file:
        parts = parts_of(session, file)
        file.flush()
        volume = _core.Volume(file.fileno())
    mapped = core_session(model, mode="infllm")
    mapped.restore(*session.state(), parts, volume)
    queries = np.ones((2, 1, 16), dtype=np.float32)
    fork = mapped.fork()
    whole = path.stat().st_size - PAGE  # the last page is filled up
    os.truncate(path, left if left >= 0 else whole + 100)
    with pytest.raises(ql.FileProblem, match="shortened"):
        mapped.rank(HEADS, queries, 0, len(mapped), 7)
    assert volume.damaged
    for use in (lambda: mapped.feed([1]), lambda: fork.feed([1]), mapped.fork, mapped.state):
        with pytest.raises(ql.FileProblem, match="shortened"):
            use()
    session.rank(HEADS, queries, 0, len(session), 7)  # has nothing to do with the file
    late = core_session(model, mode="infllm")
    with path.open("rb") as file, pytest.raises(ql.FileProblem, match="shortened"):
        late.restore(*session.state(), parts, _core.Volume(file.fileno()))
    assert len(late) == 0
    late.restore(*session.state(), parts_of(session))
    assert_same(results(late), results(session))


def test_what_does_not_fit_together_is_refused(model: _core.Model) -> None:
    session = core_session(model)
    session.read(ids(COUNT), query_span=(2, 9))
    session.feed([3])
    counters, arrays = session.state()
    parts = parts_of(session)
    assert counters[-1] > 0  # blocks were chosen by the token
    rng = np.random.default_rng(2)
    empty = core_session(model)
    for index in range(len(counters)):
        for value in (-1, -(2**62), 2**62, 0, counters[index] + 1, int(rng.integers(1, 2**40))):
            if value == counters[index]:
                continue
            wrong = (*counters[:index], value, *counters[index + 1 :])
            try:
                empty.restore(wrong, arrays, parts)
            except ql.FileProblem as problem:
                assert "contradicts" in str(problem) and len(empty) == 0
            else:  # a flag, or a place within bounds
                results(empty)
                empty.reset()
    for index in range(len(arrays)):
        wrong_arrays = (*arrays[:index], np.zeros(arrays[index].size + 4, np.uint8))
        with pytest.raises(ql.FileProblem):
            empty.restore(counters, (*wrong_arrays, *arrays[index + 1 :]), parts)
    chosen = np.full(arrays[5].size // 4, 2**20, np.int32)
    with pytest.raises(ql.FileProblem, match="chosen"):
        empty.restore(counters, (*arrays[:5], chosen), parts)
    for place in (-1, -3, 0, 2**60, -2):
        places = np.append(parts[1][0][:-1], place)
        slabs = parts[1][1][:-1] if place == -2 else parts[1][1]
        with pytest.raises(ql.FileProblem):
            empty.restore(counters, arrays, (parts[0], (places, slabs), *parts[2:]))
    with pytest.raises(ql.FileProblem, match="number of slabs"):
        empty.restore(counters, arrays, (parts[0], (parts[1][0][1:], parts[1][1]), *parts[2:]))
    with pytest.raises(ql.InvalidValue, match="empty session"):
        session.restore(counters, arrays, parts)
    session.pin([0])
    with pytest.raises(ql.InvalidValue, match="pinned"):
        session.state()
    for wrong_types in ((1, arrays, parts), (counters, arrays[1:], parts), (counters, arrays, ())):
        with pytest.raises(ql.InvalidType):
            empty.restore(*wrong_types)
    with pytest.raises(ql.InvalidType):
        empty.restore(counters, arrays, parts, 3)
    for method in (session.slabs, lambda part: session.copy_slab(part, 0)):
        with pytest.raises(ql.InvalidValue, match="part"):
            method("tail")
    with pytest.raises(ql.Error, match="descriptor"):
        _core.Volume(2**20)


def test_counters_that_no_reading_leaves_are_refused(model: _core.Model) -> None:
    """With arrays of the right sizes, so that nothing but the counters tells."""
    session = core_session(model)
    session.read(ids(COUNT))
    (tokens, first, blocks, *rest), arrays = session.state()
    parts = parts_of(session)
    empty = core_session(model)
    width = 2 * 4 * 16 * 4  # bytes of all layers' query vectors
    keys, scores = (array.size for array in arrays[:2])
    waiting = tokens - first - blocks * MEMORY["block_size"]
    for fewer in (2, 8):  # so that more tokens wait than a commit leaves
        more = waiting + fewer * MEMORY["block_size"]
        grown = [np.zeros(size // waiting * more, np.uint8) for size in (keys, scores)]
        wrong = (tokens, first, blocks - fewer, *rest)
        with pytest.raises(ql.FileProblem, match="blocks"):
            empty.restore(wrong, (*grown, *arrays[2:]), parts)
    asked = (tokens, first, blocks, 0, 5, 0, *rest[3:])  # a question read long ago, and unknown
    queries = np.zeros(5 * width, np.uint8)
    with pytest.raises(ql.FileProblem, match="question"):
        empty.restore(asked, (*arrays[:3], queries, *arrays[4:]), parts)
    empty.restore((tokens, first, blocks, *rest), arrays, parts)
    assert_same(results(empty), results(session))


def test_a_failed_restore_leaves_the_session_s_question(model: _core.Model) -> None:
    asks = {"query_span": (3, 9)}
    session, expected = core_session(model, **asks), core_session(model, **asks)
    with pytest.raises(ql.FileProblem):
        session.restore((0,) * len(session.state()[0]), session.state()[1], parts_of(session))
    for one in (session, expected):
        one.read(ids(COUNT))
    np.testing.assert_array_equal(session.question_vector(0), expected.question_vector(0))
    assert_same(results(session), results(expected))


def test_nothing_of_other_memory_is_saved(model: _core.Model) -> None:
    """What a slab has no rows for yet, and a question that was not read, are zeros."""

    def saved() -> list[Any]:
        session = core_session(model, query_span=(2 * EXC, 2 * EXC + 8))
        session.read(ids(EXC + 3))
        return [session.state()[1], [slabs for _, slabs in parts_of(session)]]

    first = saved()
    for _ in range(3):
        used = core_session(model)
        used.read(ids(COUNT, seed=5))
        del used
        for one, other in zip(saved(), first, strict=True):
            assert_same(one, other)


STATES = """
import hashlib
from test_session_state import *
model = core_model()
for options in (*({"mode": mode} for mode in MODES), SKIM):
    for span in (None, (3, 9)) if options["mode"] == "qllm" else (None,):
        for count in (5, 4 * EXC + 3, COUNT):
            session = core_session(model, **options, query_span=span)
            session.read(ids(count))
            session = session.fork()
            session.read(ids(2))
            counters, arrays = session.state()
            slabs = [array for _, array in parts_of(session)]
            digest = hashlib.sha256(b"".join(array.tobytes() for array in (*arrays, *slabs)))
            print(options["mode"], count, counters, digest.hexdigest())
"""


def test_a_state_holds_nothing_that_was_in_memory_before() -> None:
    """glibc fills what it gives with the byte of MALLOC_PERTURB_."""
    states = {run_program(STATES, MALLOC_PERTURB_=byte) for byte in ("85", "170")}
    assert len(states) == 1 and states.pop().count("\n") == 21


def test_a_questions_queries_are_given_up_once_they_have_served(model: _core.Model) -> None:
    few, many = (core_session(model, query_span=(2, end)) for end in (4, 30))
    rows = (30 - 4) * CONFIG["num_hidden_layers"] * CONFIG["num_attention_heads"] * 16
    for session in (few, many):
        session.read(ids(2 * EXC))
    assert many.nbytes - few.nbytes == 4 * rows
    for session in (few, many):
        session.read(ids(100))
    assert many.nbytes == few.nbytes
    assert not np.array_equal(few.question_vector(0), many.question_vector(0))
    for session in (few, many):  # asked anew
        session.reset()
        session.read(ids(2 * EXC))
    assert many.nbytes - few.nbytes == 4 * rows
