"""Ours beside the authors' published code, on the same prompts of the same model.

    python benchmarks/agreement.py FOLDER --json agreement.jsonl

FOLDER holds ``results.json`` and the prompts' tokens (``passkey.npz``, ``needle.npz``), as
tests/fixtures/oracle/README.md describes them for ``smollm2_tasks``. Every prompt is read with the
mask ``authors`` in every mode, window and question weight that the file has results of, greedily
and with float32 weights, keys and values. Printed are right answers of both, and whether tokens are
the same.

The exit code is 1 if a passkey is found by one and not by the other, or if right answers to needles
differ by more than one in a cell of the table. ``--json`` keeps what was right: the same command
goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import quickllama as ql
from quickllama.eval.tables import length_name, markdown

NEW_TOKENS = 24  # as theirs

Row = dict[str, Any]
CELL = ("task", "length", "mode", "window", "question_weight")
ITEM = (*CELL, "depth")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tasks", nargs="+", help="only these: passkey, needle")
    parser.add_argument("--lengths", nargs="+", type=int, help="only these")
    parser.add_argument("--depths", nargs="+", type=int, help="only these, in percent")
    parser.add_argument("--modes", nargs="+", help="only these: full, stream, infllm, qllm")
    parser.add_argument("--windows", nargs="+", help="only these: 512, 1k, 2k")
    parser.add_argument("--json", type=Path, help="JSON lines that are kept")
    parser.add_argument("--report", action="store_true", help="ask nothing, show what was kept")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser.parse_args(arguments)


def wanted(table: Row, options: argparse.Namespace) -> list[tuple[Row, Row]]:
    """Items with the results of the authors' code that are asked for."""
    items = {(item["task"], item["length"], item["depth"]): item for item in table["items"]}
    limits = {
        "task": options.tasks,
        "length": options.lengths,
        "depth": options.depths,
        "mode": options.modes,
        "window": options.windows,
    }
    return [
        (items[row["task"], row["length"], row["depth"]], row)
        for row in table["results"]
        if all(limit is None or row[name] in (None, *limit) for name, limit in limits.items())
    ]


def memory_of(row: Row, windows: dict[str, Row]) -> ql.MemoryConfig:
    """The memory of one of their runs."""
    if row["mode"] == "full":
        return ql.MemoryConfig(mode="full")
    settings = {k: v for k, v in windows[row["window"]].items() if k != "max_cached_block"}
    weight = {"question_weight": row["question_weight"]} if row["mode"] == "qllm" else {}
    return ql.MemoryConfig(mode=row["mode"], mask="authors", **settings, **weight)


def answer(model: ql.Model, item: Row, row: Row, prompt: Any, windows: dict[str, Row]) -> Row:
    """What ours answers to one prompt, beside theirs."""
    memory = memory_of(row, windows)
    span = tuple(item["q"]) if row["mode"] == "qllm" else None
    ids = model.generate(
        prompt, max_new_tokens=NEW_TOKENS, memory=memory, query_span=span, kv_dtype="float32"
    )
    new = [token for token in ids[len(prompt) :].tolist() if token not in model.eos_token_ids]
    text = model.tokenizer.decode(new)
    right = all(word.lower() in text.lower() for word in item["answer"])
    if right != row["correct"]:  # answers are shown, not kept: texts may be a third party's
        print(f"{[row[name] for name in ITEM]}:\n {row['text']!r}\n {text!r}", file=sys.stderr)
    return {
        **{name: row[name] for name in ITEM},
        "authors": bool(row["correct"]),
        "ours": right,
        "same_tokens": new == row["generated"],
    }


def table_of(rows: Iterable[Row]) -> tuple[str, list[str]]:
    """The table, and what does not agree."""
    cells: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        cells.setdefault(tuple(row[name] for name in CELL), []).append(row)
    lines, problems = [], []
    for cell in sorted(cells, key=str):
        own = cells[cell]
        task, length, mode, window, weight = cell
        theirs, ours = (sum(row[who] for row in own) for who in ("authors", "ours"))
        same = sum(row["same_tokens"] for row in own)
        name = [task, length_name(length), mode, window or "–", f"{weight:g}"]
        if mode != "qllm":
            name[-1] = "–"
        n = len(own)
        lines.append([*name, f"{theirs}/{n}", f"{ours}/{n}", f"{same}/{n}"])
        differing = [row for row in own if row["authors"] != row["ours"]]
        if (task == "passkey" and differing) or abs(theirs - ours) > 1:
            depths = ", ".join(f"{row['depth']} %" for row in differing)
            problems.append(f"{' '.join(name)}: {theirs} right there, {ours} here (depth {depths})")
    columns = ["task", "tokens", "mode", "window", "weight", "authors", "here", "same tokens"]
    return markdown(columns, lines), problems


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, compare; the exit code."""
    options = parse(arguments)
    kept: list[Row] = []
    if options.json is not None and options.json.exists():
        kept = [json.loads(line) for line in options.json.read_text("utf-8").splitlines()]
    if not options.report:
        kept = run(options, kept)
    printed, problems = table_of(kept)
    print(printed)
    for problem in problems:
        print(f"does not agree: {problem}")
    return 1 if problems else 0


def run(options: argparse.Namespace, kept: list[Row]) -> list[Row]:
    """Answer what was not answered yet; all rows that are asked for."""
    table = json.loads((options.folder / "results.json").read_text("utf-8"))
    done = {tuple(row[name] for name in ITEM): row for row in kept}
    model = ql.Model.from_pretrained(options.model, dtype="float32", n_threads=options.threads)
    prompts: dict[str, Any] = {}
    rows = []
    for item, row in tqdm(wanted(table, options), unit="prompt", disable=options.quiet):
        key = tuple(row[name] for name in ITEM)
        if key not in done:
            file = item["file"]
            if file not in prompts:
                prompts[file] = dict(np.load(options.folder / file, allow_pickle=False))
            prompt = prompts[file][item["tokens"]].astype(np.int64)
            done[key] = answer(model, item, row, prompt, table["windows"])
            if options.json is not None:
                with options.json.open("a", encoding="utf-8") as out:
                    out.write(json.dumps(done[key], ensure_ascii=False) + "\n")
        rows.append(done[key])
    return rows


if __name__ == "__main__":
    sys.exit(main())
