"""The results page quality/README.md: runs every evaluation on it, and writes it.

    python benchmarks/quality.py list                 # the runs, and how much each reads and writes
    python benchmarks/quality.py run                  # all that is missing; or --only passkey ...
    python benchmarks/quality.py run --qwen FILE      # those of the second model, too
    python benchmarks/quality.py report               # the page, from the results that are there

Results lie in quality/results/RUN/TASK.jsonl, with RUN/run.json about the machines and commits; a
run that was stopped goes on. Needs the extra ``eval``. FILE: Qwen2.5-Coder-0.5B-Instruct as Qwen
gives it away (Apache-2.0), qwen2.5-coder-0.5b-instruct-q4_k_m.gguf.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import agreement
import machine

import quickllama as ql
from quickllama.eval import METHODS, Results, Settings, evaluate
from quickllama.eval.settings import tokens_of
from quickllama.eval.tables import tables
from quickllama.eval.tasks import Task, find_task

PAGE = Path(__file__).parent / "quality" / "README.md"
RESULTS = PAGE.parent / "results"
AGREEMENT = RESULTS / "agreement.jsonl"
HELD_OUT = Path(ql.__file__).parent / "eval" / "tasks" / "needle" / "facts_held_out.toml"
ANEW = ("qllm", "infllm", "stream")
QWEN = "Qwen2.5-Coder-0.5B-Instruct"
RULER = ("multi_key", "multi_value", "multi_query", "variable_tracking", "common_words")
RULER += ("frequent_words", "fact_qa")


@dataclasses.dataclass(frozen=True)
class Run:
    """Evaluations that share a table; ``about`` is what the page says of them, ``settings`` those
    of each. Texts and questions are the same where n, depths, kinds and length are."""

    name: str
    about: str
    tasks: tuple[str, ...]
    settings: tuple[dict[str, Any], ...]
    model: str = "SmolLM2-135M-Instruct"

    @property
    def folder(self) -> Path:
        """Where its results are."""
        return RESULTS / self.name

    def tokens(self) -> int:
        """Tokens to be read, about; skimmed ones count a third."""
        return sum(_tokens(find_task(task), each) for task in self.tasks for each in self.settings)

    def questions(self) -> int:
        """Answers to be written, about."""
        total = 0
        for task in map(find_task, self.tasks):
            for settings in (Settings(**each) for each in self.settings):
                kinds = len(settings.kinds or task.usual)
                slots = len(settings.depths) * settings.n * len(settings.lengths)
                total += slots * kinds * len(settings.methods)
        return total


def _tokens(task: Task, given: dict[str, Any]) -> int:
    settings = Settings(**given)
    kinds = settings.kinds or task.usual
    slots = len(settings.depths) * settings.n
    texts = -(-slots // task.per_text)
    if task.name == "babi":
        texts *= len(kinds)
    elif "distractors" in kinds and len(kinds) > 1:
        texts *= 2
    total = 0.0
    for method in {METHODS[name].reading: METHODS[name] for name in settings.methods}.values():
        times = slots * len(kinds) if method.anew else texts
        total += times * method.cost * sum(map(tokens_of, settings.lengths))
    return round(total)


MANUALS: dict[str, Any] = {
    "facts": HELD_OUT,
    "texts": Path("heldout"),
    "depths": [10, 30, 50, 70, 90],
    "n": 4,
    "methods": ["heads", "given", "bm25"],
    "kinds": ["lexical", "paraphrase"],
}
FEW: dict[str, Any] = {**MANUALS, "kinds": ["lexical"], "depths": [50], "n": 5}
PLAN = (
    Run(
        "passkey",
        "A pass key in repeated filler. qllm and the other modes read it with the question before "
        "it, window 1k. The model was trained on texts of up to 8,192 tokens.",
        ("passkey",),
        (
            {"methods": ["heads", "skim"], "lengths": ["4k", "16k"], "n": 1},
            {"methods": [*ANEW, "infinite"], "lengths": ["4k", "16k"], "n": 1},
            {"methods": ["full"], "lengths": ["4k", "16k"], "n": 1},
            {"methods": ["heads", "skim", "qllm"], "lengths": ["64k"], "depths": [50], "n": 1},
            {"methods": ["skim"], "lengths": ["256k"], "depths": [50], "n": 1},
        ),
    ),
    Run(
        "needle-manuals",
        "Facts that were kept back, in two manuals (`python benchmarks/texts.py heldout --names "
        "securing installation`), ten to a text, which is read once.",
        ("needle",),
        (
            {**MANUALS, "lengths": ["4k", "16k", "64k"]},
            {**MANUALS, "lengths": ["16k"], "methods": ["heads"], "kinds": ["absent", "elsewhere"]},
            {**MANUALS, "lengths": ["16k"], "methods": ["heads"], "kinds": ["two", "distractors"]},
            {**MANUALS, "lengths": ["64k"], "methods": ["skim"]},
            {**MANUALS, "lengths": ["128k"], "methods": ["skim", "given", "bm25"], "n": 2},
        ),
    ),
    Run(
        "needle-anew",
        "The same facts and manuals, few questions: the paper's modes read the text anew for each.",
        ("needle",),
        (
            {**FEW, "methods": ["heads", "given", *ANEW], "lengths": ["4k", "16k"]},
            {**FEW, "methods": ["full"], "lengths": ["4k"]},
            {**FEW, "methods": ["qllm"], "lengths": ["4k"], "mask": "authors"},
            {**FEW, "methods": ["qllm"], "lengths": ["4k"], "question_weight": 4.0},
            {**FEW, "methods": ["qllm"], "lengths": ["4k"], "window": "512"},
            {**FEW, "methods": ["qllm"], "lengths": ["4k"], "window": "2k"},
        ),
    ),
    Run(
        "qwen-passkey",
        f"The same with another model, {QWEN} (its publisher's q4_k_m GGUF file, held as "
        "bfloat16), calibrated as any user would.",
        ("passkey",),
        ({"methods": ["heads", "qllm", "stream"], "lengths": ["4k"], "n": 1},),
        QWEN,
    ),
    Run(
        "qwen-needle",
        f"The facts and manuals of needle-manuals, {QWEN}.",
        ("needle",),
        (
            {**MANUALS, "methods": ["heads", "given"], "lengths": ["4k"]},
            {**MANUALS, "methods": ["heads", "given"], "lengths": ["16k"], "n": 2},
        ),
        QWEN,
    ),
    Run(
        "key-value",
        "One line of a JSON object.",
        ("key_value",),
        (
            {"methods": ["heads", "skim", "given"], "lengths": ["4k", "16k"], "n": 2},
            {"methods": ["qllm", "full"], "lengths": ["4k"], "n": 2},
        ),
    ),
    Run(
        "babi",
        "What people did in a simulation, spread over ordinary text.",
        ("babi",),
        ({"methods": ["heads", "given", "full"], "lengths": ["4k"], "n": 1},),
    ),
    Run(
        "ruler",
        "RULER's families.",
        RULER,
        ({"methods": ["heads", "full"], "lengths": ["4k"], "n": 1},),
    ),
    Run(
        "verses",
        "Verses of the Bible, by label and by words.",
        ("verses",),
        ({"methods": ["heads", "skim", "given", "bm25"], "lengths": ["4k", "16k"], "n": 2},),
    ),
)

HEAD = """# Quality

What SmolLM2-135M-Instruct, and in two runs another model, answers about long texts, by the methods
of this package. Made by `python benchmarks/quality.py run` and `report`; every answer lies in
[results](results). Tasks, methods and what is counted as right:
[docs/evaluation.md](../../docs/evaluation.md).

A cell is right answers / questions, their share, and its 95 % interval (Wilson; questions about one
text are not independent, so that the truth may lie further away). All methods of a table were asked
the same questions about the same texts at each length, as far as they were asked. A model of this
size misreads much of what it is handed: `given`, the right passage alone, is what finding passages
could give at best. The machines did other work at the same time; what speed is like, see
`python benchmarks/speed.py`.
"""


def run(model: ql.Model, one: Run) -> None:
    """Do what is missing of a run."""
    one.folder.mkdir(parents=True, exist_ok=True)
    about = {"machine": _here(), "dtype": model.dtype, "threads": model.n_threads}
    known = _sessions(one)
    if _where(about) not in map(_where, known):
        text = json.dumps([*known, about], indent=1)
        (one.folder / "run.json").write_text(f"{text}\n", encoding="utf-8")
    for task in one.tasks:
        for settings in one.settings:
            evaluate(model, task, out=one.folder, progress=True, **settings)


@functools.cache
def _here() -> dict[str, Any]:
    """The machine and the commit, before results of this process make the tree differ from it."""
    return machine.describe()


def _sessions(one: Run) -> list[dict[str, Any]]:
    """Machine, dtype and threads of each session that made a part of a run."""
    file = one.folder / "run.json"
    return json.loads(file.read_text("utf-8")) if file.exists() else []


def _where(about: dict[str, Any]) -> str:
    threads = "1 thread" if about["threads"] == 1 else f"{about['threads']} threads"
    where = about["machine"]
    return f"{about['dtype']} weights, {threads}, {where['cpu']}, commit {where['commit']}"


def page(plan: Sequence[Run]) -> str:
    """The page, from the results that are there."""
    parts = [HEAD]
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
    options = parser.parse_args(arguments)
    chosen = [one for one in PLAN if options.only is None or one.name in options.only]
    if options.what == "list":
        for one in chosen:
            print(f"{one.name:<16}{one.tokens():>12,} tokens{one.questions():>7,} answers")
        tokens, answers = (sum(map(f, chosen)) for f in (Run.tokens, Run.questions))
        print(f"{'all':<16}{tokens:>12,} tokens{answers:>7,} answers")
        return 0
    if options.what == "run":
        for source in (options.model, options.qwen):
            wanted = [one for one in chosen if (one.model == QWEN) == (source is options.qwen)]
            if source is None or not wanted:
                continue
            model = ql.Model.from_pretrained(source, dtype=options.dtype, n_threads=options.threads)
            for one in wanted:
                print(one.name, file=sys.stderr)
                run(model, one)
    PAGE.write_text(page(PLAN), encoding="utf-8")
    print(PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
