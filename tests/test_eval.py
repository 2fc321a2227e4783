"""Evaluation of a tiny model: what is asked, kept, resumed, and shown."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from tiny_folder import write_folder

import quickllama as ql
from quickllama.cli import main
from quickllama.documents import asking
from quickllama.documents.document import Document
from quickllama.documents.head_store import FoundRule, RetrievalHeads, SkimHeads
from quickllama.documents.retrieval import Ranking, rank_pieces
from quickllama.eval import METHODS, Results, Settings, evaluate, methods
from quickllama.eval.case import Question
from quickllama.eval.methods import Prediction, Reading
from quickllama.eval.results import Store, settings_id
from quickllama.eval.settings import tokens_of
from quickllama.eval.tables import share, wilson
from quickllama.prompt import PASSAGES_PROMPT

PAPER = ("qllm", "infllm", "stream", "infinite", "full")
NEVER = FoundRule((0.0, 0.0, 0.0), -9.0, 0.5)
SMALL: dict[str, Any] = {"lengths": [2048], "depths": [20, 80], "n": 1}


@pytest.fixture
def model(tmp_path: Path) -> ql.Model:
    """Of random weights, with some heads to rank by."""
    write_folder(tmp_path / "tiny")
    model = ql.Model.from_pretrained(tmp_path / "tiny", dtype="float32", n_threads=1)
    skim = SkimHeads(((0, 1),))
    model.retrieval_heads = RetrievalHeads(model.fingerprint, ((1, 3),), "made up", None, skim)
    return model


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often documents are made and questions asked."""
    counted = {"read": 0, "ask": 0}
    init, ask = Document.__init__, Document.ask

    def counting_init(self: Document, *args: Any, **options: Any) -> None:
        counted["read"] += 1
        init(self, *args, **options)

    def counting_ask(self: Document, *args: Any, **options: Any) -> Any:
        counted["ask"] += 1
        return ask(self, *args, **{**options, "max_new_tokens": 2})

    monkeypatch.setattr(Document, "__init__", counting_init)
    monkeypatch.setattr(Document, "ask", counting_ask)
    return counted


# What is asked ------------------------------------------------------------------------------------


def test_every_method_gets_the_same_questions(model: ql.Model, calls: dict[str, int]) -> None:
    pytest.importorskip("bm25s")
    results = evaluate(model, "needle", methods=list(METHODS), **SMALL)
    assert {row["method"] for row in results.rows} == set(METHODS)
    asked = {
        name: [(row["text"], row["question"]) for row in results.where(method=name).rows]
        for name in METHODS
    }
    assert all(questions == asked["heads"] for questions in asked.values())
    assert len(asked["heads"]) == 2
    # Read once: by the window for uses of heads, with look-ups, skimming. Else for each question.
    assert calls == {"read": 3 + 2 * 7, "ask": 2 * len(METHODS)}
    for row in results.rows:
        assert row["length"] == 2048 and row["tokens"] == pytest.approx(2048, rel=0.02)
        assert row["depth"] in (20, 80) and row["kind"] == "lexical" and row["expected"]
        assert 0 <= row["score"] <= 1 and row["seconds"] >= row["first_token_seconds"] > 0
        ranks = row["ranks"]
        assert (ranks is None) == (row["method"] in ("stream", "infinite", "full"))
        assert row["method"] != "given" or ranks == [1]


def test_every_method_keeps_keys_as_the_header_says(model: ql.Model, kv_dtypes: list[str]) -> None:
    pytest.importorskip("bm25s")
    asked = {"lengths": [512], "depths": [20], "n": 1, "kv_dtype": "int8"}
    for method in METHODS:
        kv_dtypes.clear()
        results = evaluate(model, "needle", methods=[method], **asked)
        assert [header["kv_dtype"] for header in results.headers.values()] == ["int8"]
        assert set(kv_dtypes) == {"int8"}, method


def test_each_question_is_ranked_once(
    model: ql.Model, calls: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    rankings = []

    def counting(*args: Any) -> Ranking:
        rankings.append(rank_pieces(*args))
        return rankings[-1]

    monkeypatch.setattr(asking, "rank_pieces", counting)
    results = evaluate(model, "needle", methods=["heads", "skim"], **SMALL)
    assert len(rankings) == len(results.rows) == 4
    assert all(row["ranks"] for row in results.rows)


def test_a_question_after_the_text_is_read_for_once(model: ql.Model, calls: dict[str, int]) -> None:
    results = evaluate(model, "needle", methods=PAPER, question_position="after", **SMALL)
    assert calls == {"read": 5, "ask": 10}
    identity = results.headers[results.rows[0]["settings"]]
    assert identity["query_aware"] is False and identity["question_position"] == "after"


def test_kinds_without_an_answer_go_to_those_who_can_refuse(model: ql.Model) -> None:
    heads = model.retrieval_heads
    assert heads is not None
    model.retrieval_heads = dataclasses.replace(heads, found=NEVER)
    kinds = ["lexical", "absent", "elsewhere"]
    with pytest.warns(UserWarning, match="'stream' was asked nothing"):
        evaluate(model, "needle", methods=["stream"], **SMALL, kinds=["absent"])
    results = evaluate(model, "needle", methods=["heads", "stream"], **SMALL, kinds=kinds)
    assert {row["kind"] for row in results.where(method="stream").rows} == {"lexical"}
    refused = results.where(method="heads")
    assert {row["found"] for row in refused.rows} == {False}
    # What would be right to refuse is right, and nothing else, whatever the words say.
    assert refused.where(kind=["absent", "elsewhere"]).accuracy == 1
    assert refused.where(kind="lexical").accuracy == 0


def test_right_words_are_counted_even_where_refused(
    model: ql.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def doubt(reading: Reading, question: Question, new_tokens: int) -> Prediction:
        return Prediction(question.expected[0], found=question.depth == 20, pieces=question.places)

    doubting = dataclasses.replace(METHODS["stream"], ask=doubt)
    monkeypatch.setattr(methods, "METHODS", {"stream": doubting})
    results = evaluate(model, "needle", methods=["stream"], **SMALL)
    assert results.accuracy == 0.5 and all(row["right_words"] for row in results.rows)
    right, words, first, *_ = results.markdown().split("**")[2::2]
    assert "| 1/2 50 % (9–91) |" in right
    assert "| 2/2 100 % (34–100) |" in words and "| 2/2 100 % (34–100) |" in first


def test_right_answers_are_counted(model: ql.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def know(reading: Reading, question: Question, new_tokens: int) -> Prediction:
        depth = question.depth
        return Prediction(question.expected[0] if depth == 20 else "?", pieces=question.places)

    knowing = dataclasses.replace(METHODS["stream"], ask=know)
    monkeypatch.setattr(methods, "METHODS", {"stream": knowing})
    results = evaluate(model, "needle", methods=["stream"], **{**SMALL, "n": 3})
    assert results.accuracy == 0.5 and len(results) == 6
    assert "| lexical | stream | 3/6 50 % (19–81) |" in results.markdown()
    wrong = results.wrong_answers(2)
    assert wrong.count("80 %") == 2 and "and 1 more" in wrong and "20 %" not in wrong


# What is kept -------------------------------------------------------------------------------------


def test_an_evaluation_goes_on_where_it_stopped(
    model: ql.Model, calls: dict[str, int], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    asked = {"methods": ["heads", "stream"], **SMALL}
    first = evaluate(model, "needle", out=out, **asked)
    file = out / "needle.jsonl"
    lines = file.read_text("utf-8").splitlines()
    assert [json.loads(line)["method"] for line in lines[2:]] == ["heads"] * 2 + ["stream"] * 2
    done = dict(calls)
    assert evaluate(model, "needle", out=out, **asked).rows == first.rows
    assert calls == done and file.read_text("utf-8").splitlines() == lines

    # Stopped while it wrote its third result.
    file.write_text("\n".join(lines[:4]) + "\n" + lines[4][:30], "utf-8")
    with pytest.warns(UserWarning, match="incomplete"):
        again = evaluate(model, "needle", out=out, **asked)
    assert calls["ask"] == done["ask"] + 2
    answers = [(row["question"], row["answer"]) for row in first.rows]
    assert [(row["question"], row["answer"]) for row in again.rows] == answers
    assert len(file.read_text("utf-8").splitlines()) == len(lines)
    assert Results.load(out).accuracy == first.accuracy
    assert Results.load(file).headers == first.headers


def test_processes_share_a_file(tmp_path: Path) -> None:
    """Each line is whole, whatever is in it, and though another process ended in one of its own."""
    file = tmp_path / "needle.jsonl"
    one, other = Store(file), Store(file)
    rows = [{"settings": "a", "answer": text} for text in ("x\u2028y", "\x85", "z")]
    one.add(rows[0])
    with file.open("a", encoding="utf-8") as ended:
        ended.write('{"settings": "b", "ans')
    other.add(rows[1])
    one.add(rows[2])
    assert Store(file).rows == rows


@pytest.mark.parametrize(
    "changed",
    [
        {"window": "512"},
        {"mask": "authors"},
        {"question_weight": 2.0},
        {"keep_query_tokens": True},
        {"question_position": "after"},
        {"kv_dtype": "float32"},
        {"prompt": PASSAGES_PROMPT + " "},
        {"seed": 1},
    ],
)
def test_other_settings_are_other_results(
    changed: dict[str, Any], model: ql.Model, calls: dict[str, int], tmp_path: Path
) -> None:
    asked = {"methods": ["qllm"], **SMALL}
    evaluate(model, "passkey", out=tmp_path, **asked)
    evaluate(model, "passkey", out=tmp_path, **{**asked, **changed})
    assert calls["ask"] == 4
    loaded = Results.load(tmp_path)
    assert len(loaded) == 4 and len({row["settings"] for row in loaded.rows}) == 2
    if "prompt" not in changed:
        (name,) = changed
        assert f"qllm ({name.replace('_', ' ')} {changed[name]})" in loaded.markdown()


def test_another_model_is_another_result(model: ql.Model, tmp_path: Path) -> None:
    write_folder(tmp_path / "other", seed=6)
    other = ql.Model.from_pretrained(tmp_path / "other", dtype="float32", n_threads=1)
    for one in (model, other):
        evaluate(one, "passkey", out=tmp_path / "out", methods=["stream"], **SMALL)
    assert len(Results.load(tmp_path / "out")) == 4


def test_files_that_hold_something_else_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "needle.jsonl"
    path.write_text('{"some": "thing"}\n', "utf-8")
    with pytest.raises(ql.FileProblem, match="line 1"):
        Store(path)
    with pytest.raises(ql.FileProblem, match="no file of results"):
        Results.load(tmp_path / "nothing")
    assert settings_id({"a": 1, "b": 2}) == settings_id({"b": 2, "a": 1}) != settings_id({})


# The wall -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"lengths": ["4q"]}, "such as 4096 or 4k"),
        ({"lengths": [10]}, "at least 256|between 256"),
        ({"lengths": []}, "at least one"),
        ({"depths": [101]}, "between 0 and 100"),
        ({"n": 0}, "n must be"),
        ({"methods": ["haeds"]}, "did you mean 'heads'"),
        ({"kinds": ["lexica"]}, "did you mean 'lexical'"),
        ({"window": "3k"}, "window must be"),
        ({"mask": "none"}, "mask must be"),
        ({"question_position": "front"}, "question_position must be"),
        ({"texts": "/nowhere"}, "no folder"),
        ({"facts": "/nowhere"}, "no file"),
        ({"data": __file__}, "leave data out"),
        ({"wnidow": "1k"}, "did you mean 'window'"),
        ({"methods": ["full"], "lengths": ["128k"]}, "at most 131,072"),
        ({"prompt": PASSAGES_PROMPT}, "before {text}"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], words: str, model: ql.Model) -> None:
    with pytest.raises(ql.Error, match=words):
        evaluate(model, "needle", **settings)


def test_what_is_missing_is_named(model: ql.Model, tmp_path: Path) -> None:
    with pytest.raises(ql.InvalidValue, match="did you mean 'needle'"):
        evaluate(model, "neddle")
    with pytest.raises(ql.InvalidType, match=r"quickllama\.Model"):
        evaluate("smollm2", "needle")  # an untyped caller's mistake
    write_folder(tmp_path / "other", seed=9)
    unknown = ql.Model.from_pretrained(tmp_path / "other", n_threads=1)
    with pytest.raises(ql.InvalidValue, match="calibrate"):
        evaluate(unknown, "needle")
    with pytest.raises(ql.InvalidValue, match="give data="):
        evaluate(model, "ruler")


def test_lengths() -> None:
    assert [tokens_of(x) for x in (4096, "4096", "4k", "1M")] == [4096, 4096, 4096, 1 << 20]
    assert Settings(lengths=["8k", 4096, "4k"]).lengths == (4096, 8192)


# What is shown ------------------------------------------------------------------------------------


def test_wilson_intervals() -> None:
    # 8 of 10: (0.8 + z²/20 ± z √(0.016 + z²/400)) / (1 + z²/10) with z² = 3.8415.
    assert wilson(8, 10) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    assert wilson(0, 0) == (0, 1) and wilson(0, 10)[0] == 0
    assert wilson(10, 10)[1] == pytest.approx(1)
    assert share([{"correct": True}] * 3, lambda row: row["correct"]) == "3/3 100 % (44–100)"


def test_heat_map(model: ql.Model) -> None:
    figures = pytest.importorskip("matplotlib.figure")
    results = evaluate(model, "needle", methods=["stream", "infinite"], **SMALL)
    with pytest.raises(ql.InvalidValue, match="needle by infinite, needle by stream"):
        results.heat_map()
    figure = results.heat_map(method="stream")
    assert isinstance(figure, figures.Figure)
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["2k"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["20 %", "80 %"]
    assert [text.get_text() for text in axes.texts] == ["0/1", "0/1"]


def test_the_command_line(
    model: ql.Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["eval", "passkey", "--model", str(tmp_path / "tiny"), "--threads", "1", "--quiet"]
    command += ["--lengths", "1k,2048", "--depths", "10,90", "--n", "1", "--methods", "stream,full"]
    assert main([*command, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "| question | method | 1k | 2k |" in printed and "| passkey | full | " in printed
    assert (out / "tables.md").read_text("utf-8") == printed
    assert len(Results.load(out)) == 8
    assert main(["eval", "report", str(out)]) == 0
    assert capsys.readouterr().out == printed
    assert main([*command, "--out", str(out), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 8 and {"task", "method", "length", "depth", "question", "answer"} <= set(
        rows[0]
    )
    try:
        import matplotlib
    except ModuleNotFoundError:
        return
    assert matplotlib and (out / "passkey-stream.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["passkex"], "did you mean 'passkey'"),
        (["passkey", "--depths", "x"], "percentage"),
        (["passkey", "--lengths", "4x"], "such as 4096 or 4k"),
        (["report"], "give their folder"),
        (["report", "/nowhere"], "no file of results"),
    ],
)
def test_the_command_line_says_what_is_wrong(
    options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", *options]) == 1
    assert words in capsys.readouterr().err


# The real model -----------------------------------------------------------------------------------


def test_the_real_model_finds_a_passkey_by_lookups(smollm2_path: Path) -> None:
    """... and not without them."""
    model = ql.Model.from_pretrained(smollm2_path)
    asked = {"lengths": ["2k"], "depths": [30], "n": 1, "window": "512"}
    results = evaluate(model, "passkey", methods=["qllm", "stream", "heads"], **asked)
    right = {row["method"]: row["correct"] for row in results.rows}
    assert right == {"qllm": True, "stream": False, "heads": True}
    (heads,) = results.where(method="heads").rows
    assert heads["ranks"] == [1] and heads["found"]
