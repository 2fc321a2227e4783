"""Which measurements are made, in which order; each is a process of its own (worker.py).

First the long ones (reading, and decoding far into a text), once, each after a measurement of the
machine's limits. Then rounds of short ones: limits, then everything once, so that slow minutes of
the machine hit all engines alike.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import limits
import machine
import native
import peer_models
from costs import keys_while_reading

from quickllama import MemoryConfig

WORKER = Path(__file__).resolve().parent / "worker.py"
SHORT = ("prompt", "decode", "load")
NEAR = 4096  # tokens after which a window is full; decoding far into a text is compared with it
Task = dict[str, Any]


@dataclass(frozen=True)
class Subject:
    """What is measured: an engine with a model whose weights are held as ``dtype``.

    * ``label``: what rows call it; ``python``: the interpreter that has its library.
    * ``long``: its long jobs; ``memory``: fields of MemoryConfig that differ from the window's.
    """

    engine: str
    dtype: str
    model: str
    label: str
    python: str
    long: tuple[str, ...] = ()
    short: tuple[str, ...] = SHORT
    memory: Mapping[str, Any] = field(default_factory=dict)


def warm_tokens(memory: MemoryConfig) -> int:
    """Whole execution chunks until first tokens, blocks and window are full."""
    chunk = memory.exc_block_size
    return -int(-keys_while_reading(memory) // chunk) * chunk + chunk


def subjects_of(options: argparse.Namespace, path: Path, folder: Path) -> Iterator[Subject]:
    """Everything to be measured. Of a peer's dtypes only the first reads long texts; look-ups at
    other intervals than MemoryConfig's are measured with one dtype."""
    here, model = sys.executable, str(path)
    for dtype in options.dtype:
        yield Subject("quickllama", dtype, model, dtype, here, ("read",))
        yield Subject("quickllama", dtype, model, f"{dtype}, skim", here, ("skim",), ())
    far = "bfloat16" if "bfloat16" in options.dtype else options.dtype[0]
    yield Subject("quickllama", far, options.deep, far, here, ("deep",), ())
    for interval in options.lookup_interval:
        if interval == MemoryConfig().lookup_interval:
            continue
        memory = {"lookup_interval": interval}
        label = f"{far}, look-up each {interval}"
        yield Subject("quickllama", far, model, label, here, ("read",), ("decode",), memory)
        yield Subject("quickllama", far, options.deep, label, here, ("deep",), (), memory)
    python = options.peer_python
    if "transformers" in options.peers:
        model = str(peer_models.for_transformers(path, folder))
        for number, dtype in enumerate(options.transformers_dtype):
            long = () if number else ("read",)
            yield Subject("transformers", dtype, model, dtype, python, long)
    if "llamacpp" in options.peers:
        for number, dtype in enumerate(options.llamacpp_dtype):
            model = str(peer_models.for_llamacpp(path, dtype, folder))
            long = () if number else ("read",)
            yield Subject("llamacpp", dtype, model, dtype, python, long)


def jobs_of(options: argparse.Namespace, names: tuple[str, ...]) -> list[str]:
    """Those jobs that ``--what`` asks for; memory is looked at while reading."""
    wanted = {*options.what, *(["read"] if "memory" in options.what else [])}
    return [name for name in names if name in wanted]


def task_of(options: argparse.Namespace, subject: Subject, job: str, folder: Path) -> Task:
    """The worker's task."""
    own = subject.engine == "quickllama"
    memory = MemoryConfig.window(options.window)
    tokens = options.tokens if own else options.peer_tokens
    task: Task = {
        "engine": subject.engine,
        "job": job,
        "folder": str(folder),
        "new": options.new,
        "most_decoding": options.most_decoding,
        "most_seconds": options.most_seconds,
        "tokens": tokens,
        "segment": options.segment if own else options.peer_segment,
        "warm": warm_tokens(memory) if own else 0,
        "whole": subject.engine == "transformers",
        "decode_after": [min(NEAR, tokens), tokens] if own else [],
        "save_after": options.llamacpp_depth,
        "depths": options.llamacpp_depth if subject.engine == "llamacpp" else options.depth,
        "prompt": options.prompt,
        "repeats": 3,
    }
    if job == "deep":
        tokens = options.deep_tokens
        depths = {min(depth, tokens) for depth in (NEAR, options.tokens, tokens)}
        task |= {"tokens": tokens, "decode_after": sorted(depths), "most_seconds": math.inf}
    if job == "skim":
        task |= {"warm": 2 * MemoryConfig.skim().n_local, "decode_after": []}
    if own:  # so that the last segment ends with the text
        task["warm"] += (task["tokens"] - task["warm"]) % task["segment"]
    longest = {
        "prompt": options.prompt,
        "decode": max(task["depths"]),
        "read": tokens + task["segment"],
    }
    task["setting"] = {
        "model": subject.model,
        "dtype": subject.dtype,
        "threads": options.threads,
        "most_tokens": longest.get(job, 0) + options.new + 256,
        "variant": options.variant,
        "window": options.window,
        "memory": dict(subject.memory),
        "skim": job == "skim",
    }
    return task


def run_worker(task: Task, python: str, environment: dict[str, str]) -> dict[str, Any]:
    """The worker's answer, or ``{"failed": why}``."""
    result = subprocess.run(
        [python, str(WORKER), json.dumps(task)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        last = (result.stderr.strip() or f"status {result.returncode}").splitlines()[-1]
        return {"failed": last}
    answer: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return answer


def measure(options: argparse.Namespace, path: Path) -> dict[str, Any]:
    """``limits``: each measurement of them; ``results``: one record for each process, whose
    ``round`` is the index of the limits measured before it."""
    environment, _ = machine.environment(options.variant, options.core_type)
    found: list[limits.Limits] = []
    results: list[dict[str, Any]] = []
    unusable: set[str] = set()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        program = options.limits or native.build("limits", folder)
        subjects = list(subjects_of(options, path, folder))

        def measure_limits() -> None:
            counts, n_bytes = [1, options.threads], options.limit_bytes
            found.append(limits.measure(program, counts, options.limit_seconds, n_bytes))

        def do(subject: Subject, job: str) -> None:
            if subject.engine in unusable:
                return
            task = task_of(options, subject, job, folder)
            answer = run_worker(task, subject.python, environment)
            if "missing" in answer:
                unusable.add(subject.engine)
            record = {
                "round": len(found) - 1,
                "engine": subject.engine,
                "dtype": subject.dtype,
                "label": subject.label,
                "model": subject.model,
                "memory": dict(subject.memory),
                "job": job,
            }
            results.append({**record, **answer})
            if not options.quiet:
                passed = time.monotonic() - start
                print(f"{passed:5.0f} s: {subject.engine} {subject.label} {job}", file=sys.stderr)

        for subject in subjects:
            for job in jobs_of(options, subject.long):
                measure_limits()
                do(subject, job)
        for _ in range(options.rounds if jobs_of(options, SHORT) else 0):
            measure_limits()
            for subject in subjects:
                for job in jobs_of(options, subject.short):
                    do(subject, job)
    return {"limits": found, "results": results}
