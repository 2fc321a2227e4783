"""The benchmarks run, on a tiny model and for a moment: what they write has the promised shape."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import median
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


def python(program: str) -> str:
    """What a program with the modules of benchmarks/ prints."""
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=BENCHMARKS,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


SIZES = [
    *("--tokens", "1600", "--segment", "128", "--new", "4", "--depth", "16,64", "--prompt", "32"),
    *("--rounds", "2", "--threads", "1", "--window", "512"),
    *("--limit-seconds", "0.01", "--limit-bytes", "65536"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model."""
    made = tmp_path_factory.mktemp("speed") / "model"
    write_folder(made)
    return made


@pytest.fixture(scope="module")
def speed(folder: Path) -> dict[str, Any]:
    """What speed.py writes of a tiny model, in a shell that tunes OpenBLAS."""
    out = folder.parent / "out.json"
    result = run(
        "speed.py",
        *SIZES,
        *("--what", "read,skim,decode,prompt,load,memory,deep", "--dtype", "float32"),
        *("--lookup-interval", "1,4", "--deep", "made:tiny:2", "--deep-tokens", "1600"),
        *("--model", str(folder), "--json", str(out)),
        OPENBLAS_CORETYPE="Haswell",
        GGML_NONSENSE="1",
    )
    assert result.returncode == 0, result.stderr
    found: dict[str, Any] = json.loads(out.read_text("utf-8"))
    return found


def test_every_row_is_there_with_its_rounds(speed: dict[str, Any]) -> None:
    each4 = {r["what"]: r for r in speed["rows"] if r["dtype"] == "float32, look-up each 4"}
    rows = {row["what"]: row for row in speed["rows"] if row not in each4.values()}
    assert len(rows) + len(each4) == len(speed["rows"])
    # First tokens, blocks and window are full after 1,280 tokens; then come two that are measured.
    reading = ["read: first 128", "read: last 128, to 1,600", "read: all 1,600"]
    near = ["decode after 16", "decode after 64", "prompt of 32"]
    far = ["decode after 1,600", "deep, 2 layers: decode after 1,600"]
    parts = ("peak", "weights", "session", "the rest")
    others = ["import", "load", "read: all 1,600, time", *(f"memory: {part}" for part in parts)]
    skim = ["skim: first 128", "skim: last 128, to 1,600", "skim: all 1,600"]
    others += ["skim: all 1,600, time", "skim: memory for it"]
    others += [f"{verb}: rate of the last, as part of the first" for verb in ("read", "skim")]
    assert set(rows) == {*reading, *skim, *near, *far, *others}
    assert set(each4) == {"decode after 16", "decode after 64", *far}
    for what, row in rows.items():
        assert row["engine"] == "quickllama" and not row["note"]
        assert row["dtype"] == ("float32, skim" if what.startswith("skim") else "float32")
        short = what in near or what in ("import", "load")
        assert len(row["values"]) == (2 if short else 1)
        assert min(row["values"]) <= row["median"] and min(row["values"]) > 0
    for what in (*reading, *skim, *near, *far):
        row = rows[what]
        assert row["unit"] == "tokens/s" and row["limit"] > 0
        assert 0 < row["ratio"] < 20  # of a limit that was looked at for a moment
    memory = {part: rows[f"memory: {part}"]["median"] for part in parts}
    assert memory["peak"] == pytest.approx(sum(memory.values()) - memory["peak"])


def test_machine_limits_and_environment_stand_beside(speed: dict[str, Any]) -> None:
    assert speed["machine"]["cpu"] and speed["machine"]["cores"] >= 1
    assert speed["environment"]["removed"]["OPENBLAS_CORETYPE"] == "Haswell"
    assert speed["environment"]["removed"]["GGML_NONSENSE"] == "1"
    details = speed["details"]["quickllama"]
    assert details["variant"] and "OpenBLAS" in details["blas"]
    assert details["threads"] == "1 threads"
    rates = speed["limits"]["1"]
    assert rates["memory"] > 1e8
    assert any(name.startswith("float32") and rate > 1e8 for name, rate in rates.items())
    read, skim = speed["curves"]
    assert read["tokens"] == [1472, 1600] and len(read["tokens_per_second"]) == 2
    assert skim["dtype"] == "float32, skim" and skim["tokens"][-1] == 1600
    results, found = speed["rounds"]["results"], speed["rounds"]["limits"]
    long = ["read", "skim", "deep", "read", "deep"]  # the last two with look-ups each 4 tokens
    assert [r["job"] for r in results] == [*long, *["prompt", "decode", "load", "decode"] * 2]
    rounds = [*range(5), *[5] * 4, *[6] * 4]
    assert [r["round"] for r in results] == rounds and len(found) == 7
    assert speed["strangers"] == []


def test_engines_that_read_something_else_are_named(speed: dict[str, Any]) -> None:
    prompt = next(r for r in speed["rounds"]["results"] if r["job"] == "prompt")
    worst = {**prompt, "engine": "llamacpp", "label": "stored", "best": [[-1, 0.0]]}
    found = python(f"import rows; print(rows.strangers({[prompt, worst]!r}))")
    assert "llamacpp stored: after the prompt its best token is -1, which is none" in found
    assert python(f"import rows; print(rows.strangers({[prompt, prompt]!r}))") == "[]\n"


def test_llamacpp_wants_gguf(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    peers = ("--peers", "llamacpp", "--llamacpp-dtype", "stored")
    result = run("speed.py", *SIZES, *peers, "--model", str(folder), "--json", str(out))
    # A folder of safetensors is nothing for llama.cpp, which says so before anything is measured.
    assert result.returncode == 2 and "GGUF" in result.stderr and not out.exists()


def test_a_peer_that_is_not_installed_is_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "transformers.py").write_text(
        "import importlib.util\n"
        "assert not importlib.util.find_spec('tasks'), 'a file of benchmarks/ is in the way'\n"
        "raise ModuleNotFoundError(name='transformers')\n"
    )
    (tmp_path / "torch.py").write_text("")
    script = tmp_path / "python"
    path = os.pathsep.join(filter(None, [str(tmp_path), *sys.path]))
    script.write_text(f'#!/bin/sh\nPYTHONPATH={path!r} exec {sys.executable!r} "$@"\n')
    script.chmod(0o755)
    out = tmp_path / "out.json"
    result = run(
        "speed.py",
        *SIZES,
        *("--what", "prompt", "--dtype", "float32", "--model", str(folder), "--json", str(out)),
        *("--peers", "transformers", "--peer-python", str(script)),
    )
    assert result.returncode == 0, result.stderr
    rows = json.loads(out.read_text("utf-8"))["rows"]
    notes = {row["engine"]: row["note"] for row in rows}
    assert notes == {"quickllama": "", "transformers": "not installed: transformers"}


@pytest.mark.peers
def test_transformers_beside_ours(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    check_peer("transformers", folder, tmp_path, "--transformers-dtype", "float32")


@pytest.mark.peers
def test_llamacpp_beside_ours(smollm2_path: Path, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    check_peer("llamacpp", smollm2_path, tmp_path, "--llamacpp-dtype", "stored,q8_0")


def check_peer(engine: str, model: Path, folder: Path, *dtypes: str) -> None:
    """A peer reads, decodes and answers a prompt as we do."""
    out = folder / "out.json"
    sizes = ("--peer-tokens", "256", "--peer-segment", "64", "--llamacpp-depth", "16,64")
    result = run(
        "speed.py",
        *SIZES,
        *("--dtype", "float32", "--model", str(model), "--json", str(out)),
        *("--peers", engine, *dtypes, *sizes),
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(out.read_text("utf-8"))
    assert found["strangers"] == []
    assert found["details"][engine]["threads"] == "1 threads"
    rows = {row["what"]: row for row in found["rows"] if row["engine"] == engine}
    (ours,) = (r for r in found["rows"] if r["what"] == "prompt of 32" and r["limit"])
    theirs = [r for r in found["rows"] if r["what"] == "prompt of 32" and r is not ours]
    best = [max(values) for values in zip(*(r["values"] for r in theirs), strict=True)]
    pairs = zip(ours["values"], best, strict=True)
    assert ours["beside"] == pytest.approx(median(a / b for a, b in pairs))
    for what in ("read: all 256", "decode after 16", "decode after 64", "prompt of 32", "load"):
        assert rows[what]["median"] > 0
    curve = next(curve for curve in found["curves"] if curve["engine"] == engine)
    assert curve["tokens"] == [64, 128, 256] if engine == "transformers" else [64, 128, 192, 256]


def test_scaling_needs_neither_a_model_nor_a_compiler_of_its_own(tmp_path: Path) -> None:
    program, out = tmp_path / "limits", tmp_path / "out.json"
    compiler = os.environ.get("CC", "cc").split()
    source = str(BENCHMARKS / "limits.c")
    flags = ["-O1", "-std=gnu11", "-pthread"]
    subprocess.run([*compiler, *flags, source, "-o", str(program)], check=True)
    options = "--model made:tiny:2 --threads 1,2 --rounds 2 --tokens 128 --new 4 --window 512"
    sizes = "--limit-seconds 0.01 --limit-bytes 65536 --dtype float32,bfloat16"
    given = (*options.split(), *sizes.split(), "--json", str(out))
    result = run("scaling.py", *given, CC="no-such-compiler")
    assert result.returncode == 1 and "--limits" in result.stderr and "CC" in result.stderr
    result = run("scaling.py", *given, "--limits", str(program), CC="no-such-compiler")
    assert result.returncode == 0, result.stderr
    found = json.loads(out.read_text("utf-8"))
    assert found["model"] == {"name": "made:tiny:2", "share": 0.5}
    for dtype in ("float32", "bfloat16"):
        one, two = found["rows"][dtype]
        assert (one["threads"], two["threads"]) == (1, 2)
        for what in ("read", "decode"):
            assert one[what] > 0 and one[f"{what}_limit"] > 0
            assert one[f"{what}_gain"] == one[f"{what}_part"] == 1
            assert two[f"{what}_part"] > 0
        assert [p["cores"] for p in found["projections"][dtype]] == [2, 16, 64]
        (measured, *_) = found["projections"][dtype]
        assert measured["seconds"] == pytest.approx(100_000 / (two["read"] * 0.5))


def test_projections_gain_as_much_as_the_last_doubling() -> None:
    rows = [{"threads": count, "read": rate} for count, rate in ((1, 10.0), (2, 19.0), (4, 30.0))]
    found = python(f"import scaling; print(scaling.projections({rows!r}, 0.5))")
    two, sixteen, sixty = ast.literal_eval(found)
    gain = 30 / 19
    assert (two["cores"], two["threads_measured"]) == (2, 2)
    assert two["seconds"] == pytest.approx(100_000 / (19 * 0.5))
    assert (sixteen["cores"], sixteen["threads_measured"]) == (16, 4)
    assert sixteen["seconds"] == pytest.approx(100_000 / (30 * gain**2 * 0.5))
    assert sixty["seconds"] == pytest.approx(100_000 / (30 * gain**4 * 0.5))


def test_made_models_shrink_in_proportion() -> None:
    found = python(
        "import json, made_models as m\n"
        "from quickllama import ModelConfig\n"
        "whole, part = (ModelConfig.from_hf(m.config_of(f'made:llama3-8b:{n}')) for n in (32, 2))\n"
        "w = m.weights_of('made:tiny:2')\n"
        "print([whole.parameters, part.parameters / whole.parameters, sorted(w)[0]])\n"
    )
    parameters, share, name = ast.literal_eval(found)
    assert parameters == 8_030_261_248 and share == pytest.approx(2 / 32, abs=1e-5)
    assert name == "model.embed_tokens.weight"


@pytest.mark.parametrize(
    ("script", "options", "words"),
    [
        ("speed.py", "--what dreams", "--what takes read, skim"),
        ("speed.py", "--dtype float7", "float7"),
        ("speed.py", "--deep made:smollm2-135m:31", "1 to 30 layers"),
        ("speed.py", "--tokens 0", "--tokens is at least 1"),
        ("scaling.py", "--model made:nothing:2", "llama3-8b"),
        ("scaling.py", "--threads 0", "at least 1"),
    ],
)
def test_wrong_options_are_refused(script: str, options: str, words: str) -> None:
    result = run(script, *options.split())
    assert result.returncode == 2 and words in result.stderr


KERNELS = ("dots", "mix", "linear", "attention")


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
        expected = {f"{what} {dtype}" for what in KERNELS for dtype in ("float32", "bfloat16")}
        assert expected | {"dots int8", "mix int8", "exp_sum", "rank"} <= kernels
        assert ("panels.multiply" in kernels) == (variant in ("avx512bf16", "amx"))
    for record in found["kernels"]:
        assert record["seconds"] >= record["best_seconds"] > 0
        assert record["flops_per_second"] + record["bytes_per_second"] > 0
        assert record["ratio"] is None or record["ratio"] > 0


def test_tables_and_plots(speed: dict[str, Any], tmp_path: Path) -> None:
    found = tmp_path / "found.json"
    found.write_text(json.dumps(speed), "utf-8")
    printed = python(
        "import json, report, speed\n"
        f"found = json.load(open({str(found)!r}))\n"
        "rows = report.table_rows(found['rows'])\n"
        "report.print_table(speed.heading(found), report.COLUMNS, rows)\n"
    )
    assert "read: first 128" in printed
    assert "OPENBLAS_CORETYPE=Haswell" in printed and "this shell sets" in printed
    pytest.importorskip("matplotlib")
    picture = tmp_path / "plot.png"
    python(
        "import json, pathlib, report\n"
        f"found = json.load(open({str(found)!r}))\n"
        f"report.plot(pathlib.Path({str(picture)!r}), found['curves'], 'title')\n"
    )
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_first_tokens(tmp_path: Path) -> None:
    write_folder(tmp_path / "model")
    text, out = tmp_path / "text.txt", tmp_path / "found.json"
    text.write_text("The keeper of the lighthouse counts ships. " * 20)
    given = (str(text), "--model", str(tmp_path / "model"), "--tokens", "1500")
    result = run("first_token.py", *given, "--json", str(out))
    assert result.returncode == 0, result.stderr
    found = json.loads(out.read_text())
    assert abs(found["tokens"] - 1500) < 200
    assert [use["use"] for use in found["uses"]] == ["memory", "reposition", "reread"]
    for use in found["uses"]:
        assert len(use["seconds"]) == 8 and min(use["seconds"]) > 0
        assert sum(use["shares"].values()) == pytest.approx(1)
        assert use["shares"]["reading"] > 0 and use["shares"]["ranking"] > 0
        assert f"{median(use['seconds']):.2f}" in result.stdout
