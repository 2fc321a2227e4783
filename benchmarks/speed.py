"""Speed and memory of QuickLLaMA and its peers, beside the limits of the machine.

python benchmarks/speed.py [--peers transformers,llamacpp] [--what read,decode,prompt,load,memory]
    [--tokens 32768] [--dtype float32,bfloat16] [--threads 2] [--rounds 3] [--json out.json]
    [--plot out.png]

Each measurement runs in a process of its own; a round measures the limits, then everything once.
benchmarks/README.md says what the numbers mean.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import limits
import machine
import native
import peer_models
import report
import rows
from costs import keys_while_reading

from quickllama import MemoryConfig, ModelConfig, checkpoint
from quickllama.cpu import physical_cores
from quickllama.hub import locate

WHAT = ("read", "decode", "prompt", "load", "memory")
PEERS = ("transformers", "llamacpp")
WORKER = Path(__file__).resolve().parent / "worker.py"


def words(text: str) -> list[str]:
    """The words of a list with commas."""
    return [word for word in text.split(",") if word]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options, checked."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0] if __doc__ else None,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--what", type=words, default=list(WHAT), help="of: " + ", ".join(WHAT))
    add("--peers", type=words, default=[], help="of: " + ", ".join(PEERS))
    add("--model", default="smollm2", help="GGUF file, HuggingFace folder, or smollm2")
    add("--dtype", type=words, default=["float32", "bfloat16"], help="of weights")
    add("--llamacpp-dtype", type=words, default=["bfloat16", "q8_0", "stored"], help="its weights")
    add("--window", default="1k", help="of the memory: 512, 1k, 2k")
    add("--threads", type=int, default=physical_cores())
    add("--rounds", type=int, default=3)
    add("--tokens", type=int, default=32768, help="to read after the window is full")
    add("--segment", type=int, default=4096, help="tokens of a measured piece of reading")
    add("--depth", type=int, default=4096, help="tokens read before decoding")
    add("--new", type=int, default=64, help="tokens to decode")
    add("--prompt", type=int, default=512, help="tokens of the short prompt")
    add("--most-seconds", type=float, default=300, help="after which a reading stops early")
    add("--limit-seconds", type=float, default=0.2, help="of each measurement of a limit")
    add("--limit-bytes", type=int, default=limits.MEMORY_BYTES, help="read by each thread")
    add("--variant", help="QuickLLaMA's CPU variant by name; OpenBLAS's kernels follow it")
    add("--core-type", help="OpenBLAS's kernels by name, as OPENBLAS_CORETYPE")
    add("--json", type=Path, help="write everything measured to this file")
    add("--plot", type=Path, help="write a picture of reading to this file")
    add("--quiet", action="store_true", help="print nothing but problems")
    options = parser.parse_args(arguments)
    for name, known in (("what", WHAT), ("peers", PEERS), ("dtype", ("float32", "bfloat16"))):
        for word in getattr(options, name):
            if word not in known:
                parser.error(f"--{name} takes {', '.join(known)}, not {word!r}")
    for word in options.llamacpp_dtype:
        if word not in (*peer_models.GGUF_TYPES, "stored"):
            parser.error(f"--llamacpp-dtype takes stored, {', '.join(peer_models.GGUF_TYPES)}")
    for name in ("threads", "rounds", "tokens", "segment", "depth", "new", "prompt"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} is at least 1")
    if options.segment > options.tokens:
        parser.error("--segment is at most --tokens")
    return options


def jobs_of(options: argparse.Namespace) -> list[str]:
    """Jobs of the worker that ``--what`` asks for; memory is looked at while reading."""
    jobs = ["read"] if {"read", "memory"} & set(options.what) else []
    return jobs + [job for job in ("decode", "prompt", "load") if job in options.what]


def warm_tokens(memory: MemoryConfig) -> int:
    """Whole execution chunks until first tokens, blocks and window are full."""
    chunk = memory.exc_block_size
    return -int(-keys_while_reading(memory) // chunk) * chunk + chunk


def engines_of(
    options: argparse.Namespace, path: Path, folder: Path
) -> Iterator[tuple[str, str, str]]:
    """Engine, dtype and model of everything to be measured."""
    for dtype in options.dtype:
        yield "quickllama", dtype, str(path)
    if "transformers" in options.peers:
        model = peer_models.for_transformers(path, folder)
        for dtype in options.dtype:
            yield "transformers", dtype, str(model)
    if "llamacpp" in options.peers:
        for dtype in options.llamacpp_dtype:
            yield "llamacpp", dtype, str(peer_models.for_llamacpp(path, dtype, folder))


def run_worker(task: dict[str, Any], environment: dict[str, str]) -> dict[str, Any]:
    """The worker's answer, or ``{"failed": why}``."""
    result = subprocess.run(
        [sys.executable, str(WORKER), json.dumps(task)],
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
    """All rounds: ``limits`` of each, and ``results``, one record for each process."""
    memory = MemoryConfig.window(options.window)
    environment, _ = machine.environment(options.variant, options.core_type)
    warm = warm_tokens(memory)
    rounds, results = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        program = native.build("limits", folder)
        engines = list(engines_of(options, path, folder))
        unusable: set[str] = set()
        for number in range(options.rounds):
            rounds.append(
                limits.measure(
                    program, [1, options.threads], options.limit_seconds, options.limit_bytes
                )
            )
            for engine, dtype, model in engines:
                for job in jobs_of(options):
                    if engine in unusable:
                        continue
                    task = {
                        "engine": engine,
                        "job": job,
                        "setting": {
                            "model": model,
                            "dtype": dtype,
                            "threads": options.threads,
                            "most_tokens": max(warm + options.tokens, options.depth) + 1024,
                            "variant": options.variant,
                            "window": options.window,
                        },
                        "tokens": options.tokens,
                        "segment": options.segment,
                        "warm": warm,
                        "most_seconds": options.most_seconds,
                        "depths": sorted({16, options.depth}),
                        "new": options.new,
                        "prompt": options.prompt,
                        "repeats": 3,
                    }
                    answer = run_worker(task, environment)
                    if "missing" in answer:
                        unusable.add(engine)
                    record = {"round": number, "engine": engine, "dtype": dtype, "job": job}
                    results.append({**record, **answer})
                    if not options.quiet:
                        print(f"round {number + 1}: {engine} {dtype} {job}", file=sys.stderr)
    return {"limits": rounds, "results": results}


def summary(options: argparse.Namespace, path: Path) -> dict[str, Any]:
    """Measure, and put together what ``--json`` writes."""
    config = ModelConfig.from_hf(checkpoint.open(path).config)
    _, removed = machine.environment()
    measured = measure(options, path)
    setting = rows.Setting(
        config=config,
        memory=MemoryConfig.window(options.window),
        threads=options.threads,
        segment=options.segment,
        what=tuple(options.what),
    )
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine.describe(),
        "model": {"name": path.name, "parameters": config.parameters},
        "options": {
            name: str(value) if isinstance(value, Path) else value
            for name, value in vars(options).items()
        },
        "environment": {"removed": removed, "core_type": options.core_type},
        "details": rows.details(measured["results"]),
        "limits": rows.median_limits(measured["limits"]),
        "rows": rows.rows_of(setting, measured["limits"], measured["results"]),
        "curves": rows.curves_of(setting, measured["limits"], measured["results"]),
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
