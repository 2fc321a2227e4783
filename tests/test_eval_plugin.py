"""The pytest plugin, by running pytest on small test files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fresh_python import run_program
from tiny_folder import write_folder

pytest_plugins = ["pytester"]

HEAD = "import pytest\n"
MARK = "@pytest.mark.longcontext(task='passkey', lengths=['1k', 2048], depths=[50], n=2"
MARK += ", method='stream'"


@pytest.fixture
def model(pytester: pytest.Pytester) -> Path:
    """A tiny model, whose answers are never right."""
    write_folder(pytester.path / "tiny")
    return pytester.path / "tiny"


def test_a_limit_that_is_reached(pytester: pytest.Pytester, model: Path) -> None:
    pytester.makepyfile(
        HEAD + f"{MARK}, min_accuracy=0)\n"
        "def test_it(longcontext):\n"
        "    assert len(longcontext) == 4 and longcontext.lengths == [1024, 2048]\n"
        f"{MARK}, min_accuracy=0, out='kept')\n"
        "def test_mark_alone(): pass\n"
        "def test_other(): pass\n"
    )
    result = pytester.runpytest("--quickllama-model", str(model), "--quickllama-dtype", "float32")
    result.assert_outcomes(passed=3)
    lines = (pytester.path / "kept" / "passkey.jsonl").read_text("utf-8").splitlines()
    assert json.loads(lines[0])["identity"]["dtype"] == "float32" and len(lines) == 5


def test_no_question_at_all_is_no_success(pytester: pytest.Pytester, model: Path) -> None:
    pytester.makepyfile(
        HEAD + "@pytest.mark.filterwarnings('ignore')\n"
        "@pytest.mark.longcontext(task='needle', lengths=['1k'], depths=[50], kinds=['absent'],"
        " method='stream', min_accuracy=0)\ndef test_it(): pass\n"
    )
    result = pytester.runpytest("--quickllama-model", str(model), "--quickllama-dtype", "float32")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*needle by stream asked nothing: no question has the kinds *"])


def test_one_mark_for_one_test(pytester: pytest.Pytester, model: Path) -> None:
    pytester.makepyfile(
        HEAD + f"{MARK}, min_accuracy=0)\n{MARK}, min_accuracy=0.9)\ndef test_two(): pass\n"
        f"{MARK}, min_accuracy=0.9)\nclass TestIt:\n"
        f"    {MARK}, min_accuracy=0)\n    def test_overrides(self): pass\n"
    )
    result = pytester.runpytest("--quickllama-model", str(model), "--quickllama-dtype", "float32")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*one test has one mark*write a test for each"])


def test_a_limit_that_is_missed_shows_the_wrong_answers(
    pytester: pytest.Pytester, model: Path
) -> None:
    pytester.makepyfile(HEAD + f"{MARK}, min_accuracy=0.9)\ndef test_it(): assert 1 == 2\n")
    pytester.makeini(f"[pytest]\nquickllama_model = {model}\n")
    result = pytester.runpytest("--strict-markers")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "passkey by stream at 1k tokens: 0 of 2 right (0 %; 95 %: 0 to 66), "
            "and min_accuracy is 90 %",
            "passkey by stream at 2k tokens: 0 of 2 right *",
            "| length | depth | kind | question | expected | answer |",
            "| 1k | 50 % | passkey | What is the pass key[?] | ????? | *",
        ]
    )
    shown = result.stdout.str()
    assert "quickllama/eval" not in shown and "assert 1 == 2" not in shown  # a table, no stack


def test_a_fixture_of_ones_own(pytester: pytest.Pytester, model: Path) -> None:
    pytester.makeconftest(
        "import pytest, quickllama\n"
        "@pytest.fixture(scope='session')\n"
        f"def quickllama_model(): return quickllama.Model.from_pretrained({str(model)!r})\n"
    )
    pytester.makepyfile(HEAD + f"{MARK}, min_accuracy=0)\ndef test_it(): pass\n")
    pytester.runpytest().assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("min_accuracy=0.9", "needs task="),
        ("task='passkey'", "min_accuracy="),
        ("task='passkex', min_accuracy=0.9", "did you mean 'passkey'"),
        ("task='passkey', min_accuracy=90", "at most 1"),
        ("task='passkey', min_accuracy=1, methods=['full']", "give method="),
    ],
)
def test_marks_that_make_no_sense(
    arguments: str, words: str, pytester: pytest.Pytester, model: Path
) -> None:
    pytester.makepyfile(
        HEAD + f"@pytest.mark.longcontext({arguments})\ndef test_it(): pass\n"
        "def test_without(longcontext): pass\n"
    )
    result = pytester.runpytest("--quickllama-model", str(model))
    result.assert_outcomes(errors=2)
    result.stdout.fnmatch_lines([f"*{words}*", "*needs the mark @pytest.mark.longcontext*"])


def test_a_mark_of_one_case_is_of_that_case(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        HEAD + "marked = pytest.mark.longcontext(task='passkex', min_accuracy=0.9)\n"
        "@pytest.mark.parametrize('n', [1, pytest.param(2, marks=marked)])\n"
        "def test_it(n, request): assert 'longcontext' not in request.fixturenames\n"
    )
    result = pytester.runpytest()
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*did you mean 'passkey'*"])


def test_pytest_starts_without_the_package(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text("def test_it(): pass\n", "utf-8")
    printed = run_program(
        "import pytest, sys\n"
        f"code = pytest.main(['-q', '-p', 'no:cacheprovider', {str(tmp_path)!r}])\n"
        "print(int(code), 'pytest_quickllama' in sys.modules, 'quickllama' in sys.modules,\n"
        "      'numpy' in sys.modules)\n"
    )
    assert printed.splitlines()[-1] == "0 True False False"


def test_naming_the_plugin_does_not_load_it_twice(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_it(): pass\n")
    pytester.makeconftest("pytest_plugins = ['pytest_quickllama']\n")
    result = pytester.runpytest("-p", "pytest_quickllama")
    result.assert_outcomes(passed=1)
