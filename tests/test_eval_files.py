"""Benchmarks' files: small ones of our own in their formats, and scores worked out by hand."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from tiny_folder import write_folder

import quickllama as ql
from quickllama.eval import evaluate
from quickllama.eval.case import Case, Question
from quickllama.eval.tasks import find_task

ROUGE = importlib.util.find_spec("rouge_score") is not None
FUZZ = importlib.util.find_spec("rapidfuzz") is not None


def count(text: str) -> int:
    return len(text.split())


def cases(task: str, path: Path, *rows: dict[str, Any]) -> list[Case]:
    """What a task reads from a file with these rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([*map(json.dumps, rows), ""]), "utf-8")
    read = find_task(task).read
    assert read is not None
    return list(read(path, count))


def ask(task: str, question: Question, answer: str) -> float:
    return find_task(task).score(question, answer)


# LongBench ----------------------------------------------------------------------------------------


def longbench(tmp_path: Path, dataset: str, **more: Any) -> Question:
    row = {"input": "Who?", "context": "Ann sat. " * 50, "answers": ["Ann"], "dataset": dataset}
    row |= {"all_classes": None, "language": "en", "length": 100, "_id": "0"}
    (case,) = cases("longbench", tmp_path / f"{dataset}.jsonl", {**row, **more})
    assert case.tokens == 100 and case.length == 128 and case.text.startswith("Ann sat.")
    (question,) = case.questions
    assert question.kind == dataset.removesuffix("_e")
    return question


def test_longbench_questions(tmp_path: Path) -> None:
    question = longbench(tmp_path, "hotpotqa_e", answers=["the red fox", "Ann"])
    assert question.text == "Who?"
    # given: red fox ran (3); wanted: red fox (2): 2 * 2 / 5.
    assert ask("longbench", question, "A red fox ran.") == pytest.approx(0.8)
    assert ask("longbench", question, "Ann") == 1 and ask("longbench", question, "Bob") == 0
    first = longbench(tmp_path, "triviaqa")
    assert ask("longbench", first, "\nAnn\nBob Bob Bob") == 1  # the first line counts
    other = longbench(tmp_path, "qasper")
    assert ask("longbench", other, "Ann\nBob Bob Bob") == pytest.approx(0.4)


def test_longbench_classes_and_numbers(tmp_path: Path) -> None:
    classes = ["Food", "Date", "Other date"]
    question = longbench(tmp_path, "trec", answers=["Date"], all_classes=classes)
    assert ask("longbench", question, "Type: Date\nFood") == 1
    assert ask("longbench", question, "Food or Date") == 0.5
    passage = longbench(tmp_path, "passage_retrieval_en", answers=["Paragraph 12"])
    assert ask("longbench", passage, "Paragraph 12 or 13") == 0.5
    assert ask("longbench", passage, "Paragraph 1") == 0
    number = longbench(tmp_path, "passage_count", answers=["8"], input="")
    assert ask("longbench", number, "There are 8.") == 1 and ask("longbench", number, "18") == 0


@pytest.mark.skipif(not (ROUGE and FUZZ), reason="needs the extra eval")
def test_longbench_summaries_and_code(tmp_path: Path) -> None:
    report = longbench(tmp_path, "gov_report", answers=["the cat the mat"], input="")
    assert "summary" in report.text
    assert ask("longbench", report, "the cat sat on the mat") == pytest.approx(0.8)
    code = longbench(tmp_path, "lcc", answers=["a = b"], input="")
    assert ask("longbench", code, "\n# so\na = b\nc = d") == 1
    assert ask("longbench", code, "a = b + 1") == pytest.approx(0.71)


def test_longbench_in_chinese_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ql.FileProblem, match=r"'dureader' is not read here"):
        longbench(tmp_path, "dureader")


# ∞-Bench ------------------------------------------------------------------------------------------


def infinite(tmp_path: Path, name: str, answer: Any, **more: Any) -> Question:
    row = {"id": 0, "context": "words " * 300, "input": "Which?", "answer": answer, "options": []}
    (case,) = cases("infinitebench", tmp_path / f"{name}.jsonl", {**row, **more})
    assert case.tokens == 300 and case.length == 512
    return case.questions[0]


def test_infinitebench_retrieval(tmp_path: Path) -> None:
    key = infinite(tmp_path, "passkey", ["71432"])
    assert ask("infinitebench", key, "It is 71432.") == 1
    assert ask("infinitebench", key, "1 of 2: 71432") == 0
    value = infinite(tmp_path, "kv_retrieval", "ab-12")
    assert ask("infinitebench", value, '{"k": "ab-12"}') == 1
    assert ask("infinitebench", value, "ab-123") == 0


def test_infinitebench_choices(tmp_path: Path) -> None:
    options = ["Ann", "Bob", "Cid", "Dan"]
    question = infinite(tmp_path, "longbook_choice_eng", ["Cid"], options=options)
    assert question.expected == ("C", "Cid") and "C. Cid" in question.text
    for right in ("C. Cid", "The answer is: C", "It must be C , not D", "I say answer is C."):
        assert ask("infinitebench", question, right) == 1
    for wrong in ("B", "The answer is: B, not C", "It is Cid", ""):
        assert ask("infinitebench", question, wrong) == 0
    code = infinite(tmp_path, "code_debug", ["Bob"], options=options)
    for right in ("B. Bob", "The error is: Bob", "answer: option B"):
        assert ask("infinitebench", code, right) == 1
    assert ask("infinitebench", code, "Bob") == ask("infinitebench", code, "answer: D") == 0
    with pytest.raises(ql.FileProblem, match="four options"):
        infinite(tmp_path, "code_debug", ["Eve"], options=options)


def test_infinitebench_numbers_and_names(tmp_path: Path) -> None:
    found = infinite(tmp_path, "math_find", [3.5])
    assert ask("infinitebench", found, "about 3.5, not 4") == 1
    assert ask("infinitebench", found, "4, not 3.5") == ask("infinitebench", found, "none") == 0
    steps = infinite(tmp_path, "math_calc", [7, -2, 9, 4])
    assert ask("infinitebench", steps, "7 and then 3, 9, 4") == 0.25
    run = infinite(tmp_path, "code_run", [12])
    assert ask("infinitebench", run, "f(3) is 12.") == 1
    assert ask("infinitebench", run, "12 is f(3)") == 0
    talk = infinite(tmp_path, "longdialogue_qa_eng", ["ACE", "VENTURA"])
    assert ask("infinitebench", talk, "It was Ace.") == 1
    assert ask("infinitebench", talk, "It was Grace.") == 0
    book = infinite(tmp_path, "longbook_qa_eng", ["the red fox"])
    assert ask("infinitebench", book, "red fox ran") == pytest.approx(0.8)


# BABILong and RULER -------------------------------------------------------------------------------


def test_babilong(tmp_path: Path) -> None:
    row = {"input": "Once. " * 40, "question": "Where is Mary? ", "target": "office"}
    (case,) = cases("babilong", tmp_path / "qa1_16k.jsonl", row)
    (question,) = case.questions
    assert (question.kind, question.text) == ("qa1", "Where is Mary?")
    assert ask("babilong", question, "Mary is in the Office. Not the garden.") == 1
    assert ask("babilong", question, "Office or garden") == 0


def test_ruler(tmp_path: Path) -> None:
    row = {"index": 0, "input": "Line.\nMore.\nWhich numbers? ", "outputs": ["12", "34"]}
    (case,) = cases("ruler", tmp_path / "niah_multivalue" / "validation.jsonl", row)
    (question,) = case.questions
    assert (case.text, question.text, question.kind) == ("Line.\nMore.", "Which numbers?", "niah")
    assert ask("ruler", question, "12 and 35") == 0.5
    (case,) = cases("ruler", tmp_path / "qa_1" / "validation.jsonl", row)
    assert ask("ruler", case.questions[0], "34") == 1


# The wall -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "name", "line", "words"),
    [
        ("ruler", "niah.jsonl", "no json", "no JSON objects"),
        ("ruler", "niah.jsonl", "[1]", "no object"),
        ("ruler", "niah.jsonl", '{"outputs": []}', "'input' is missing"),
        ("ruler", "niah.jsonl", '{"input": "One line", "outputs": ["1"]}', "is one line"),
        ("ruler", "other.jsonl", '{"input": "a\\nb", "outputs": ["1"]}', "does not tell"),
        ("babilong", "qa1.jsonl", '{"question": 1}', "'question' is int"),
        ("longbench", "x.jsonl", '{"input": "a"}', "'dataset' is missing"),
    ],
)
def test_other_files_are_refused(
    task: str, name: str, line: str, words: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(line + "\n", "utf-8")
    read = find_task(task).read
    assert read is not None
    with pytest.raises(ql.FileProblem, match=words):
        list(read(tmp_path / name, count))


def test_a_file_is_evaluated(tmp_path: Path) -> None:
    write_folder(tmp_path / "tiny")
    model = ql.Model.from_pretrained(tmp_path / "tiny", n_threads=1)
    row = {"input": "Once. " * 200, "question": "Where is Mary?", "target": "office"}
    path = tmp_path / "qa1.jsonl"
    path.write_text(json.dumps(row) + "\n" + json.dumps({**row, "target": "garden"}), "utf-8")
    results = evaluate(model, "babilong", data=path, methods=["stream", "full"], out=tmp_path)
    assert sorted(row["expected"] for row in results.rows) == [["garden"]] * 2 + [["office"]] * 2
    assert {(row["length"], row["depth"], row["kind"]) for row in results.rows} == {
        (2048, None, "qa1")
    }
