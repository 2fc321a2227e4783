"""The command line: what it prints, where, and with which exit code."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from prompts import paper_prompt
from tiny_folder import write_folder

import quickllama as ql
from quickllama.cli import ask as command
from quickllama.cli import main
from quickllama.documents import reply
from quickllama.documents.passages import MOST_PASSAGES
from quickllama.prompt import (
    PASSAGES_PROMPT,
    QUESTION_LEAD,
    SUFFIX,
    TASK,
    TEXT_LEAD,
    ChatFrame,
    PromptForm,
    checked_question,
)

WINDOW = ["--n-init", "8", "--n-local", "64", "--block-size", "16"]
SMALL = [*WINDOW, "--topk", "2", "--reread-all"]
QUESTION = "Où?"
TEXT = "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. " * 8


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, "utf-8")
    return path


def ask(text: Path | str, folder: Path, *more: str) -> int:
    arguments = ["ask", str(text), QUESTION, "--model", str(folder), "--max-new-tokens", "12"]
    return main([*arguments, *SMALL, "--threads", "1", *more])


# Answers ------------------------------------------------------------------------------------------


def test_an_answer_on_stdout_and_a_bar_on_stderr(
    text: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(text, folder) == 0
    out, err = capsys.readouterr()
    answer, _, passages = out.partition("\n\nEvidence:\n")
    assert answer
    assert re.search(
        r"characters \d+–\d+, score [01]\.\d\d, chosen in [12] layers?\n    \S", passages
    )
    assert "reading" in err and "100%" in err and "tok/s" in err
    assert ask(text, folder, "--quiet") == 0
    assert capsys.readouterr() == (out, "")
    assert ask(text, folder, "--quiet", "--no-evidence") == 0
    assert capsys.readouterr() == (answer + "\n", "")
    assert ask(text, folder, "--quiet", "--passages", "1") == 1
    assert "belong to retrieval 'heads'" in capsys.readouterr().err


@pytest.mark.parametrize("kv", ["f32", "int8"])
def test_json_holds_what_was_found(
    kv: str, text: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(text, folder, "--json", "--dtype", "f32", "--kv-dtype", kv) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["characters"], report["dtype"], report["threads"]) == (len(TEXT), "float32", 1)
    assert report["memory"]["n_local"] == 64 and report["memory"]["exc_block_size"] == 64
    (answer,) = report["answers"]
    assert answer["question"] == QUESTION
    assert report["seconds_reading"] > 0 and report["reread_all"]
    assert 1 <= len(answer["evidence"]) <= MOST_PASSAGES
    for passage in answer["evidence"]:
        assert TEXT[passage["start"] : passage["end"]] == passage["text"]
        assert 0 < passage["score"] <= 1 and passage["layers"]
    scores = [passage["score"] for passage in answer["evidence"]]
    assert scores == sorted(scores, reverse=True)

    # The same through the library.
    model = ql.Model.from_pretrained(folder, dtype="f32", n_threads=1)
    ids, span = paper_prompt(model.tokenizer, QUESTION, TEXT)
    memory = ql.MemoryConfig(n_init=8, n_local=64, block_size=16, topk=2, exc_block_size=64)
    result = model.generate(ids, max_new_tokens=12, memory=memory, query_span=span, kv_dtype=kv)
    new = [token for token in result[len(ids) :].tolist() if token != 258]
    assert answer["tokens"] == new
    assert answer["text"] == model.tokenizer.decode(new).strip()


def test_several_questions(text: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["ask", str(text), "Who?", "Where?", "--model", str(folder), "--quiet"]
    assert main([*arguments, *SMALL, "--max-new-tokens", "3"]) == 0
    out = capsys.readouterr().out
    assert out.index("Who?") < out.index("Where?")
    assert out.count("Evidence:") == 2


@pytest.mark.parametrize("mode", ["full", "stream", "infinite", "infllm"])
def test_other_memories(
    mode: str, text: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(text, folder, "--memory", mode) == 0
    out, err = capsys.readouterr()
    assert ("looks nothing up" in err) == ("(no evidence)" in out) == (mode != "infllm")


def test_a_text_that_fits_into_the_window(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = tmp_path / "short.txt"
    short.write_text("Short.")
    arguments = [
        "ask",
        str(short),
        QUESTION,
        "--model",
        str(folder),
        "--window",
        "2k",
        "--reread-all",
    ]
    assert main([*arguments, "--max-new-tokens", "2"]) == 0
    assert "fits into the window" in capsys.readouterr().err


def test_standard_input(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, text: Path
) -> None:
    assert ask(text, folder, "--quiet") == 0
    expected = capsys.readouterr().out
    piped = io.TextIOWrapper(io.BytesIO(b"\xef\xbb\xbf" + TEXT.encode()), encoding="ascii")
    monkeypatch.setattr(sys, "stdin", piped)
    assert ask("-", folder, "--quiet") == 0
    assert capsys.readouterr().out == expected


def test_a_character_is_written_whole(
    text: Path, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ql.Model.from_pretrained(folder)
    tokens = [*model.tokenizer.encode("a😀é\x1b[2J"), 258]
    monkeypatch.setattr(reply, "iter_tokens", lambda *_, **__: iter(tokens))
    written: list[str] = []
    write = command.write_safely
    monkeypatch.setattr(command, "write_safely", lambda part: (written.append(part), write(part)))
    assert ask(text, folder, "--quiet") == 0
    assert [part for part in written if part][:3] == ["a", "😀", "é"]
    out = capsys.readouterr().out
    assert out.startswith("a😀é[2J\n")  # nothing that steers a terminal


# A text read once ---------------------------------------------------------------------------------


def once(text: Path | str, folder: Path, *more: str) -> int:
    start = ["ask", str(text), QUESTION, "Wo?", "--model", str(folder), "--max-new-tokens", "8"]
    return main([*start, *WINDOW, "--threads", "1", *more])


def test_one_reading_serves_all_questions(
    text: Path, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    reading = ql.Model.read
    monkeypatch.setattr(
        ql.Model, "read", lambda *a, **k: (read.append(k["title"]), reading(*a, **k))[1]
    )
    assert once(text, folder, "--evidence") == 0
    out, err = capsys.readouterr()
    assert read == [str(text)]
    assert out.index(QUESTION) < out.index("Wo?") and out.count("Evidence:") == 2
    assert "reading" in err and "note: no retrieval heads are known" in err
    assert once(text, folder, "--quiet", "--passages", "0", "--evidence") == 0
    assert capsys.readouterr().out.count("(no evidence)") == 2


def test_json_of_a_text_read_once(
    text: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert once(text, folder, "--json", "--quiet", "--use", "memory", "--passages", "2") == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert err == "" and report["characters"] == len(TEXT) and not report["reread_all"]
    assert report["memory"]["topk"] == 0 and report["memory"]["n_local"] == 64
    memory = ql.MemoryConfig(
        mode="infllm", n_init=8, n_local=64, block_size=16, topk=0, exc_block_size=64
    )
    document = ql.Model.from_pretrained(folder, n_threads=1).read(TEXT, memory=memory)
    for question, shown in zip([QUESTION, "Wo?"], report["answers"], strict=True):
        expected = document.ask(question, use="memory", passages=2, max_new_tokens=8).to_dict()
        for name in ("question", "text", "tokens", "evidence", "notes", "confidence", "found"):
            assert shown[name] == expected[name]


LOOKUP_OPTIONS = (
    *(["--memory", "qllm"], ["--topk", "3"], ["--mask", "exact"]),
    *(["--keep-query-tokens"], ["--no-keep-query-tokens"]),
)


@pytest.mark.parametrize("option", LOOKUP_OPTIONS)
def test_options_of_the_paper_read_its_way(
    option: list[str], text: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert once(text, folder, *option, "--json", "--quiet") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["reread_all"]
    assert told["memory"]["keep_query_tokens"] is (option == ["--keep-query-tokens"])
    assert once(text, folder, "--json", "--quiet") == 0
    assert not json.loads(capsys.readouterr().out)["reread_all"]


# Problems -----------------------------------------------------------------------------------------


def one_sentence(capsys: pytest.CaptureFixture[str]) -> str:
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1 and err.startswith("quickllama")
    return err


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (b"", "empty"),
        (b" \n\t", "empty"),
        ("text".encode("utf-16"), "UTF-16"),
        ("text".encode("utf-32"), "UTF-32"),
        ("text".encode("utf-16-le"), "zero"),
        (b"\x7fELF\x00\x01", "zero"),
        (b"caf\xe9 au lait", "0xe9 at 3"),
        (b"\xef\xbb\xbfcaf\xe9", "0xe9"),
    ],
)
def test_files_that_are_no_text(
    data: bytes, named: str, tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    assert ask(path, folder) == 1
    assert named in one_sentence(capsys)


def test_files_that_cannot_be_read(
    tmp_path: Path, folder: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(tmp_path, folder) == 1
    assert "folder" in one_sentence(capsys)
    assert ask(tmp_path / "missing", folder) == 1
    assert "No such file" in one_sentence(capsys)
    assert ask(text, tmp_path / "no-model") == 1
    assert "no-model" in one_sentence(capsys)
    assert main(["info", str(tmp_path)]) == 1
    assert "config.json" in one_sentence(capsys)


def test_questions_that_cannot_be_asked(
    text: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = ["ask", str(text), "--model", str(folder), *SMALL]
    assert main([*start, "Why? " * 20]) == 1
    assert "ask a shorter one" in one_sentence(capsys)
    assert main([*start, "  "]) == 1
    assert "question is empty" in one_sentence(capsys)
    assert main([*start, "bytes \udcff"]) == 1
    assert "UTF-8" in one_sentence(capsys)
    assert main([*start[:2], str(text), "Why?"]) == 2
    assert "is a file, and behind the first one questions" in one_sentence(capsys)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "COMMAND"),
        (["write"], "invalid choice"),
        (["read"], "FILE, --save"),
        (["ask"], "FILE"),
        (["ask", "file"], "QUESTION"),
        (["ask", "file", "q", "--topk", "many"], "--topk: it must be a whole number"),
        (["ask", "file", "q", "--n-local", "0"], "--n-local: it must be at least 1"),
        (["ask", "file", "q", "--threads", "65"], "between 1 and 64"),
        (["ask", "file", "q", "--window", "3k"], "invalid choice"),
        (["ask", "file", "q", "--dtype", "int9"], "did you mean 'int8'"),
        (["ask", "file", "q", "--kv-dtype", "q4"], "'float32', 'bfloat16' or 'int8'"),
    ],
)
def test_wrong_usage(arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert named in one_sentence(capsys)


def test_settings_that_do_not_fit_together(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ask", "file", "q", "--exc-block-size", "600"]) == 2
    assert "exc_block_size 600" in one_sentence(capsys)


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    for option, expected in (("--version", ql.__version__), ("--help", "ask")):
        with pytest.raises(SystemExit) as caught:
            main([option])
        assert caught.value.code == 0
        assert expected in capsys.readouterr().out


# Processes ----------------------------------------------------------------------------------------


def start(*arguments: str, **streams: Any) -> subprocess.Popen[bytes]:
    """The command in a process of its own, with the package that the tests use."""
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "quickllama", *arguments],
        stderr=subprocess.PIPE,
        **streams,
    )


def test_ctrl_c_while_reading(tmp_path: Path, folder: Path) -> None:
    long = tmp_path / "long.txt"
    long.write_text("All work and no play makes Jack a dull boy.\n" * 20_000)
    process = start("ask", str(long), "Why?", "--model", str(folder), stdout=subprocess.PIPE)
    assert process.stderr is not None
    seen = b""
    while b"tok/s" not in seen:  # the bar is there: reading has begun
        part = os.read(process.stderr.fileno(), 4096)
        assert part, f"it ended early: {seen.decode()}"
        seen += part
    time.sleep(0.2)
    sent = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert time.monotonic() - sent < 2
    assert process.returncode == 130
    assert out == b"" and b"interrupted" in err and b"Traceback" not in err


def test_a_reader_that_goes_away(text: Path, folder: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    process = start(
        *("ask", str(text), "Why?", "--model", str(folder), "--quiet", *SMALL), stdout=writing
    )
    os.close(writing)
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (1, b"")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_json_is_whole_on_any_terminal(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    named = tmp_path / "Zwölf"
    named.symlink_to(folder)
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding))
    assert main(["info", str(named), "--json"]) == 0
    out = written.getvalue()
    assert json.loads(out)["path"] == str(named)
    assert ("Zwölf".encode() in out) == (encoding == "utf-8")


def test_streams_that_are_closed(
    text: Path, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("stdout", "stderr"):
        for arguments in (["info", str(folder), "--json"], ["info", str(folder)]):
            monkeypatch.setattr(sys, name, None)
            assert main(arguments) == 0
            monkeypatch.undo()
        monkeypatch.setattr(sys, name, None)
        assert ask(text, folder) == 0
        monkeypatch.undo()
    monkeypatch.setattr(sys, "stderr", None)
    assert main(["info", str(folder / "missing")]) == 1
    monkeypatch.undo()
    assert "missing" not in capsys.readouterr().out
    monkeypatch.setattr(sys, "stdin", None)
    assert ask("-", folder) == 1
    assert "standard input is closed" in one_sentence(capsys)
    monkeypatch.setattr(sys, "stdin", io.StringIO(TEXT))
    assert ask("-", folder) == 1
    assert "has no bytes" in one_sentence(capsys)


def test_info(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(folder)]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^layers +2$", out, re.MULTILINE)
    assert re.search(r"^chat template +yes$", out, re.MULTILINE)
    assert main(["info", str(folder), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["path"] == str(folder) and facts["stored_as"] == "float32"
    assert facts["matrices_stored_as"] == facts["dtype_stored_holds_them_as"] == "float32"
    assert facts["key_value_bytes_per_token"] == 2 * 2 * 2 * 2 * 8
    assert facts["key_value_bytes_per_token_int8"] == 2 * 2 * 2 * (8 + 4)
    (folder / "tokenizer.json").rename(folder / "kept")
    try:
        assert main(["info", str(folder)]) == 0
    finally:
        (folder / "kept").rename(folder / "tokenizer.json")
    assert re.search(r"^chat template +unknown$", capsys.readouterr().out, re.MULTILINE)
    assert facts["stored_bytes"] == (folder / "model.safetensors").stat().st_size


# The prompt ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return ql.Tokenizer.from_folder(folder)


def test_the_prompt_and_its_positions(tokenizer: Any) -> None:
    words = "Ein <|end|> im Text, 12 € und 😀."
    asked = f"{QUESTION}<|end|>"
    ids, span = paper_prompt(tokenizer, asked, words)
    user = TASK + QUESTION_LEAD + asked + TEXT_LEAD + words + SUFFIX.format(question=asked)
    shown = tokenizer.decode(ids, skip_special_tokens=False)
    assert shown == f"<|user|>{user}<|end|>\nANSWER:"
    # What the user and the text write is never a special token.
    assert [token for token in ids.tolist() if token >= 256] == [257, 258]
    assert tokenizer.decode(ids[slice(*span)]) == asked
    suffix, later = PromptForm.of(PASSAGES_PROMPT).suffix(tokenizer, asked)
    assert tokenizer.decode(suffix[slice(*later)]).strip() == asked


def test_without_a_template_the_form_is_plain(tmp_path: Path) -> None:
    write_folder(tmp_path, template=None)
    tokenizer = ql.Tokenizer.from_folder(tmp_path)
    ids, _ = paper_prompt(tokenizer, "Who?", "A text.")
    assert tokenizer.decode(ids) == (
        f"{TASK}{QUESTION_LEAD}Who?{TEXT_LEAD}A text.{SUFFIX.format(question='Who?')}\n\nAnswer:"
    )
    assert ChatFrame.of(tokenizer).templated is False


@pytest.mark.parametrize("template", ["no words", "{{ messages[0].content * 2 }}"])
def test_templates_that_lose_or_double_the_words(template: str, tmp_path: Path) -> None:
    write_folder(tmp_path, template=template)
    with pytest.raises(ql.InvalidValue, match="chat template"):
        ChatFrame.of(ql.Tokenizer.from_folder(tmp_path))


def test_a_question_is_a_string() -> None:
    with pytest.raises(ql.InvalidType, match="string"):
        checked_question(3)
