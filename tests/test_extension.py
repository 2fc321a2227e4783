"""The extension: its functions, the life of models and of the arrays that they borrow."""

from __future__ import annotations

import copy
import gc
import inspect
import pickle
import re
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from fresh_python import run_program
from tiny_core import CONFIG, core_config, core_model, core_session, ids, tensors
from tiny_models import random_weights

import quickllama as ql
from quickllama import _core

# ---- functions of the module ----


def test_every_public_name_is_documented() -> None:
    of_every_named_tuple = ("n_fields", "n_sequence_fields", "n_unnamed_fields")
    undocumented = [
        f"{owner.__name__}.{name}"
        for owner in (_core, _core.Model, _core.Session, _core.TraceRecord)
        for name, value in vars(owner).items()
        if not name.startswith("_")
        and name not in of_every_named_tuple
        and not inspect.getdoc(value)
    ]
    assert not undocumented


def test_signatures_can_be_asked_for() -> None:
    assert str(inspect.signature(_core.decode)) == "(raw, dtype, n)"
    feed = inspect.signature(_core.Session.feed)
    assert list(feed.parameters) == ["self", "ids", "all_logits", "query_span"]
    assert inspect.signature(_core.Session).parameters["trace"].default is False


def test_cpu_variants_can_be_chosen_by_name() -> None:
    names = _core.cpu_variants()
    best = _core.cpu_variant()
    assert best == names[0] and "portable" in names
    try:
        _core.set_cpu_variant("portable")
        assert _core.cpu_variant() == "portable"
        portable = core_model().forward(ids(20))
    finally:
        _core.set_cpu_variant(None)
    assert _core.cpu_variant() == best
    np.testing.assert_allclose(core_model().forward(ids(20)), portable, atol=2e-5)


def test_names_of_hardware_and_libraries() -> None:
    assert isinstance(_core.computes_bfloat16(), bool)
    assert "OpenBLAS" in _core.blas_name()


def test_decode() -> None:
    values = np.random.default_rng(0).standard_normal(64).astype(np.float32)
    np.testing.assert_array_equal(_core.decode(values, "float32", 64), values)
    np.testing.assert_array_equal(_core.decode(values.tobytes(), "float32", 64), values)
    half = values.astype(np.float16)
    np.testing.assert_array_equal(_core.decode(half, "float16", 64), half.astype(np.float32))
    bits = (values.view(np.uint32) >> 16).astype(np.uint16)
    expected = (bits.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(_core.decode(bits, "bfloat16", 64), expected)
    scales = np.array([0.5, -2], np.float16)
    numbers = np.arange(-32, 32, dtype=np.int8).reshape(2, 32)
    blocks = b"".join(s.tobytes() + n.tobytes() for s, n in zip(scales, numbers, strict=True))
    expected = (scales[:, None].astype(np.float32) * numbers).ravel()
    np.testing.assert_array_equal(_core.decode(blocks, "q8_0", 64), expected)
    assert _core.decode(b"", "q4_1", 0).shape == (0,)


def test_sub_interpreters_are_refused() -> None:
    name = "_interpreters" if sys.version_info >= (3, 13) else "_xxsubinterpreters"
    pytest.importorskip(name)
    program = f"""
import {name} as interpreters
code = '''
import sys
sys.path[:] = {sys.path!r}
try:
    import quickllama._core
    print("imported")
except ImportError as error:
    print(error)
'''
interpreters.run_string(interpreters.create(), code)
"""
    # our own sentence, or Python's, which is first from 3.12 on
    assert re.search("sub-?interpreter", run_program(program))


# ---- models ----


def test_attributes() -> None:
    model = core_model(n_threads=2)
    found = {
        name: getattr(model, name)
        for name in ("dtype", "n_threads", "n_layers", "n_heads", "n_kv_heads", "head_dim")
    }
    assert found == {
        "dtype": "float32", "n_threads": 2, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2,
        "head_dim": 16,
    }  # fmt: skip
    assert (model.hidden_size, model.vocab_size) == (32, 96)
    assert model.nbytes == 4 * sum(array.size for array in random_weights(CONFIG, 0).values())
    assert "2 layers" in repr(model) and "float32" in repr(model)
    with pytest.raises(AttributeError):
        model.n_layers = 3  # type-checkers see a property; so does Python
    assert core_model(dtype="bfloat16").nbytes < model.nbytes


def test_forward_keeps_the_rows_asked_for() -> None:
    model = core_model()
    tokens = ids(20)
    logits = model.forward(tokens)
    assert logits.shape == (20, 96) and logits.dtype == np.float32
    assert logits.flags.owndata and logits.flags.c_contiguous
    np.testing.assert_array_equal(model.forward(tokens[None], 20), logits)
    last = model.forward(tokens, logits_to_keep=3)
    assert last.shape == (3, 96)
    np.testing.assert_allclose(last, logits[-3:], atol=1e-5)


def test_buffers_are_weights_too() -> None:
    weights = random_weights(CONFIG, 0)
    raw = [(name, a.tobytes(), "float32", a.shape) for name, a in weights.items()]
    views = [(name, memoryview(a), "float32", a.shape) for name, a in weights.items()]
    expected = core_model(weights=weights).forward(ids(9))
    for given in (raw, views):
        model = _core.Model(core_config(), given, "float32", 1)
        np.testing.assert_array_equal(model.forward(ids(9)), expected)


def test_float16_and_bfloat16_weights() -> None:
    weights = random_weights(CONFIG, 0)
    half = {name: array.astype(np.float16) for name, array in weights.items()}
    bits = {name: (a.view(np.uint32) >> 16).astype(np.uint16) for name, a in weights.items()}
    cases = {
        "float16": (half, {name: a.astype(np.float32) for name, a in half.items()}),
        "bfloat16": (
            bits,
            {name: (a.astype(np.uint32) << 16).view(np.float32) for name, a in bits.items()},
        ),
    }
    for dtype, (stored, same) in cases.items():
        given = [(name, array, dtype, array.shape) for name, array in stored.items()]
        model = _core.Model(core_config(), given, "float32", 1)
        expected = core_model(weights=same).forward(ids(9))
        np.testing.assert_array_equal(model.forward(ids(9)), expected)


def test_nan_weights_load() -> None:
    weights = random_weights(CONFIG, 0)
    weights["model.layers.0.mlp.up_proj.weight"][:] = np.nan
    model = core_model(weights=weights)
    assert np.isnan(model.forward(ids(5))).all()


def test_init_runs_once() -> None:
    model = core_model()
    expected = model.forward(ids(5))
    with pytest.raises(ql.Busy, match="__init__ has been called already"):
        model.__init__(core_config(), tensors(random_weights(CONFIG, 1)), "float32", 1)
    np.testing.assert_array_equal(model.forward(ids(5)), expected)


def test_a_model_without_init_says_so() -> None:
    class Forgetful(_core.Model):
        def __init__(self) -> None:
            self.name = "forgetful"

    model = Forgetful()
    assert "without weights" in repr(model)
    uses: list[Callable[[], object]] = [
        lambda: model.dtype,
        lambda: model.n_layers,
        lambda: model.nbytes,
        lambda: model.forward([1]),
        lambda: core_session(model),
    ]
    for use in uses:
        with pytest.raises(ql.Busy, match=r"super\(\).__init__"):
            use()


def test_a_failed_init_can_be_tried_again() -> None:
    model = _core.Model.__new__(_core.Model)
    with pytest.raises(ql.MissingKey):
        model.__init__(core_config(), [], "float32", 1)
    with pytest.raises(ql.Busy):
        model.forward([1])
    model.__init__(core_config(), tensors(random_weights(CONFIG, 0)), "float32", 1)
    np.testing.assert_array_equal(model.forward(ids(5)), core_model().forward(ids(5)))


def test_init_in_two_threads_at_once() -> None:
    """The second one finds the first at work, because tensors come from a generator."""
    model = _core.Model.__new__(_core.Model)
    errors = []

    def weights() -> Iterator[Any]:
        def second() -> None:
            try:
                model.__init__(core_config(), [], "float32", 1)
            except ql.Error as error:
                errors.append(error)

        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
        yield from tensors(random_weights(CONFIG, 0))

    model.__init__(core_config(), weights(), "float32", 1)
    assert [type(error) for error in errors] == [ql.Busy]
    assert model.forward([1]).shape == (1, 96)


def test_models_and_sessions_are_not_copied_or_pickled() -> None:
    model = core_model()
    for thing in (model, core_session(model)):
        for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError):
                attempt(thing)


def test_an_exception_of_the_tensors_passes() -> None:
    def broken() -> Iterator[Any]:
        yield next(tensors(random_weights(CONFIG, 0)))
        raise ZeroDivisionError("from the loader")

    with pytest.raises(ZeroDivisionError, match="from the loader"):
        _core.Model(core_config(), broken(), "float32", 1)


# ---- threads ----


def test_one_model_serves_many_threads() -> None:
    model = core_model(n_threads=2)
    prompts = [ids(60, seed) for seed in range(8)]
    expected = [model.forward(prompt) for prompt in prompts]
    found: list[Any] = [None] * len(prompts)

    def work(number: int) -> None:
        found[number] = model.forward(prompts[number])

    threads = [threading.Thread(target=work, args=(n,)) for n in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_other_threads_run_while_the_core_computes() -> None:
    session = core_session(core_model())
    thread = threading.Thread(target=session.feed, args=(ids(40_000),))
    turns = 0
    pause = threading.Event()
    thread.start()
    while thread.is_alive():
        pause.wait(0.001)
        turns += 1
    assert len(session) == 40_000
    assert turns > 20


def test_a_forked_child_computes() -> None:
    program = """
import os
import numpy as np
from tiny_core import core_model, core_session, ids

model = core_model(n_threads=3)
session = core_session(model)
session.feed(ids(50))
expected = session.fork().feed(ids(50), all_logits=True)
child = os.fork()
if child == 0:
    same = np.array_equal(session.feed(ids(50), all_logits=True), expected)
    os._exit(0 if same and core_model(n_threads=2).forward([1, 2]).size else 1)
print("child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print("parent", np.array_equal(session.feed(ids(50), all_logits=True), expected))
"""
    assert run_program(program).split() == ["child", "0", "parent", "True"]


def test_a_session_that_is_still_made_is_busy() -> None:
    """The garbage collector's list shows it while an option is asked for its value."""

    def sessions() -> set[_core.Session]:
        return {found for found in gc.get_objects() if type(found) is _core.Session}

    met: list[_core.Session] = []
    before = sessions()

    class Option:
        def __index__(self) -> int:
            met.extend(sessions() - before)
            for use in (len, lambda session: session.n_layers, lambda session: session.feed([1])):
                for session in met:
                    with pytest.raises(ql.Busy):
                        use(session)
            assert all("computing" in repr(session) for session in met)
            return 4

    session = core_session(core_model(), n_init=Option())
    assert met == [session]
    session.feed([1])
