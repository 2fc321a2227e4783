"""The programs that make the results page and the comparison with the authors' code."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fresh_python import environment
from oracle_cases import ORACLE
from tiny_folder import write_folder

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
pytestmark = pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="a source tree has the benchmarks")


def run(script: str, *options: str) -> subprocess.CompletedProcess[str]:
    """A script of benchmarks/ in a process of its own."""
    return subprocess.run(
        [sys.executable, str(BENCHMARKS / script), *options],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_every_run_of_the_page_can_be_made() -> None:
    result = run("quality.py", "list")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[-1].startswith("all") and any(line.startswith("needle-anew ") for line in lines)


def test_parts_are_done_by_several_processes_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.chdir(tmp_path)  # where the processes find no source tree
    quality, plan = map(importlib.import_module, ("quality", "quality_plan"))
    write_folder(tmp_path / "tiny")
    asked = {"methods": ["stream", "full"], "lengths": [512, 1024], "n": 1}
    one = plan.Run("made", "Made up.", ("passkey",), (asked,), results=tmp_path / "results")
    parts = list(one.parts())
    assert [part.settings["lengths"] for part in parts] == [[512], [512], [1024], [1024]]
    lines = []
    for _ in range(2):  # the second time there is nothing to do
        quality.run(parts, 2, str(tmp_path / "tiny"), dtype="float32", n_threads=1)
        lines.append((one.folder / "passkey.jsonl").read_text("utf-8").splitlines())
    assert lines[0] == lines[1] and sum('"question"' in line for line in lines[0]) == 12
    (session,) = json.loads((one.folder / "run.json").read_text("utf-8"))
    assert (session["processes"], session["threads"]) == (2, 1)
    page = quality.page([one])
    assert "| made | passkey | 1k |" in page and "1 thread in each of 2 processes" in page


def row(task: str, depth: int, authors: bool, ours: bool) -> dict[str, Any]:
    """What the comparison keeps of a prompt."""
    cell = {"task": task, "length": 4096, "mode": "qllm", "window": "1k", "question_weight": 1.0}
    same = {"same_tokens": authors and ours}
    return {**cell, "depth": depth, "authors": authors, "ours": ours, **same}


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([row("passkey", 10, True, True), row("passkey", 50, False, False)], None),
        ([row("passkey", 10, True, False)], "passkey 4k qllm 1k 1: 1 right there, 0 here"),
        ([row("passkey", 10, False, True)], "passkey 4k qllm 1k 1: 0 right there, 1 here"),
        ([row("passkey", 10, False, True), row("passkey", 50, True, False)], "depth 10 %, 50 %"),
        ([row("needle", 10, True, False), row("needle", 30, True, True)], None),
        ([row("needle", 10, True, False), row("needle", 30, True, False)], "2 right there, 0 here"),
    ],
)
def test_what_does_not_agree_is_named(
    rows: list[dict[str, Any]], problem: str | None, tmp_path: Path
) -> None:
    kept = tmp_path / "kept.jsonl"
    kept.write_text("\n".join(map(json.dumps, rows)) + "\n", "utf-8")
    result = run("agreement.py", str(tmp_path), "--json", str(kept), "--report")
    assert "| same tokens |" in result.stdout, result.stderr
    assert result.returncode == (problem is not None)
    assert (problem or "") in result.stdout
    assert ("does not agree" in result.stdout) == (problem is not None)


def test_the_authors_answers_and_ours(smollm2_path: Path, tmp_path: Path) -> None:
    """A prompt of 4,096 tokens that neither answers rightly, as the key has left the window;
    tests/test_oracle.py has those that are."""
    kept = tmp_path / "kept.jsonl"
    options = "--lengths 4096 --depths 10 --modes stream --windows 512 --threads 1 --quiet"
    result = run(
        *("agreement.py", str(ORACLE / "smollm2_tasks"), "--json", str(kept)),
        *("--model", str(smollm2_path), *options.split()),
    )
    assert result.returncode == 0, result.stderr
    assert "| passkey | 4k | stream | 512 | – | 0/1 | 0/1 | 1/1 |" in result.stdout
    (answer,) = [json.loads(line) for line in kept.read_text("utf-8").splitlines()]
    assert answer["same_tokens"] and not answer["ours"]
