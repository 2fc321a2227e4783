"""Rates of the core's kernels by CPU variant, beside the limits of the machine.

python benchmarks/kernels.py [--variants avx512bf16,avx2] [--threads 2] [--json out.json]

The core is compiled anew with a small program around it (kernels.c) and measured without Python.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import limits
import machine
import native
import report

from quickllama.cpu import physical_cores

COLUMNS = ("kernel", "what", "threads", "10⁹ flop/s", "GB/s", "of", "ratio")


def variants_here() -> list[str]:
    """CPU variants that run here and that somebody would use."""
    from quickllama import cpu_variants

    return [name for name in cpu_variants() if name != "naive"]


def measure(
    program: Path, variant: str, threads: int, seconds: float, size: int
) -> list[dict[str, Any]]:
    """All kernels of a variant: one record for each line of the program kernels.c."""
    environment, _ = machine.environment(variant)
    result = subprocess.run(
        [str(program), variant, str(threads), str(seconds), str(size)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        raise RuntimeError(f"the program kernels failed: {result.stderr.strip()}")
    return [json.loads(line) for line in result.stdout.splitlines()]


def add_rates(record: dict[str, Any], found: limits.Limits) -> dict[str, Any]:
    """The record with ``flops_per_second``, ``bytes_per_second``, and its ``limit_rate`` and
    ``ratio`` (None where no limit was measured)."""
    rates: Mapping[str, float] = found[str(record["threads"])]
    flops, n_bytes = (record[name] / record["seconds"] for name in ("flops", "bytes"))
    limit: float | None
    if record["limit"] == "memory":
        limit, reached = rates.get("memory"), n_bytes
    elif record["limit"]:
        limit, reached = limits.peak(rates, record["limit"], record["variant"]), flops
    else:
        limit, reached = None, 0.0
    return {
        **record,
        "flops_per_second": flops,
        "bytes_per_second": n_bytes,
        "limit_rate": limit,
        "ratio": reached / limit if limit else None,
    }


def cells(record: Mapping[str, Any]) -> list[str]:
    """A record as a row of the table."""
    flops, n_bytes = record["flops_per_second"] / 1e9, record["bytes_per_second"] / 1e9
    limit = record["limit_rate"]
    return [
        record["kernel"],
        record["what"],
        str(record["threads"]),
        f"{flops:.1f}" if flops else "",
        f"{n_bytes:.1f}" if n_bytes else "",
        f"{limit / 1e9:.0f}" if limit else "",
        f"{100 * record['ratio']:.0f} %" if record["ratio"] else "",
    ]


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options, checked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add = parser.add_argument
    add("--variants", help="with commas; all that run here, best first, unless given")
    add("--threads", type=int, default=physical_cores())
    add("--seconds", type=float, default=0.5, help="of each measurement")
    add("--size", type=int, default=1, help="divides large sizes: for a quick look")
    add("--optimise", default="-O3", help="of the compiler")
    add("--limit-bytes", type=int, default=limits.MEMORY_BYTES, help="read by each thread")
    add("--json", type=Path, help="write everything measured to this file")
    add("--quiet", action="store_true", help="print nothing but problems")
    options = parser.parse_args(arguments)
    known = variants_here()
    options.variants = options.variants.split(",") if options.variants else known
    for name in options.variants:
        if name not in known and name != "naive":
            parser.error(f"--variants takes {', '.join(known)}, naive, not {name!r}")
    if not 1 <= options.threads <= 64 or options.size < 1:
        parser.error("--threads is 1 to 64, --size at least 1")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write."""
    options = parse(arguments)
    counts = [1, options.threads]
    records = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bounds = native.build("limits", folder)
        program = native.build("kernels", folder, core=True, optimise=options.optimise)
        found = {}
        for variant in options.variants:  # limits again beside each: clocks change
            seconds = min(0.2, options.seconds)
            found[variant] = limits.measure(bounds, counts, seconds, options.limit_bytes)
            measured = measure(program, variant, options.threads, options.seconds, options.size)
            records += [add_rates(record, found[variant]) for record in measured]
    about, removed = machine.describe(), machine.environment()[1]
    if options.json:
        whole = {
            "machine": about,
            "environment": {"removed": removed},
            "limits": found,
            "kernels": records,
        }
        options.json.write_text(json.dumps(whole, indent=1) + "\n", "utf-8")
    if options.quiet:
        return
    note = machine.removed_note(removed)
    for variant in options.variants:
        title = f"{variant}, {about['cpu']}" + (f"\n{note}" if note else "")
        rows = [cells(record) for record in records if record["variant"] == variant]
        report.print_table(title, COLUMNS, rows)


if __name__ == "__main__":
    main()
