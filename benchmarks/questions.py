"""Are passages found, and questions answered? Our own facts in ordinary texts, several ways to ask.

    python benchmarks/needles/texts.py texts      # once: public texts, from Debian packages
    python benchmarks/questions.py --texts texts --json questions.json
    python benchmarks/questions.py --report questions.json

Every text of every length is read once in each way (``--readings``), then asked everything. Results
are kept as they come, so that an interrupted evaluation goes on with the reading where it stopped.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import machine
from needles.cases import FACTS, Case, Question, load_facts, make_case
from needles.summary import print_summary
from needles.systems import READINGS, Found
from tqdm import tqdm

import quickllama as ql

TEXTS = ("handbook", "rust", "postgresql", "gimp")
LENGTHS = (4_000, 16_000, 64_000, 128_000)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--texts", type=Path, help="folder of texts.py")
    add("--names", nargs="+", default=list(TEXTS), help="texts of it; their facts differ")
    add("--lengths", nargs="+", type=int, default=list(LENGTHS), help="tokens, about")
    add("--readings", nargs="+", default=["window", "lookups", "stream"], choices=list(READINGS))
    add("--systems", nargs="+", help="only these of the readings' systems")
    add("--kinds", nargs="+", help="only questions of these kinds")
    add("--facts", type=Path, default=FACTS, help="a file such as needles/facts.toml")
    add("--facts-in-text", type=int, default=10)
    add("--seed", type=int, default=0)
    add("--model", default="smollm2")
    add("--dtype", default="bfloat16")
    add("--threads", type=int)
    add("--json", type=Path, help="where results are kept")
    add("--report", type=Path, nargs="+", help="print the tables of these files, nothing else")
    options = parser.parse_args(arguments)
    if options.report is None and (options.texts is None or options.json is None):
        parser.error("give --texts and --json, or --report")
    return options


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """Every text at every length, short ones first; the facts of a text change with its length."""
    facts = load_facts(options.facts)
    for tokens in sorted(options.lengths):
        for name in options.names:
            source = (options.texts / f"{name}.txt").read_text("utf-8")
            seed = [options.seed, tokens, *name.encode()]
            yield make_case(name, source, tokens, 3.6, facts, options.facts_in_text, seed)


def overlaps(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two spans share a character."""
    return one[0] < other[1] and other[0] < one[1]


def result(question: Question, found: Found) -> dict[str, Any]:
    """One line of the results. ``ranks``: from 1, of the first piece that holds each fact; None
    where it is not among those that were looked at."""
    ranks = []
    for place in question.places:
        hits = [i for i, piece in enumerate(found.pieces) if overlaps(piece, place)]
        ranks.append(hits[0] + 1 if hits else None)
    right = bool(question.facts) and all(f.answered_by(found.answer) for f in question.facts)
    return {
        "kind": question.kind,
        "question": question.text,
        "ranks": ranks,
        "answer": found.answer,
        "right": right,
        "found": found.found,
        "confidence": found.confidence,
        "first_token_seconds": found.first_token,
    }


def run(
    model: ql.Model, case: Case, reading_name: str, options: argparse.Namespace
) -> Iterator[list[dict[str, Any]]]:
    """The results of a case that is read in one way, one system after the other."""
    reading = READINGS[reading_name](model, case.text)
    base = {"text": case.name, "length": case.tokens, "tokens": reading.tokens}
    base |= {"reading": reading_name, "reading_seconds": reading.seconds}
    for system_name, system in reading.systems.items():
        if options.systems and system_name not in options.systems:
            continue
        rows = []
        for question in case.questions:
            wanted = not options.kinds or question.kind in options.kinds
            unanswerable = not question.places and system_name not in ("heads", "skim")
            if wanted and not unanswerable:
                row = result(question, system.ask(question))
                rows.append(base | {"system": system_name} | row)
        yield rows


def main(arguments: list[str] | None = None) -> None:
    """Evaluate, or report."""
    options = parse(arguments)
    if options.report is not None:
        files = [json.loads(path.read_text("utf-8")) for path in options.report]
        print_summary([row for file in files for row in file["results"]])
        return
    kept: dict[str, Any] = {"machine": machine.describe(), "done": [], "results": []}
    if options.json.exists():
        kept = json.loads(options.json.read_text("utf-8"))
        whole = [tuple(key) for key in kept["done"]]  # what was interrupted is done again
        kept["results"] = [row for row in kept["results"] if key_of(row) in whole]
    model = ql.Model.from_pretrained(options.model, dtype=options.dtype, n_threads=options.threads)
    kept["heads"] = None if model.retrieval_heads is None else model.retrieval_heads.to_dict()
    kept["options"] = {name: str(value) for name, value in vars(options).items()}
    todo = [(case, reading) for case in cases(options) for reading in options.readings]
    for case, reading in tqdm(todo, unit="reading"):
        if [case.name, case.tokens, reading] in kept["done"]:
            continue
        for rows in run(model, case, reading, options):
            kept["results"] += rows
            options.json.write_text(json.dumps(kept, indent=1) + "\n", "utf-8")
        kept["done"].append([case.name, case.tokens, reading])
        options.json.write_text(json.dumps(kept, indent=1) + "\n", "utf-8")
    print_summary(kept["results"])


def key_of(row: dict[str, Any]) -> tuple[str, int, str]:
    """Text, length and reading of a result."""
    return row["text"], row["length"], row["reading"]


if __name__ == "__main__":
    main()
