"""Who keeps what alive: models, sessions, the arrays that they borrow; and nothing that leaks."""

from __future__ import annotations

import gc
import platform
import tracemalloc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fresh_python import run_program
from tiny_core import CONFIG, core_config, core_model, core_session, ids, tensors
from tiny_models import random_weights

import quickllama as ql
from quickllama import _core

ADDRESS_SANITIZER = "libasan" in Path("/proc/self/maps").read_text()


class Array(np.ndarray[Any, Any]):
    """An ndarray to which a weak reference can point."""


def tracked_weights() -> tuple[dict[str, Any], list[weakref.ref[Any]]]:
    weights = {name: array.view(Array) for name, array in random_weights(CONFIG, 0).items()}
    return weights, [weakref.ref(array) for array in weights.values()]


def alive(references: list[weakref.ref[Any]]) -> int:
    return sum(reference() is not None for reference in references)


def test_borrowed_arrays_live_as_long_as_the_model() -> None:
    weights, references = tracked_weights()
    model = core_model(weights=weights)
    expected = model.forward(ids(8))
    del weights
    gc.collect()
    # vectors may be copied; the matrices are used where they lie
    assert alive(references) >= 2 + 7 * CONFIG["num_hidden_layers"]
    np.testing.assert_array_equal(model.forward(ids(8)), expected)
    del model
    assert alive(references) == 0


def test_converted_arrays_are_let_go() -> None:
    weights, references = tracked_weights()
    model = core_model(weights=weights, dtype="bfloat16")
    del weights
    gc.collect()
    matrices = [r for r in references if (array := r()) is not None and array.ndim == 2]
    assert not matrices
    del model
    assert alive(references) == 0


def test_a_failed_init_lets_arrays_go() -> None:
    weights, references = tracked_weights()
    weights["surplus"] = np.zeros(3, np.float32)
    with pytest.raises(ql.MissingKey):
        core_model(weights=weights)
    del weights
    gc.collect()
    assert alive(references) == 0


def test_a_session_keeps_model_and_arrays_alive() -> None:
    weights, references = tracked_weights()
    model = core_model(weights=weights)
    expected = core_session(model).feed(ids(100))
    session = core_session(model)
    del weights, model
    gc.collect()
    np.testing.assert_array_equal(session.feed(ids(100)), expected)
    assert isinstance(session.model, _core.Model)
    fork = session.fork()
    del session
    gc.collect()
    assert alive(references) > 0
    fork.feed(ids(5))
    del fork
    assert alive(references) == 0


class Owner(_core.Model):
    """A model that knows a session, which knows the model."""

    session: _core.Session

    def __init__(self, weights: dict[str, Any]) -> None:
        super().__init__(core_config(), tensors(weights), "float32", 1)
        self.session = core_session(self)


def test_cycles_are_collected() -> None:
    weights, references = tracked_weights()
    owner = Owner(weights)
    session = weakref.ref(owner.session)
    owner.session.feed(ids(40))
    del weights, owner
    assert session() is not None
    gc.collect()
    assert session() is None
    assert alive(references) == 0


def test_a_session_computes_even_when_its_model_is_garbage() -> None:
    """A finalizer runs when the collector has found the cycle but the session still exists."""
    results = []

    class Last(Owner):
        def __del__(self) -> None:
            results.append(self.session.feed([1]).shape)

    Last(random_weights(CONFIG, 0))
    gc.collect()
    assert results == [(96,)]


def test_memory_mapped_weights(tmp_path: Path) -> None:
    weights = random_weights(CONFIG, 0)
    mapped = {}
    for name, array in weights.items():
        np.save(tmp_path / f"{name}.npy", array)
        mapped[name] = np.load(tmp_path / f"{name}.npy", mmap_mode="r")
    model = core_model(weights=mapped)
    del mapped
    gc.collect()
    expected = core_model(weights=weights).forward(ids(9))
    np.testing.assert_array_equal(model.forward(ids(9)), expected)


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def test_nothing_leaks() -> None:
    weights = random_weights(CONFIG, 0)
    lacking = {name: array for name, array in weights.items() if name != "lm_head.weight"}

    def once() -> None:
        model = core_model(weights=weights, dtype="bfloat16")
        session = core_session(model, trace=True, query_span=(3, 9))
        session.feed(ids(150))
        session.fork().feed([5, 6], all_logits=True)
        assert session.trace and session.block_vectors(1).size and session.question_vector(0).size
        model.forward(ids(10))
        for failing in (
            lambda: session.feed([1, 2, 96]),
            lambda: session.feed([1, 2, 2**40]),
            lambda: session.block_vectors(9),
            lambda: core_model(weights=lacking),
            lambda: core_session(model, exc_block_size=1000),
            lambda: _core.decode(b"123", "float32", 1),
        ):
            with pytest.raises(ql.Error):
                failing()

    for _ in range(10):
        once()
    gc.collect()
    tracemalloc.start()
    try:
        once()
        gc.collect()
        traced, resident = tracemalloc.get_traced_memory()[0], resident_bytes()
        for _ in range(60):
            once()
        gc.collect()
        traced, resident = (
            tracemalloc.get_traced_memory()[0] - traced,
            resident_bytes() - resident,
        )
    finally:
        tracemalloc.stop()
    # one model takes 60 KiB, its sessions more: 60 times that would be several MiB
    assert traced < 20_000
    if not ADDRESS_SANITIZER:  # which keeps freed memory for a while
        assert resident < 1_500_000


@pytest.mark.skipif(ADDRESS_SANITIZER, reason="its own memory exceeds every limit")
def test_too_little_memory_is_a_memory_error() -> None:
    program = """
import resource
from pathlib import Path
from tiny_core import EXC, core_model, core_session, ids

session = core_session(core_model())
session.feed(ids(64))
many = ids(1_000_000)
used = int(Path("/proc/self/statm").read_text().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (used + 40_000_000, resource.RLIM_INFINITY))
for all_logits in (True, False):  # there is no room for logits; for keys and values
    try:
        session.feed(many, all_logits=all_logits)
    except MemoryError as error:
        print(len(session) >= 64, len(session) % EXC, len(str(error)) > 15)
session.reset()
print(len(session), session.feed(ids(200)).shape)
"""
    assert run_program(program) == "True 0 True\nTrue 0 True\n0 (96,)\n"


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or ADDRESS_SANITIZER, reason="about glibc's own memory"
)
def test_memory_goes_back_to_the_system() -> None:
    """Keys and values lie in parts so small that glibc keeps them when they are freed."""
    program = """
from test_ownership import resident
from tiny_core import CONFIG, core_model, core_session, ids
model = core_model({**CONFIG, "num_hidden_layers": 8})
before = resident()
session = core_session(model, mode="infllm", topk=0, n_local=256, block_size=64, exc_block_size=256)
session.read(ids(60_000))
held, nbytes = resident(), session.nbytes
del session
print(nbytes, held - before, resident() - before)
"""
    nbytes, held, left = map(int, run_program(program, MALLOC_MMAP_THRESHOLD_="33554432").split())
    assert held > nbytes > 100 << 20 and left < held / 4


def resident() -> int:
    """Bytes of this process's own memory."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("RssAnon"))
