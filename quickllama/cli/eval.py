"""``quickllama eval``: evaluate a model, or show the tables of an evaluation."""

from __future__ import annotations

import argparse
import importlib.util
import re
import sys
from pathlib import Path

from quickllama.cli.terminal import print_json, tolerate_any_character
from quickllama.errors import InvalidValue
from quickllama.eval import Results, evaluate
from quickllama.eval.plot import heat_maps
from quickllama.eval.settings import Options, Settings
from quickllama.eval.tasks import find_task
from quickllama.model import Model

__all__ = ["evaluation"]

REPORT = "report"
TABLES = "tables.md"


def evaluation(chosen: argparse.Namespace) -> int:
    """Evaluate or report; returns the exit code."""
    tolerate_any_character()
    if chosen.what[0] == REPORT:
        return _report(chosen)
    settings = _settings(chosen)
    Settings(**settings)  # before a model is loaded
    for task in chosen.what:
        find_task(task)
    model = Model.from_pretrained(chosen.model, dtype=chosen.dtype, n_threads=chosen.threads)
    found = [
        evaluate(model, task, out=chosen.out, progress=not chosen.quiet, **settings)
        for task in chosen.what
    ]
    results = Results(
        [row for one in found for row in one.rows],
        {name: identity for one in found for name, identity in one.headers.items()},
    )
    if chosen.json:
        print_json(list(results.rows))
    else:
        print(results.markdown(), end="")
    if chosen.out is not None:
        _keep(Results.load(chosen.out), Path(chosen.out), chosen.quiet)
    return 0


def _settings(chosen: argparse.Namespace) -> Options:
    return Options(
        lengths=_listed(chosen.lengths),
        depths=[_percent(depth) for depth in _listed(chosen.depths)],
        n=chosen.n,
        kinds=None if chosen.kinds is None else _listed(chosen.kinds),
        methods=_listed(chosen.methods),
        texts=chosen.texts,
        facts=chosen.facts,
        data=chosen.data,
        seed=chosen.seed,
        window=chosen.window,
        question_weight=chosen.question_weight,
        keep_query_tokens=chosen.keep_query_tokens,
        mask=chosen.mask,
        question_position=chosen.question_position,
        prompt=chosen.prompt,
        kv_dtype=chosen.kv_dtype,
    )


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _percent(text: str) -> int:
    try:
        return int(text.removesuffix("%"))
    except ValueError:
        raise InvalidValue(f"a depth is a percentage such as 50, not {text!r}") from None


def _report(chosen: argparse.Namespace) -> int:
    if len(chosen.what) < 2:
        raise InvalidValue("report which results? give their folder or file")
    results = Results.load(*chosen.what[1:])
    print(results.markdown(), end="")
    if chosen.out is not None:
        _keep(results, Path(chosen.out), chosen.quiet)
    return 0


def _keep(results: Results, folder: Path, quiet: bool) -> None:
    """Tables, and pictures where the library for them is installed."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / TABLES).write_text(results.markdown(), encoding="utf-8")
    if importlib.util.find_spec("matplotlib") is None:
        if not quiet:
            print("no pictures: matplotlib is not installed", file=sys.stderr)
        return
    for (task, label), figure in heat_maps(results.rows, results.headers).items():
        name = re.sub(r"[^a-z0-9]+", "-", f"{task}-{label}".lower()).strip("-")
        figure.savefig(folder / f"{name}.png")
