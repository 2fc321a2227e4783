"""How reading and decoding gain from threads, beside what the machine's peak rates gain.

python benchmarks/scaling.py [--threads 1,2,4,8,16] [--dtype bfloat16] [--model made:llama3-8b:2]
    [--rounds 3] [--limits PROGRAM] [--json out.json]

Needs the installed package, NumPy, and a C compiler or the program limits.c built before; no files
of a model and no network. benchmarks/README.md says how whole models are projected.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import costs
import limits
import machine
import made_models
import native
import report
import tasks

from quickllama import MemoryConfig, ModelConfig
from quickllama.cpu import physical_cores
from quickllama.dtypes import held_dtype

COUNTS = (1, 2, 4, 8, 16)
PROJECTED = (2, 16, 64)  # cores
TEXT = 100_000  # tokens
TWO, MANY = 1.85, 0.75  # targets: gain of two threads; part of the limit's gain
COLUMNS = ("threads", "read", "of limit", "gain", "limit's", "part of it")
MORE_COLUMNS = ("decode", "of limit", "gain", "limit's", "part of it")
Record = Mapping[str, Any]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options, checked."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0] if __doc__ else None,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    here = [count for count in COUNTS if count <= physical_cores()]
    add("--threads", default=",".join(map(str, here)), help="numbers with commas; 1 is added")
    add("--model", default="made:llama3-8b:2", help="made:NAME:LAYERS: random weights")
    add("--dtype", default="bfloat16", help="of weights, with commas")
    add("--window", default="1k", help="of the memory: 512, 1k, 2k")
    add("--rounds", type=int, default=3)
    add("--tokens", type=int, default=1024, help="to read after the window is full")
    add("--new", type=int, default=32, help="tokens to decode")
    add("--limit-seconds", type=float, default=0.2, help="of each measurement of a limit")
    add("--limit-bytes", type=int, default=limits.MEMORY_BYTES, help="read by each thread")
    add("--limits", type=Path, help="the program limits.c, built before; else a compiler is needed")
    add("--variant", help="CPU variant by name; OpenBLAS's kernels follow it")
    add("--json", type=Path, help="write everything measured to this file")
    add("--quiet", action="store_true", help="print nothing but problems")
    options = parser.parse_args(arguments)
    try:
        options.threads = sorted({1, *(int(word) for word in options.threads.split(","))})
        options.dtype = [held_dtype(word) for word in options.dtype.split(",")]
        made_models.split(options.model)
    except ValueError as problem:
        parser.error(str(problem))
    if options.threads[0] < 1 or options.rounds < 1:
        parser.error("--threads and --rounds are at least 1")
    return options


def task_of(options: argparse.Namespace, dtype: str, threads: int, folder: str) -> tasks.Task:
    """The worker's task: reading, then decoding."""
    warm = tasks.warm_tokens(MemoryConfig.window(options.window))
    total = warm + options.tokens
    return {
        "engine": "quickllama",
        "job": "read",
        "folder": folder,
        "tokens": total,
        "segment": options.tokens,
        "warm": warm,
        "whole": False,
        "most_seconds": math.inf,
        "decode_after": [total],
        "save_after": [],
        "new": options.new,
        "most_decoding": math.inf,
        "setting": {
            "model": options.model,
            "dtype": dtype,
            "threads": threads,
            "variant": options.variant,
            "window": options.window,
        },
    }


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """One record for each round, dtype and number of threads: rates of reading and decoding
    (tokens a second) and their limits. Raises RuntimeError if a measurement fails."""
    environment, _ = machine.environment(options.variant)
    config = ModelConfig.from_hf(made_models.config_of(options.model))
    memory = MemoryConfig.window(options.window)
    flops = costs.flops_of_reading(config, costs.keys_while_reading(memory))
    records = []
    with tempfile.TemporaryDirectory() as folder:
        program = options.limits or native.build("limits", Path(folder))
        for number in range(options.rounds):
            for threads in options.threads:
                found = limits.measure(
                    program, [threads], options.limit_seconds, options.limit_bytes
                )
                rates = found[str(threads)]
                for dtype in options.dtype:
                    task = task_of(options, dtype, threads, folder)
                    result = tasks.run_worker(task, sys.executable, environment)
                    if "segments" not in result:
                        raise RuntimeError(f"{threads} threads, {dtype}: {result}")
                    (segment,) = result["segments"]
                    ((depth, decode),) = result["rates"].items()
                    held = result["bytes"]["weights"]
                    n_bytes = costs.bytes_of_decoding(config, memory, int(depth), held, "bfloat16")
                    variant = result["details"]["variant"]
                    records.append(
                        {
                            "round": number,
                            "dtype": dtype,
                            "threads": threads,
                            "read": segment["tokens"] / segment["seconds"],
                            "read_limit": limits.tokens_per_second(rates, flops, dtype, variant),
                            "decode": decode,
                            "decode_limit": rates["memory"] / n_bytes,
                            "rates": rates,
                            "details": result["details"],
                        }
                    )
                    if not options.quiet:
                        print(f"round {number + 1}: {threads} threads, {dtype}", file=sys.stderr)
    return records


def rows_of(records: Sequence[Record], dtype: str) -> list[dict[str, Any]]:
    """One row for each number of threads, medians over rounds: rates and limits, their gains over
    one thread in the same round, and the part of the limit's gain that the rate gained."""
    rounds: dict[int, dict[int, Record]] = {}
    for record in records:
        if record["dtype"] == dtype:
            rounds.setdefault(record["round"], {})[record["threads"]] = record
    rows = []
    for threads in rounds[0]:
        row: dict[str, Any] = {"threads": threads}
        pairs = [(found[1], found[threads]) for found in rounds.values()]
        for what in ("read", "decode"):
            limit = f"{what}_limit"
            row[what] = median(here[what] for _, here in pairs)
            row[f"{what}_gain"] = median(here[what] / one[what] for one, here in pairs)
            known = all(one[limit] and here[limit] for one, here in pairs)
            row[limit] = median(here[limit] for _, here in pairs) if known else None
            row[f"{what}_of_limit"] = (
                median(here[what] / here[limit] for _, here in pairs) if known else None
            )
            row[f"{what}_limit_gain"] = (
                median(here[limit] / one[limit] for one, here in pairs) if known else None
            )
            row[f"{what}_part"] = (
                median(here[what] / one[what] / (here[limit] / one[limit]) for one, here in pairs)
                if known
                else None
            )
        rows.append(row)
    return rows


def projections(rows: Sequence[Record], share: float) -> list[dict[str, Any]]:
    """Reading 100,000 tokens with the whole model, of which ``share`` was measured, on 2, 16 and 64
    cores. Layers are alike, so the whole takes 1 / share as long. Beyond the cores that were
    measured each doubling gains as much as the last measured one did."""
    rates = {row["threads"]: row["read"] for row in rows}
    most = max(rates)
    below = max((count for count in rates if count < most), default=None)
    found = []
    for cores in PROJECTED:
        measured = cores in rates
        if not measured and (below is None or cores < most):
            continue
        rate = rates[cores] if measured else rates[most]
        if not measured and below is not None:
            doublings = math.log2(cores / most) / math.log2(most / below)
            rate *= min(rates[most] / rates[below], most / below) ** doublings
        found.append(
            {
                "cores": cores,
                "seconds": TEXT / (rate * share),
                "threads_measured": cores if measured else most,
            }
        )
    return found


def verdicts(rows: Sequence[Record]) -> list[str]:
    """Sentences about the targets, for the numbers of threads that were measured."""
    found = []
    for row in rows:
        if row["threads"] == 2:
            word = "reached" if row["read_gain"] >= TWO else "missed"
            gain = f"{row['read_gain']:.2f} times as fast as 1"
            found.append(f"2 threads read {gain} ({TWO}: {word})")
        if row["threads"] == 16 and row["read_part"]:
            word = "reached" if row["read_part"] >= MANY else "missed"
            found.append(
                f"16 threads gain {row['read_gain']:.1f}, peak rates {row['read_limit_gain']:.1f}: "
                f"{row['read_part']:.2f} of it ({MANY}: {word})"
            )
    return found


def cells(row: Record) -> list[str]:
    """A row as cells of the table."""
    line = [str(row["threads"])]
    for what in ("read", "decode"):
        line.append(report.format_value(row[what], "tokens/s"))
        part = row[f"{what}_of_limit"]
        line.append(f"{100 * part:.0f} %" if part else "")
        for name in ("gain", "limit_gain", "part"):
            value = row[f"{what}_{name}"]
            line.append(f"{value:.2f}" if value else "")
    return line


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write."""
    options = parse(arguments)
    about, removed = machine.describe(), machine.environment()[1]
    try:
        records = measure(options)
    except RuntimeError as problem:
        sys.exit(f"scaling.py: {problem}")
    share = made_models.share(options.model)
    found = {dtype: rows_of(records, dtype) for dtype in options.dtype}
    whole = {
        "machine": about,
        "environment": {"removed": removed},
        "model": {"name": options.model, "share": share},
        "rows": found,
        "projections": {dtype: projections(rows, share) for dtype, rows in found.items()},
        "records": records,
    }
    if options.json:
        options.json.write_text(json.dumps(whole, indent=1) + "\n", "utf-8")
    if options.quiet:
        return
    name, layers = made_models.split(options.model)
    for dtype, rows in found.items():
        title = [
            f"{name}, {layers} layers, {dtype}, window {options.window}, tokens a second; "
            f"{about['cpu']}, {about['cores']} cores, load {about['load_average'][0]}",
            ", ".join(records[-1]["details"].values()),
            machine.removed_note(removed),
        ]
        text = "\n".join(filter(None, title))
        report.print_table(text, (*COLUMNS, *MORE_COLUMNS), [cells(row) for row in rows])
        for sentence in verdicts(rows):
            print(sentence)
        for one in whole["projections"][dtype]:
            measured = one["threads_measured"]
            how = "measured" if measured == one["cores"] else f"from {measured} threads"
            print(
                f"100,000 tokens with all layers of {name} on {one['cores']} cores: "
                f"{one['seconds']:.0f} s ({how})"
            )


if __name__ == "__main__":
    main()
