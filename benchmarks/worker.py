"""One measurement in a process of its own: takes a task as JSON, prints the result as JSON.

Not for typing; speed.py and scaling.py start it.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from engines import ENGINES, Engine, QuickLlama, Setting

CLOCK = time.perf_counter
PIECES = 4  # of a measured stretch of decoding
NOTHING = {"tokens": 0, "seconds": 0.0}


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


def timed_read(engine: Engine, count: int) -> float:
    """Seconds that the next ``count`` tokens of the text take. Raises RuntimeError if they are
    not all there afterwards."""
    at = engine.length()
    ids = made_ids(at, count, engine.vocabulary())
    begin = CLOCK()
    engine.read(ids)
    seconds = CLOCK() - begin
    if engine.length() != at + count:
        raise RuntimeError(f"{count} tokens after {at} make {engine.length()}")
    return seconds


def decode_rate(engine: Engine, task: dict[str, Any]) -> float:
    """Tokens a second, each the best one: the median of :data:`PIECES` pieces of ``new`` tokens
    together, of fewer after ``most_decoding`` seconds."""
    timed_read(engine, 1)  # also has logits where a timeline came from a file
    engine.decode(3)
    count = max(1, task["new"] // PIECES)
    rates: list[float] = []
    spent = 0.0
    while len(rates) < PIECES and spent < task["most_decoding"]:
        begin = CLOCK()
        engine.decode(count)
        seconds = CLOCK() - begin
        spent += seconds
        rates.append(count / seconds)
    return median(rates)


def reach(engine: Engine, depth: int, task: dict[str, Any]) -> None:
    """A timeline of ``depth`` tokens: from the file of an engine with the same shapes (its numbers
    differ, costs do not), else by reading."""
    engine.clear()
    path = Path(task["folder"]) / f"{task['engine']}-{depth}.timeline"
    if path.exists() and engine.restore(path):
        if engine.length() != depth:
            raise RuntimeError(f"{path.name} holds {engine.length()} tokens")
        return
    timed_read(engine, depth)
    engine.save(path)


def reading(engine: Engine, task: dict[str, Any]) -> dict[str, Any]:
    """Seconds of each segment of a text of ``tokens`` tokens, and decoding after some. The first
    ``warm`` tokens fill the window and make no segment; ends early after ``most_seconds``. With
    ``whole`` as :func:`whole_reading`."""
    timed_read(engine, min(64, task["segment"]))
    engine.clear()
    loaded = peak_bytes()
    if task["whole"]:
        segments = whole_reading(engine, task)
        held = {"loaded": loaded, "peak": peak_bytes(), **engine.held()}
        return {"segments": segments, "warm": NOTHING, "rates": {}, "bytes": held}
    segments = []
    rates: dict[str, float] = {}
    wanted = sorted(task["decode_after"])

    def look_around() -> None:
        end = engine.length()
        if end in task["save_after"]:
            engine.save(Path(task["folder"]) / f"{task['engine']}-{end}.timeline")
        if wanted and end >= wanted[0]:
            wanted[:] = [depth for depth in wanted if depth > end]
            rates[str(end)] = decode_rate(engine, task)

    spent = first = timed_read(engine, task["warm"]) if task["warm"] else 0.0
    look_around()
    while not segments or (engine.length() < task["tokens"] and spent < task["most_seconds"]):
        seconds = timed_read(engine, task["segment"])
        spent += seconds
        end = engine.length()
        segments.append({"end": end, "tokens": task["segment"], "seconds": seconds})
        look_around()
    return {
        "segments": segments,
        "warm": {"tokens": task["warm"], "seconds": first},
        "rates": rates,
        "bytes": {"loaded": loaded, "peak": peak_bytes(), **engine.held()},
    }


def skimming(engine: Engine, task: dict[str, Any]) -> dict[str, Any]:
    """The same for a session that skims; with the number of layers that are computed."""
    found = reading(engine, task)
    assert isinstance(engine, QuickLlama)
    return {**found, "layers": engine.state["session"].n_layers}


def whole_reading(engine: Engine, task: dict[str, Any]) -> list[dict[str, float]]:
    """Segments for an engine that is faster without pieces: texts of ``segment`` tokens, of twice
    as many ... are read whole; a segment is by what a text took longer than the one before."""
    segments: list[dict[str, float]] = []
    before, last, spent, count = 0, 0.0, 0.0, task["segment"]
    while not segments or (count <= task["tokens"] and spent < task["most_seconds"]):
        engine.clear()
        seconds = timed_read(engine, count)
        segments.append({"end": count, "tokens": count - before, "seconds": seconds - last})
        spent += seconds
        before, last, count = count, seconds, 2 * count
    return segments


def decoding(engine: Engine, task: dict[str, Any]) -> dict[str, Any]:
    """Tokens a second, generated after each of some numbers of tokens read."""
    rates = {}
    for depth in task["depths"]:
        reach(engine, depth, task)
        rates[str(depth)] = decode_rate(engine, task)
    return {"rates": rates, "bytes": engine.held()}


def prompting(engine: Engine, task: dict[str, Any]) -> dict[str, Any]:
    """Tokens a second of a short prompt, read several times by itself; the median. With the best
    tokens after it, which engines with the same weights agree on."""
    times = []
    for _ in range(task["repeats"] + 1):
        engine.clear()
        times.append(timed_read(engine, task["prompt"]))
    logits = engine.logits()
    best = logits.argsort()[-5:][::-1]
    return {
        "rate": task["prompt"] / median(times[1:]),
        "prompt_tokens": task["prompt"],
        "best": [[int(token), float(logits[token])] for token in best],
        "spread": float(logits.std()),
    }


def loading(_engine: Engine, _task: dict[str, Any]) -> dict[str, Any]:
    """Nothing more than every job does: import and load."""
    return {}


JOBS = {
    "read": reading,
    "deep": reading,
    "skim": skimming,
    "decode": decoding,
    "prompt": prompting,
    "load": loading,
}


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


def main() -> None:
    """Do the task of the command line."""
    task = json.loads(sys.argv[1])
    if task["engine"] != "quickllama":  # peers look for packages called as files of this folder are
        sys.path.remove(str(Path(__file__).resolve().parent))
    print("\n" + json.dumps(run(task)))


if __name__ == "__main__":
    main()
