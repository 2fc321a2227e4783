"""The same tokens give the same bits, whatever the number of threads and however they arrive."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from oracle_cases import check_close
from reference import MODES
from tiny_models import random_ids, random_weights

import quickllama as ql

THREADS = (1, 2, 3, 5)
DTYPES = ("float32", "bfloat16", "int8", "q4")
CONFIG: dict[str, Any] = {
    # large enough that every matrix is cut into several panels
    "vocab_size": 1000,
    "hidden_size": 192,
    "intermediate_size": 520,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
}
WEIGHTS = random_weights(CONFIG, seed=20)
PROMPT = random_ids(CONFIG, 500, seed=21)
STEPS = random_ids(CONFIG, 4, seed=22)
EXC = 90  # tokens of an execution chunk; no multiple of any vector length
SIZES: dict[str, Any] = {
    "n_init": 20,
    "n_local": 128,
    "block_size": 16,
    "topk": 4,
    "repr_topk": 3,
    "exc_block_size": EXC,
}
MEMORIES = {
    **{mode: ql.MemoryConfig(mode=mode, **SIZES) for mode in MODES},
    "qllm, authors' mask": ql.MemoryConfig(mode="qllm", mask="authors", **SIZES),
    "qllm, few look-ups": ql.MemoryConfig(mode="qllm", lookup_interval=3, **SIZES),
    "qllm, question kept": ql.MemoryConfig(
        mode="qllm", keep_query_tokens=True, **{**SIZES, "n_init": 3}
    ),
}

# Weights' dtype, that of keys and values, and memories; weights of few bits know nothing of these.
COMBINATIONS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("float32", "float32", tuple(MEMORIES)),
    ("bfloat16", "bfloat16", tuple(MEMORIES)),
    ("float32", "int8", tuple(MEMORIES)),
    ("int8", "bfloat16", ("qllm",)),
    ("q4", "bfloat16", ("qllm",)),
)

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]


def build(n_threads: int | None = None, dtype: str = "float32") -> ql.Model:
    return ql.Model(CONFIG, WEIGHTS, dtype=dtype, n_threads=n_threads)


def begin(model: ql.Model, name: str, kv_dtype: str = "float32") -> ql.Session:
    memory = MEMORIES[name]
    span = (5, 17) if memory.mode == "qllm" else None
    return model.session(memory=memory, query_span=span, kv_dtype=kv_dtype, trace=True)


def read(session: ql.Session, cuts: Sequence[int] = (), prompt: Ids = PROMPT) -> Floats:
    """All logits of the prompt, fed in pieces that end at `cuts`, and of the steps after it."""
    pieces = [*np.split(prompt, list(cuts)), *np.split(STEPS, len(STEPS))]
    return np.concatenate([session.feed(piece, all_logits=True) for piece in pieces])


def digest(array: NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def thread_digests() -> list[str]:
    """One line per memory and dtypes: the digests of all logits with each number of threads."""
    lines = []
    prompt = PROMPT[:220]  # three chunks, several blocks
    for dtype, kv_dtype, names in COMBINATIONS:
        models = [build(n_threads, dtype) for n_threads in THREADS]
        for name in names:
            found = [digest(read(begin(model, name, kv_dtype), prompt=prompt)) for model in models]
            found += [digest(model.forward(prompt)) for model in models if name == "full"]
            lines.append(f"{dtype}; {kv_dtype}; {name}; {' '.join(found)}")
    return lines


def check_thread_digests(lines: Sequence[str]) -> None:
    assert len(lines) == sum(len(names) for _, _, names in COMBINATIONS)
    for line in lines:
        found = line.split("; ")[-1].split()
        for start in range(0, len(found), len(THREADS)):
            assert len(set(found[start : start + len(THREADS)])) == 1, line


@pytest.mark.parametrize("variant", ql.cpu_variants())
def test_threads_change_no_bit(variant: str) -> None:
    ql.set_cpu_variant(variant)
    check_thread_digests(thread_digests())


def test_threads_change_no_bit_with_the_haswell_kernels() -> None:
    """There, unlike with AVX-512, the bits of sgemm depend on how a matrix is split; ``portable``
    is the variant that multiplies by it."""
    program = (
        "import quickllama, test_determinism\n"
        "quickllama.set_cpu_variant('portable')\n"
        "for line in test_determinism.thread_digests(): print(line)"
    )
    environment = {
        **os.environ,
        "OPENBLAS_CORETYPE": "Haswell",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)]),
    }
    command = [sys.executable, "-c", program]
    result = subprocess.run(
        command,
        env=environment,
        cwd=Path(__file__).parent,  # not the source tree, whose package is not built
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    check_thread_digests(result.stdout.splitlines())


@pytest.mark.parametrize("cuts", [(EXC,), (2 * EXC, 3 * EXC), tuple(range(EXC, 500, EXC))])
@pytest.mark.parametrize("name", MEMORIES)
def test_splitting_at_whole_chunks_changes_no_bit(name: str, cuts: tuple[int, ...]) -> None:
    model = build()
    np.testing.assert_array_equal(read(begin(model, name), cuts), read(begin(model, name)))


@pytest.mark.parametrize("kv_dtype", ["bfloat16", "int8"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_splits_and_forks_change_no_bit_in_any_dtype(dtype: str, kv_dtype: str) -> None:
    model = build(dtype=dtype)
    expected = read(begin(model, "qllm", kv_dtype))
    np.testing.assert_array_equal(read(begin(model, "qllm", kv_dtype), (2 * EXC,)), expected)
    original = begin(model, "qllm", kv_dtype)
    first = original.feed(PROMPT[: 2 * EXC], all_logits=True)
    rest = read(original.fork(), prompt=PROMPT[2 * EXC :])
    np.testing.assert_array_equal(np.concatenate([first, rest]), expected)


@pytest.mark.parametrize("name", ["infllm", "qllm"])
def test_splitting_elsewhere_changes_numbers(name: str) -> None:
    """What the test above would miss if all splits were alike: a call is cut from its own start."""
    model = build()
    assert not np.array_equal(read(begin(model, name), (EXC + 7,)), read(begin(model, name)))


@pytest.mark.parametrize("name", MEMORIES)
def test_the_same_again_is_the_same(name: str) -> None:
    session = begin(build(), name)
    first, records = read(session), len(session.trace)
    session.reset()
    assert len(session) == len(session.trace) == 0
    np.testing.assert_array_equal(read(session), first)
    assert len(session.trace) == records
    np.testing.assert_array_equal(read(begin(build(), name)), first)


@pytest.mark.parametrize("at", [40, EXC, 3 * EXC, 499])
@pytest.mark.parametrize("name", MEMORIES)
def test_fork_equals_original(name: str, at: int) -> None:
    """A fork goes on as the original would, and neither notices what the other reads."""
    model = build()
    original, undisturbed = begin(model, name), begin(model, name)
    for session in (original, undisturbed):
        session.feed(PROMPT[:at])
    fork = original.fork()
    other_text = original.fork()
    other_text.feed(PROMPT[::-1])
    rest = fork.feed(PROMPT[at:], all_logits=True)
    assert (len(original), len(fork)) == (at, len(PROMPT))
    np.testing.assert_array_equal(rest, original.feed(PROMPT[at:], all_logits=True))
    np.testing.assert_array_equal(rest, undisturbed.feed(PROMPT[at:], all_logits=True))
    for layer in range(CONFIG["num_hidden_layers"]):
        np.testing.assert_array_equal(fork.block_vectors(layer), original.block_vectors(layer))
    for session in (fork, original):
        session.feed(STEPS[:1])
    np.testing.assert_array_equal(fork.feed(STEPS[1:]), original.feed(STEPS[1:]))


def test_forward_equals_a_full_session() -> None:
    model = build()
    expected = begin(model, "full").feed(PROMPT, all_logits=True)
    check_close(model.forward(PROMPT), expected, 1e-5, "forward")
    np.testing.assert_array_equal(model.forward(PROMPT), model.forward(PROMPT))
