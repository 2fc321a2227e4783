"""The results page quality/README.md: runs every evaluation on it, and writes it.

    python benchmarks/quality.py list                 # the runs, and how much each reads and writes
    python benchmarks/quality.py run                  # all that is missing; or --only passkey ...
    python benchmarks/quality.py run --qwen FILE      # those of the second model, too
    python benchmarks/quality.py run --jobs 16        # in so many processes at once
    python benchmarks/quality.py report               # the page, from the results that are there

Results lie in quality/results/RUN/TASK.jsonl, with RUN/run.json about the machines and commits; a
run that was stopped goes on. Needs the extra ``eval``. FILE: Qwen2.5-Coder-0.5B-Instruct as Qwen
gives it away (Apache-2.0), qwen2.5-coder-0.5b-instruct-q4_k_m.gguf.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing.synchronize import Lock
from typing import Any

import agreement
import machine
from quality_plan import PLAN, QWEN, RESULTS, Part, Run
from tqdm import tqdm

import quickllama as ql
from quickllama.cpu import physical_cores
from quickllama.eval import Results, evaluate
from quickllama.eval.tables import length_name, markdown, tables

PAGE = RESULTS.parent / "README.md"
AGREEMENT = RESULTS / "agreement.jsonl"
HEAD = """# Quality

What SmolLM2-135M-Instruct, and in two runs another model, answers about long texts, by the methods
of this package. Made by `python benchmarks/quality.py run` and `report`; every answer lies in
[results](results). Tasks, methods and what is counted as right:
[docs/evaluation.md](../../docs/evaluation.md).

A cell is right answers / questions, their share, and its 95 % interval (Wilson; questions about one
text are not independent, so that the truth may lie further away). All methods of a table were asked
the same questions about the same texts at each length, as far as they were asked. A model of this
size misreads much of what it is handed: `given` hands it the right passage alone, but points out no
sentence of it, as `heads` and `skim` do. The machines did other work at the same time; what speed
is like, see `python benchmarks/speed.py`.
"""


def run(parts: Sequence[Part], jobs: int, source: str, **options: Any) -> None:
    """Do what is missing, in so many processes at once, each with a model of its own. ``options``:
    of Model.from_pretrained; the threads are by default the cores' share."""
    if options.get("n_threads") is None and jobs > 1:
        options["n_threads"] = max(physical_cores() // jobs, 1)
    spawn = multiprocessing.get_context("spawn")
    about = {"machine": machine.describe(), "processes": jobs}
    shared = source, options, about, spawn.Lock()
    bar = tqdm(total=sum(part.tokens for part in parts), unit="token", unit_scale=True)
    with bar, ProcessPoolExecutor(jobs, spawn, _open, shared) as pool:
        longest_first = sorted(parts, key=lambda part: -part.tokens)
        waiting = {pool.submit(_evaluate, part): part for part in longest_first}
        try:
            for done in as_completed(waiting):
                done.result()
                bar.update(waiting[done].tokens)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


_model: ql.Model  # of a process of the pool
_about: dict[str, Any]  # what is kept of the session
_noting: Lock


def _open(source: str, options: dict[str, Any], about: dict[str, Any], noting: Lock) -> None:
    global _model, _about, _noting
    _model = ql.Model.from_pretrained(source, **options)
    _about = {**about, "dtype": _model.dtype, "threads": _model.n_threads}
    _noting = noting


def _evaluate(part: Part) -> None:
    def answered(_done: int, _total: int) -> None:
        with _noting:
            _note(part.run)

    evaluate(_model, part.task, out=part.run.folder, progress=answered, **part.settings)


def _note(one: Run) -> None:
    """Keep on which machine and commit a part of a run was made."""
    known = _sessions(one)
    if _where(_about) not in map(_where, known):
        text = json.dumps([*known, _about], indent=1)
        new = one.folder / "run.json.new"
        new.write_text(f"{text}\n", encoding="utf-8")
        new.replace(one.folder / "run.json")  # never half a file


def _sessions(one: Run) -> list[dict[str, Any]]:
    """Machine, dtype and threads of each session that made a part of a run."""
    file = one.folder / "run.json"
    return json.loads(file.read_text("utf-8")) if file.exists() else []


def _where(about: dict[str, Any]) -> str:
    threads = "1 thread" if about["threads"] == 1 else f"{about['threads']} threads"
    if about.get("processes", 1) > 1:
        threads += f" in each of {about['processes']} processes"
    where = about["machine"]
    return f"{about['dtype']} weights, {threads}, {where['cpu']}, commit {where['commit']}"


def page(plan: Sequence[Run]) -> str:
    """The page, from the results that are there."""
    parts = [HEAD, _overview(plan)]
    missing = []
    for one in plan:
        files = sorted(one.folder.glob("*.jsonl"))
        if not files:
            missing.append(one.name)
            continue
        results = Results.load(*files)
        parts.append(
            f"## {one.name}\n\n{one.about}\n\n{tables(results.rows, results.headers, '###')}\n"
            f"{'; '.join(map(_where, _sessions(one)))}.\n"
        )
    if missing:
        parts.append(
            f"## Not run yet\n\n{', '.join(missing)}: `python benchmarks/quality.py list`.\n"
        )
    return "\n".join([*parts, _agreement()])


OVERVIEW = """## Overview

Right answers / questions, the main methods with their usual settings (window 1k, mask exact,
question weight 1). The last column: for how many of its answerable questions `heads` has the whole
answer among the 8 passages that it ranks first. Intervals, other settings and how often "Not found"
is said: in the sections below.
"""


def _overview(plan: Sequence[Run]) -> str:
    """Right answers of all runs in one table."""
    lines = []
    for one in plan:
        for file in sorted(one.folder.glob("*.jsonl")):
            results = Results.load(file)
            usual = {name for name, identity in results.headers.items() if _usual(identity)}
            cells: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
            for row in results.rows:
                if row["settings"] in usual:
                    cells.setdefault((row["kind"], row["length"]), []).append(row)
            for (kind, length), rows in sorted(cells.items()):
                lines.append([one.name, kind, length_name(length), *_cells(rows)])
    columns = ["run", "question", "tokens", *OVERVIEW_METHODS, "heads: best 8"]
    return OVERVIEW + "\n" + markdown(columns, lines)


OVERVIEW_METHODS = ("given", "heads", "skim", "bm25", "qllm", "infllm", "stream", "full")


def _cells(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    def count(method: str, key: Callable[[Mapping[str, Any]], bool]) -> str:
        own = [row for row in rows if row["method"] == method and (key is right or row["ranks"])]
        return f"{sum(map(key, own))}/{len(own)}" if own else ""

    def right(row: Mapping[str, Any]) -> bool:
        return bool(row["correct"])

    return [
        *(count(method, right) for method in OVERVIEW_METHODS),
        count("heads", lambda row: None not in row["ranks"]),
    ]


def _usual(identity: Mapping[str, Any]) -> bool:
    memory = identity.get("memory", {})
    return (
        identity["kv_dtype"] == "bfloat16"
        and identity.get("window") in (None, "1k")
        and memory.get("mask", "exact") == "exact"
        and memory.get("question_weight", 1.0) == 1.0
    )


def _agreement() -> str:
    head = (
        "## Agreement with the authors' code\n\nRight answers of the published code and of this "
        "one (mask `authors`, float32) to the same prompts; by `python benchmarks/agreement.py "
        f"FOLDER --json benchmarks/quality/results/{AGREEMENT.name}`.\n\n"
    )
    if not AGREEMENT.exists():
        return f"{head}Not run yet.\n"
    rows = [json.loads(line) for line in AGREEMENT.read_text("utf-8").splitlines()]
    table, problems = agreement.table_of(rows)
    return head + table + "".join(f"\nDoes not agree: {problem}.\n" for problem in problems)


def _list(runs: Sequence[Run]) -> None:
    named = [(one.name, list(one.parts())) for one in runs]
    named.append(("all", [part for _, parts in named for part in parts]))
    for name, own in named:
        tokens, answers = sum(part.tokens for part in own), sum(part.answers for part in own)
        print(f"{name:<16}{tokens:>12,} tokens{answers:>7,} answers")


def main(arguments: Sequence[str] | None = None) -> int:
    """List, run or report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("list", "run", "report"))
    parser.add_argument("--only", nargs="+", choices=[one.name for one in PLAN], metavar="RUN")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--qwen", help=f"{QWEN}, for the runs with it")
    parser.add_argument("--dtype")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--jobs", type=int, default=1, help="so many processes at once")
    options = parser.parse_args(arguments)
    chosen = [one for one in PLAN if options.only is None or one.name in options.only]
    if options.what == "list":
        _list(chosen)
        return 0
    if options.what == "run":
        for source in (options.model, options.qwen):
            runs = [one for one in chosen if (one.model == QWEN) == (source is options.qwen)]
            parts = [part for one in runs for part in one.parts()]
            if source is not None and parts:
                model = {"dtype": options.dtype, "n_threads": options.threads}
                run(parts, options.jobs, source, **model)
    PAGE.write_text(page(PLAN), encoding="utf-8")
    print(PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
