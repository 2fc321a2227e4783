"""How long the first token of an answer takes, by what it is read from, and where the time goes.

    python benchmarks/texts.py texts      # once: public texts, from Debian packages
    python benchmarks/first_token.py texts/handbook.txt --tokens 100000

The text, repeated as often as needed, is read once. Questions are then asked in turn in each way,
after two that are not counted (the first one about a document reads what judging's prompts begin
with). Shown are medians of all questions, and the parts of the time: reading (judging sentences,
the question, passages), ranking, and the rest: Python, copies of the timeline.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import time
from pathlib import Path
from statistics import median
from typing import Any

import machine
from report import print_table

import quickllama as ql

QUESTIONS = (
    "How do I create a user account?",
    "Which command lists all mounted disks?",
    "What is needed for printing to a remote printer?",
    "How are packages verified after they were downloaded?",
    "Where are the server's logs kept?",
    "Which port does the service listen on?",
    "Who may read the configuration?",
    "What happens if the disk is full?",
)
WARM_UP = 2
PARTS = {"feed": "reading", "read": "reading", "listen": "reading", "rank": "ranking"}
COLUMNS = ("from", "median, s", "fastest", "slowest", "reading", "ranking", "the rest")


def first_token(document: ql.Document, question: str, use: str) -> float:
    """Seconds."""
    started = time.perf_counter()
    document.ask(question, use=use, max_new_tokens=1)
    return time.perf_counter() - started


def parts(document: ql.Document, use: str) -> dict[str, float]:
    """Shares of the time of all questions, by a profile."""
    profile = cProfile.Profile()
    profile.enable()
    for question in QUESTIONS:
        first_token(document, question, use)
    profile.disable()
    stats: Any = pstats.Stats(profile)
    shares = dict.fromkeys((*PARTS.values(), "the rest"), 0.0)
    for (_, _, name), (_, _, seconds, _, _) in stats.stats.items():
        method = name.split("'")[1] if name.startswith("<method '") else ""
        shares[PARTS.get(method, "the rest")] += seconds / stats.total_tt
    return shares


def measure(document: ql.Document, use: str) -> dict[str, Any]:
    """One way of answering."""
    for question in QUESTIONS[:WARM_UP]:
        first_token(document, question, use)
    seconds = [first_token(document, question, use) for question in QUESTIONS]
    return {"use": use, "seconds": seconds, "shares": parts(document, use)}


def main() -> None:
    """Read, ask and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("text", type=Path)
    add("--tokens", type=int, default=100_000)
    add("--model", default="smollm2")
    add("--dtype", default="bfloat16")
    add("--threads", type=int)
    add("--skim", action="store_true", help="skim the text, so that passages are re-read only")
    add("--json", type=Path)
    add("--quiet", action="store_true", help="no bar")
    options = parser.parse_args()
    model = ql.Model.from_pretrained(options.model, dtype=options.dtype, n_threads=options.threads)
    text = options.text.read_text("utf-8")
    ids = model.tokenizer.encode(text[: 8 * options.tokens])
    wanted = round(len(text[: 8 * options.tokens]) * options.tokens / len(ids))
    whole = (text * (wanted // len(text) + 1))[:wanted]
    started = time.perf_counter()
    read = model.skim if options.skim else model.read
    document = read(whole, progress=not options.quiet)
    seconds = time.perf_counter() - started
    uses = ("reread",) if options.skim else ("memory", "reposition", "reread")
    found = [measure(document, use) for use in uses]
    rows = [
        [
            row["use"],
            *(f"{pick(row['seconds']):.2f}" for pick in (median, min, max)),
            *(f"{100 * share:.0f} %" for share in row["shares"].values()),
        ]
        for row in found
    ]
    title = f"First token of an answer, {len(document):,} tokens, {model!r}"
    print_table(title, COLUMNS, rows)
    print(f"read in {seconds:.1f} s")
    if options.json:
        record = {"machine": machine.describe(), "tokens": len(document), "read": seconds}
        record |= {"model": repr(model), "uses": found}
        options.json.write_text(json.dumps(record, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
