"""The command line with documents in files: read, ask, chat, info."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

import quickllama as ql
from quickllama.cli import main
from quickllama.documents.volume_file import is_document

WINDOW = ["--n-init", "8", "--n-local", "64", "--block-size", "16"]
TEXT = "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. " * 30
PIPED = TEXT * 40


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, "utf-8")
    return path


@pytest.fixture
def book(tmp_path: Path) -> Path:
    return tmp_path / "book.qlm"


def read(text: Path, book: Path, folder: Path, *more: str) -> int:
    return main(["read", str(text), "--save", str(book), "--model", str(folder), *WINDOW, *more])


def ask(file: Path, folder: Path, *more: str) -> int:
    given = ["Wer?", "--model", str(folder), "--max-new-tokens", "6", "--quiet"]
    return main(["ask", str(file), *given, *more])


def test_read_once_ask_later(
    text: Path, book: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert read(text, book, folder, "--ram-limit", "20KB") == 0
    out, err = capsys.readouterr()
    assert not out and "text.txt" in err and f"quickllama ask {book}" in err and "tok/s" in err
    assert "\nquickllama: the document takes" in err  # more than such a limit
    assert ask(book, folder, "--ram-limit", "1MB") == 0
    from_file = capsys.readouterr()
    assert ask(text, folder, *WINDOW) == 0
    assert capsys.readouterr() == from_file and from_file.out
    assert read(text, book, folder, "--quiet") == 0  # nothing is left to read
    assert capsys.readouterr() == ("", "")
    assert ask(book, folder, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["characters"] == len(TEXT) and report["memory"]["n_local"] == 64


def test_a_hyphen_is_no_document(
    text: Path,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is standard input, also where a document has that name."""
    monkeypatch.chdir(tmp_path)
    assert read(text, Path("-"), folder) == 2
    assert "--save NAME" in capsys.readouterr().err and not Path("-").exists()
    assert read(text, tmp_path / "-", folder, "--quiet") == 0
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Ein Hund. " * 40)))
    assert ask(Path("-"), folder, "--json") == 0
    assert json.loads(capsys.readouterr().out)["characters"] == 400


@pytest.fixture
def pipe() -> Iterator[str]:
    """The path of a pipe, as shells give it for <(...), through which comes what may be a document,
    and is longer than what a buffered file reads at once."""
    reading, writing = os.pipe()
    # A thread, since it is also longer than what a pipe holds.
    writer = threading.Thread(target=pour, args=(writing,), daemon=True)
    writer.start()
    yield f"/dev/fd/{reading}"
    os.close(reading)
    writer.join(20)


def pour(writing: int) -> None:
    with suppress(BrokenPipeError), os.fdopen(writing, "wb") as file:
        file.write(PIPED.encode())


@pytest.mark.parametrize("command", ["ask", "chat", "read"])
def test_a_text_through_a_pipe_is_read_whole(
    command: str,
    pipe: str,
    book: Path,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    texts: list[str] = []
    reading = ql.Model.read
    monkeypatch.setattr(
        ql.Model, "read", lambda self, text, **k: (texts.append(text), reading(self, text, **k))[1]
    )
    monkeypatch.setattr(sys, "stdin", io.StringIO("Wer?\n"))
    more = {"ask": ["Wer?", "--max-new-tokens", "2"], "read": ["--save", str(book)]}
    more["chat"] = more["ask"][1:]
    assert main([command, pipe, "--model", str(folder), "--quiet", *WINDOW, *more[command]]) == 0
    assert texts == [PIPED]


def test_what_is_no_file_is_not_looked_into(pipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert not is_document(pipe)
    assert main(["info", pipe]) == 1
    assert "not a regular file" in capsys.readouterr().err
    assert Path(pipe).read_text("utf-8") == PIPED


def test_chat_with_a_document(
    text: Path,
    book: Path,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert read(text, book, folder, "--title", "Sylt", "--quiet") == 0
    monkeypatch.setattr(sys, "stdin", io.StringIO("Wer?\n\n"))
    assert main(["chat", str(book), "--model", str(folder), "--max-new-tokens", "4"]) == 0
    out, err = capsys.readouterr()
    assert "Evidence:" in out and "'Sylt'" in err


def test_a_file_whose_name_is_not_utf_8(
    text: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = os.fsdecode(b"caf\xe9.txt")
    latin = text.rename(text.with_name(name))
    book = latin.with_suffix(".qlm")
    assert read(latin, book, folder, "--quiet") == 0
    assert main(["info", str(book), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["title"] == name and facts["path"] == str(book)
    assert ask(book, folder, "--json") == 0
    assert json.loads(capsys.readouterr().out)["file"] == str(book)


def test_info_of_a_document(
    text: Path, book: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert read(text, book, folder, "--quiet") == 0
    assert main(["info", str(book)]) == 0
    shown = capsys.readouterr().out
    assert "text.txt" in shown and "complete" in shown and "n local" in shown
    assert main(["info", str(book), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["characters"] == len(TEXT) and facts["complete"] and facts["n_local"] == 64
    assert facts["file_bytes"] == book.stat().st_size and not facts["skimmed"]
    assert facts["dtype"] in ("float32", "bfloat16") and "llama" in facts["model"]


def test_the_dtype_of_a_document_is_taken(
    text: Path, book: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for dtype in ("int8", "float32", "stored"):
        assert read(text, book, folder, "--quiet", "--dtype", dtype) == 0
        assert ask(book, folder) == 0
        assert capsys.readouterr().out
        book.unlink()
    assert read(text, book, folder, "--quiet", "--dtype", "int8") == 0
    assert ask(book, folder, "--dtype", "float32") == 1
    assert "held as int8" in capsys.readouterr().err


def test_wrong_usage(
    text: Path, book: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert read(text, book, folder, "--quiet") == 0
    for more, code, expected in (
        (["--window", "1k"], 2, "leave --window out"),
        (["--skim"], 2, "leave --skim out"),
        (["--reread-all"], 2, "--reread-all"),
        (["--topk", "3"], 2, "--topk"),
    ):
        assert ask(book, folder, *more) == code
        assert expected in capsys.readouterr().err
    assert ask(text, folder, "--ram-limit", "1GB") == 1
    assert "quickllama read" in capsys.readouterr().err
    assert read(text, text, folder) == 1
    assert "no document" in capsys.readouterr().err
    for use in (partial(read, text), ask):
        with pytest.raises(SystemExit) as caught:
            use(book, folder, "--ram-limit", "lots")
        assert caught.value.code == 2
        assert "--ram-limit: it must be a number of bytes" in capsys.readouterr().err
    assert read(text, book, folder, "--n-local", "32") == 1
    assert "was read with memory" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["read", str(text)])
    book.write_bytes(book.read_bytes()[:5000])
    for command in (["info", str(book)], ["ask", str(book), "Wer?", "--model", str(folder)]):
        assert main(command) == 1
        assert "shortened" in capsys.readouterr().err


def test_ctrl_c_and_again(tmp_path: Path, book: Path, folder: Path) -> None:
    text = tmp_path / "long.txt"
    text.write_text(TEXT * 100, "utf-8")
    command = [sys.executable, "-m", "quickllama", "read", str(text), "--save", str(book)]
    command += ["--model", str(folder), *WINDOW, "--exc-block-size", "16"]
    process = subprocess.Popen(
        command,
        cwd=Path(__file__).parent,  # not the source tree, whose package may not be built
        env={**os.environ, "COLUMNS": "80"},
        stderr=subprocess.PIPE,
        text=True,
    )
    while not book.exists() or book.stat().st_size < 200_000:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted" in err, err
    assert main(["info", str(book), "--json"]) == 0
    assert main(["ask", str(book), "Wer?", "--model", str(folder)]) == 1
    text.write_text(TEXT * 100, "utf-8")
    done = subprocess.run(
        [*command, "--quiet"], cwd=Path(__file__).parent, stderr=subprocess.PIPE, text=True
    )
    assert done.returncode == 0 and not done.stderr
    model = ql.Model.from_pretrained(folder)
    assert model.load_document(book).text == TEXT * 100
