"""Speed and memory of QuickLLaMA and its peers, beside the limits of the machine.

python benchmarks/speed.py [--peers transformers,llamacpp] [--peer-python PATH]
    [--what read,skim,decode,prompt,load,memory,deep] [--dtype float32,bfloat16,int8]
    [--tokens 100000] [--threads 2] [--rounds 3] [--json out.json] [--plot out.png]

Each measurement runs in a process of its own; a round measures the limits, then everything once.
benchmarks/README.md says what the numbers mean and how long it takes.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from pathlib import Path
from typing import Any

import limits
import machine
import made_models
import peer_models
import report
import rows
import tasks

from quickllama import MemoryConfig, ModelConfig, checkpoint
from quickllama.cpu import physical_cores
from quickllama.dtypes import held_dtype
from quickllama.hub import locate

WHAT = ("read", "skim", "decode", "prompt", "load", "memory")
MORE = ("deep",)
PEERS = ("transformers", "llamacpp")
DTYPES = ["bfloat16", "int8", "q4", "float32"]
TRANSFORMERS_TYPES = ("bfloat16", "float32")


def words(text: str) -> list[str]:
    """The words of a list with commas."""
    return [word for word in text.split(",") if word]


def numbers(text: str) -> list[int]:
    """The numbers of a list with commas, ascending, each once."""
    return sorted({int(word) for word in words(text)})


def parser() -> argparse.ArgumentParser:
    """All options."""
    made = argparse.ArgumentParser(
        description=__doc__.splitlines()[0] if __doc__ else None,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = made.add_argument
    add("--what", type=words, default=list(WHAT), help="of: " + ", ".join((*WHAT, *MORE)))
    add("--peers", type=words, default=[], help="of: " + ", ".join(PEERS))
    add("--peer-python", default=sys.executable, help="the interpreter that has the peers")
    add("--model", default="smollm2", help="GGUF file, HuggingFace folder, or smollm2")
    add("--dtype", type=words, default=DTYPES, help="of weights")
    add("--llamacpp-dtype", type=words, default=["bfloat16", "q8_0", "stored"], help="its weights")
    add("--transformers-dtype", type=words, default=["bfloat16"], help="its weights")
    add("--window", default="1k", help="of the memory: 512, 1k, 2k")
    add("--threads", type=int, default=physical_cores())
    add("--rounds", type=int, default=3, help="of short measurements")
    add("--tokens", type=int, default=100_000, help="to read")
    add("--segment", type=int, default=4096, help="tokens of a measured piece of reading")
    add("--depth", type=numbers, default=[16, 4096], help="tokens read before decoding")
    add("--lookup-interval", type=numbers, default=[1, 8], help="fields of MemoryConfig")
    add("--new", type=int, default=64, help="tokens to decode")
    add("--prompt", type=int, default=512, help="tokens of the short prompt")
    add("--peer-tokens", type=int, default=16384, help="for peers to read")
    add("--peer-segment", type=int, default=1024, help="tokens of a piece of their reading")
    add("--llamacpp-depth", type=numbers, default=[16, 4096, 16384], help="as --depth")
    add("--deep", default="made:smollm2-135m:6", help="the model for what is deep")
    add("--deep-tokens", type=int, default=1_000_000, help="for it to read")
    add("--most-seconds", type=float, default=300, help="after which a reading stops early")
    add("--most-decoding", type=float, default=6, help="seconds after which decoding stops early")
    add("--limit-seconds", type=float, default=0.2, help="of each measurement of a limit")
    add("--limit-bytes", type=int, default=limits.MEMORY_BYTES, help="read by each thread")
    add("--limits", type=Path, help="the program limits.c, built before; else a compiler is needed")
    add("--variant", help="QuickLLaMA's CPU variant by name; BLAS libraries' kernels follow it")
    add("--core-type", help="OpenBLAS's kernels by name, as OPENBLAS_CORETYPE")
    add("--json", type=Path, help="write everything measured to this file")
    add("--plot", type=Path, help="write a picture of reading to this file")
    add("--quiet", action="store_true", help="print nothing but problems")
    return made


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options, checked."""
    made = parser()
    options = made.parse_args(arguments)
    for name, known in (
        ("what", (*WHAT, *MORE)),
        ("peers", PEERS),
        ("llamacpp_dtype", (*peer_models.GGUF_TYPES, "stored")),
        ("transformers_dtype", TRANSFORMERS_TYPES),
    ):
        for word in getattr(options, name):
            if word not in known:
                made.error(f"--{name.replace('_', '-')} takes {', '.join(known)}, not {word!r}")
    try:
        options.dtype = [held_dtype(word) for word in options.dtype]
        made_models.split(options.deep)
    except ValueError as problem:
        made.error(str(problem))
    for name in ("threads", "rounds", "tokens", "segment", "new", "prompt"):
        if getattr(options, name) < 1:
            made.error(f"--{name} is at least 1")
    return options


def summary(options: argparse.Namespace, path: Path) -> dict[str, Any]:
    """Measure, and put together what ``--json`` writes."""
    config = ModelConfig.from_hf(checkpoint.open(path).config)
    deep = ModelConfig.from_hf(made_models.config_of(options.deep))
    _, removed = machine.environment()
    about = machine.describe()
    measured = tasks.measure(options, path)
    results = measured["results"]
    setting = rows.Setting(
        configs={str(path): config, options.deep: deep},
        memory=MemoryConfig.window(options.window),
        threads=options.threads,
        what=tuple(options.what),
    )
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": about,
        "model": {"name": path.name, "parameters": config.parameters},
        "options": {
            name: str(value) if isinstance(value, Path) else value
            for name, value in vars(options).items()
        },
        "environment": {"removed": removed, "core_type": options.core_type},
        "details": rows.details(results),
        "limits": rows.median_limits(measured["limits"]),
        "rows": rows.rows_of(setting, measured["limits"], results),
        "strangers": rows.strangers(results),
        "curves": rows.curves_of(setting, measured["limits"], results),
        "rounds": measured,
    }


def heading(found: dict[str, Any]) -> str:
    """What stands above the table: machine, limits, and what was unusual."""
    limit_lines = []
    for count, rates in found["limits"].items():
        pairs = ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in rates.items())
        limit_lines.append(f"{count} threads, 10⁹ operations or bytes a second: {pairs}")
    about = found["machine"]
    lines = [
        f"{found['model']['name']}, {found['options']['threads']} threads, window "
        f"{found['options']['window']}; {about['cpu']}, {about['cores']} cores",
        *limit_lines,
        *(f"{engine}: {', '.join(text.values())}" for engine, text in found["details"].items()),
    ]
    lines += found["strangers"]
    note = machine.removed_note(found["environment"]["removed"])
    busy = about["load_average"][0]
    if busy > 0.5 + about["cores"]:
        lines.append(f"the machine is busy (load {busy}): do not trust these numbers")
    return "\n".join([*lines, note] if note else lines)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write."""
    options = parse(arguments)
    path = locate(options.model)
    if "llamacpp" in options.peers and path.suffix != ".gguf":
        print(f"speed.py: llama.cpp reads GGUF files, and {path} is none", file=sys.stderr)
        sys.exit(2)
    found = summary(options, path)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1, default=str) + "\n", "utf-8")
    if not options.quiet:
        report.print_table(heading(found), report.COLUMNS, report.table_rows(found["rows"]))
    if options.plot:
        title = f"{found['model']['name']} on {found['machine']['cpu']}, {options.threads} threads"
        report.plot(options.plot, found["curves"], title)
    failed = [row["note"] for row in found["rows"] if row["note"].startswith("failed")]
    if failed:
        sys.exit("\n".join(failed))


if __name__ == "__main__":
    main()
