"""What the machine can do at most: peak rates by number format, and reading memory.

python benchmarks/limits.py [--threads 2] [--seconds 0.2]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import machine
import native
from report import print_table

MEMORY_BYTES = 256 << 20
"""Read by each thread: several times the caches of one core's share."""

# The limit of a CPU variant that multiplies a type by itself.
_BFLOAT16 = {"avx512bf16": "bfloat16", "amx": "bfloat16_tiles"}
_INT8 = {
    "avx2": "int8_256",
    "avxvnni": "int8_vnni_256",
    "avx512vnni": "int8",
    "avx512bf16": "int8",
    "amx": "int8",
}

Limits = dict[str, dict[str, float]]
"""Number of threads -> what is measured -> operations or bytes in a second."""


def measure(program: Path, threads: Sequence[int], seconds: float, n_bytes: int) -> Limits:
    """One round of all measurements by the program limits.c, ``seconds`` each.

    Names: float32_256 and float32_512 (bits of a register; float32_128 elsewhere), int8_256 (by
    pairs in 16 bits), int8_vnni_256, bfloat16 and int8 where the CPU has them, memory.
    Multiply-adds count as two operations.
    """
    counts = [str(count) for count in dict.fromkeys(threads)]
    result = subprocess.run(
        [str(program), str(seconds), str(n_bytes), *counts],
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        raise RuntimeError(f"the program limits failed: {result.stderr.strip()}")
    found: Limits = {count: {} for count in counts}
    for line in result.stdout.splitlines():
        record = json.loads(line)
        found[str(record["threads"])][record["name"]] = record["rate"]
    return found


def peak(rates: Mapping[str, float], dtype: str, variant: str) -> float | None:
    """Operations in a second that ``variant`` can do with weights of ``dtype``: bfloat16 is
    multiplied by itself or as float32, fewer bits as int8. None if that was not measured, and for
    ``"stored"``, which is what a file has."""
    if dtype == "stored":
        return None
    if dtype not in ("float32", "bfloat16"):
        return rates.get(_INT8.get(variant, ""))
    if dtype == "bfloat16" and variant in _BFLOAT16:
        return rates.get(_BFLOAT16[variant])
    if variant == "avx2":
        return rates.get("float32_256")
    return max((rate for name, rate in rates.items() if name.startswith("float32")), default=None)


def tokens_per_second(
    rates: Mapping[str, float], flops: tuple[float, float], dtype: str, variant: str
) -> float | None:
    """The most tokens that can be read in a second; ``flops``: of one token, in linear layers
    (with weights of ``dtype``) and in attention, which multiplies float32 beside weights of
    float32, and bfloat16 beside all others."""
    linear = peak(rates, dtype, variant)
    attention = peak(rates, "float32" if dtype == "float32" else "bfloat16", variant)
    if not linear or not attention:
        return None
    return 1 / (flops[0] / linear + flops[1] / attention)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=0.2, help="of each measurement")
    parser.add_argument("--limits", type=Path, help="the program limits.c, built before")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        program = options.limits or native.build("limits", Path(folder))
        found = measure(program, [1, options.threads], options.seconds, MEMORY_BYTES)
    names = list(next(iter(found.values())))
    rows = [[name, *(f"{found[count][name] / 1e9:.1f}" for count in found)] for name in names]
    title = f"{machine.describe()['cpu']}: 10⁹ operations or bytes a second"
    print_table(title, ["", *(f"{count} threads" for count in found)], rows)


if __name__ == "__main__":
    main()
