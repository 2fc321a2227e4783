"""One measurement in a process of its own: takes a task as JSON, prints the result as JSON.

Not for typing; speed.py starts it.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

from engines import ENGINES, Engine, Setting

CLOCK = time.perf_counter


def peak_bytes() -> int:
    """The most memory that this process ever had resident."""
    try:
        for line in Path("/proc/self/status").read_text("ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def made_ids(first: int, count: int, vocabulary: int) -> list[int]:
    """Tokens ``first`` ... of an endless text that all engines read."""
    return [(index * 7919 + 13) % vocabulary for index in range(first, first + count)]


def reading(engine: Engine, task: dict[str, Any]) -> dict[str, Any]:
    """Seconds of each segment of a long text. The first ``warm`` tokens fill the window and count
    for nothing; ends early after ``most_seconds``."""
    vocabulary, segment, warm = engine.vocabulary(), task["segment"], task["warm"]
    loaded = peak_bytes()
    engine.read(made_ids(0, warm, vocabulary))
    segments: list[dict[str, float]] = []
    spent = 0.0
    while len(segments) * segment < task["tokens"] and spent < task["most_seconds"]:
        at = warm + len(segments) * segment
        ids = made_ids(at, segment, vocabulary)
        begin = CLOCK()
        engine.read(ids)
        seconds = CLOCK() - begin
        spent += seconds
        segments.append({"end": at + segment, "seconds": seconds})
    held = engine.held()
    return {"segments": segments, "bytes": {"loaded": loaded, "peak": peak_bytes(), **held}}


def decoding(engine: Engine, task: dict[str, Any]) -> dict[str, Any]:
    """Tokens a second, generated after each of some numbers of tokens read."""
    rates = {}
    for depth in task["depths"]:
        engine.clear()
        engine.read(made_ids(0, depth, engine.vocabulary()))
        engine.decode(4)
        begin = CLOCK()
        engine.decode(task["new"])
        rates[str(depth)] = task["new"] / (CLOCK() - begin)
    return {"rates": rates}


def prompting(engine: Engine, task: dict[str, Any]) -> dict[str, Any]:
    """Tokens a second of a short prompt, read several times by itself; the median."""
    ids = made_ids(0, task["prompt"], engine.vocabulary())
    times = []
    for _ in range(task["repeats"] + 1):
        engine.clear()
        begin = CLOCK()
        engine.read(ids)
        times.append(CLOCK() - begin)
    times = sorted(times[1:])
    return {"rate": len(ids) / times[len(times) // 2], "prompt_tokens": len(ids)}


def loading(_engine: Engine, _task: dict[str, Any]) -> dict[str, Any]:
    """Nothing more than every job does: import and load."""
    return {}


JOBS = {"read": reading, "decode": decoding, "prompt": prompting, "load": loading}


def run(task: dict[str, Any]) -> dict[str, Any]:
    """Do a task: ``engine``, ``job``, ``setting``, and what the job needs."""
    engine = ENGINES[task["engine"]](Setting(**task["setting"]))
    begin = CLOCK()
    try:
        engine.start()
    except ModuleNotFoundError as problem:
        return {"missing": problem.name or task["engine"]}
    started = CLOCK()
    engine.load()
    loaded = CLOCK()
    result = JOBS[task["job"]](engine, task)
    times = {"import_seconds": started - begin, "load_seconds": loaded - started}
    return {**result, **times, "details": engine.details()}


if __name__ == "__main__":
    print("\n" + json.dumps(run(json.loads(sys.argv[1]))))
