"""The benchmarks run, on a tiny model and for a moment: what they write has the promised shape."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fresh_python import environment
from tiny_folder import write_folder

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"

pytestmark = [
    pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="a source tree has the benchmarks"),
    pytest.mark.skipif(
        shutil.which(os.environ.get("CC", "cc").split()[0]) is None, reason="needs a C compiler"
    ),
]


def run(script: str, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A script of benchmarks/ in a process of its own."""
    return subprocess.run(
        [sys.executable, str(BENCHMARKS / script), "--quiet", *options],
        env={**environment(), **variables},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module")
def speed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What speed.py writes of a tiny model, in a shell that tunes OpenBLAS."""
    folder = tmp_path_factory.mktemp("speed")
    write_folder(folder / "model")
    out = folder / "out.json"
    sizes = "--tokens 256 --segment 128 --new 4 --depth 64 --prompt 32 --rounds 2 --threads 1"
    result = run(
        "speed.py",
        *sizes.split(),
        *("--limit-seconds", "0.01", "--limit-bytes", "65536", "--dtype", "float32"),
        *("--window", "512", "--peers", "llamacpp", "--llamacpp-dtype", "stored"),
        *("--model", str(folder / "model"), "--json", str(out)),
        OPENBLAS_CORETYPE="Haswell",
    )
    # A folder of safetensors is nothing for llama.cpp, which says so before anything is measured.
    assert result.returncode == 2, result.stderr
    assert "GGUF" in result.stderr and not out.exists()
    result = run(
        "speed.py",
        *sizes.split(),
        *("--limit-seconds", "0.01", "--limit-bytes", "65536", "--dtype", "float32"),
        *("--window", "512", "--model", str(folder / "model"), "--json", str(out)),
        OPENBLAS_CORETYPE="Haswell",
    )
    assert result.returncode == 0, result.stderr
    found: dict[str, Any] = json.loads(out.read_text("utf-8"))
    return found


def test_every_row_is_there_with_its_rounds(speed: dict[str, Any]) -> None:
    rows = {row["what"]: row for row in speed["rows"]}
    reading = ["read: first 128", "read: last 128", "read: all 256"]
    rates = [*reading, "decode after 16", "decode after 64", "prompt of 32"]
    parts = ("peak", "weights", "session", "the rest")
    others = ["import", "load", *(f"memory: {part}" for part in parts)]
    assert set(rows) == {*rates, *others, "read: rate of the last, as part of the first"}
    for row in rows.values():
        assert row["engine"] == "quickllama" and row["dtype"] == "float32" and not row["note"]
        assert len(row["values"]) == 2 and min(row["values"]) <= row["median"]
        assert all(value > 0 for value in row["values"])
    for what in rates:
        row = rows[what]
        assert row["unit"] == "tokens/s" and row["limit"] > 0
        assert 0 < row["ratio"] < 2  # a tiny model stays in the caches, beyond memory's rate
    memory = {part: rows[f"memory: {part}"]["median"] for part in parts}
    assert memory["peak"] == pytest.approx(sum(memory.values()) - memory["peak"])


def test_machine_limits_and_environment_stand_beside(speed: dict[str, Any]) -> None:
    assert speed["machine"]["cpu"] and speed["machine"]["cores"] >= 1
    assert speed["environment"]["removed"]["OPENBLAS_CORETYPE"] == "Haswell"
    details = speed["details"]["quickllama"]
    assert details["variant"] and "OpenBLAS" in details["blas"]
    rates = speed["limits"]["1"]
    assert rates["memory"] > 1e8
    assert any(name.startswith("float32") and rate > 1e8 for name, rate in rates.items())
    (curve,) = speed["curves"]
    assert [end - curve["tokens"][0] for end in curve["tokens"]] == [0, 128]
    assert len(curve["tokens_per_second"]) == 2
    assert len(speed["rounds"]["results"]) == 2 * 4  # read, decode, prompt, load


def test_wrong_options_are_refused() -> None:
    result = run("speed.py", "--what", "dreams")
    assert result.returncode == 2 and "--what takes read, decode" in result.stderr


def test_kernels_of_every_variant(tmp_path: Path) -> None:
    pytest.importorskip("scipy_openblas32", reason="the core is built anew with OpenBLAS")
    out = tmp_path / "out.json"
    options = "--seconds 0.001 --size 64 --threads 2 --optimise=-O1 --limit-bytes 65536"
    result = run("kernels.py", *options.split(), "--json", str(out))
    assert result.returncode == 0, result.stderr
    found = json.loads(out.read_text("utf-8"))
    variants = list(found["limits"])
    assert variants and {record["variant"] for record in found["kernels"]} == set(variants)
    for variant in variants:
        kernels = {r["kernel"] for r in found["kernels"] if r["variant"] == variant}
        both = ("dots_{}", "mix_{}", "linear {}", "attention {}")
        short = [("f32", "float32"), ("bf16", "bfloat16")]
        expected = {name.format(s[" " in name]) for name in both for s in short}
        assert expected | {"exp_sum", "rank"} <= kernels
        assert ("panels.multiply" in kernels) == (variant == "avx512bf16")
    for record in found["kernels"]:
        assert record["seconds"] >= record["best_seconds"] > 0
        assert record["flops_per_second"] + record["bytes_per_second"] > 0
        assert record["ratio"] is None or record["ratio"] > 0


def test_tables_and_plots(speed: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("rich")
    pytest.importorskip("matplotlib")
    found = tmp_path / "found.json"
    found.write_text(json.dumps(speed), "utf-8")
    program = (
        f"import json, pathlib, sys; sys.path.insert(0, {str(BENCHMARKS)!r})\n"
        "import report, speed\n"
        f"found = json.load(open({str(found)!r}))\n"
        "rows = report.table_rows(found['rows'])\n"
        "report.print_table(speed.heading(found), report.COLUMNS, rows)\n"
        f"report.plot(pathlib.Path({str(tmp_path / 'plot.png')!r}), found['curves'], 'title')\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "read: first 128" in result.stdout
    assert "OPENBLAS_CORETYPE=Haswell" in result.stdout and "this shell sets" in result.stdout
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
