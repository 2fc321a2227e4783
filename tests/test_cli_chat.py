"""``quickllama chat``: questions from standard input, one a line."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest
from test_cli import TEXT, WINDOW, one_sentence, start

import quickllama as ql
from quickllama.cli import main


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, "utf-8")
    return path


def test_chat_answers_line_by_line(
    text: Path, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    told: list[tuple[str, ...]] = []
    ask_one = ql.Document.ask

    def asking(self: ql.Document, question: str, **options: Any) -> ql.Answer:
        asked.append(question)
        told.append(tuple(options["history"]))
        return ask_one(self, question, **options)

    monkeypatch.setattr(ql.Document, "ask", asking)
    start = ["chat", str(text), "--model", str(folder), *WINDOW, "--max-new-tokens", "4"]
    for history in ([], ["--history"]):
        monkeypatch.setattr(sys, "stdin", io.StringIO("Wer?\nx \udcff\n\nWo?\n"))
        assert main([*start, *history, "--quiet"]) == 0
        out, err = capsys.readouterr()
        assert "UTF-8" in err and out.count("\n") >= 2
    assert asked[:3] == ["Wer?", "x \udcff", "Wo?"]
    assert asked[3:] == asked[:3]
    terminal = io.StringIO("\nnever\n")
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", terminal)
    assert main([*start, "--quiet"]) == 0 and len(asked) == 6
    assert told == [(), (), (), (), ("Wer?",), ("Wer?",)]  # what is no text was not answered
    strict = io.TextIOWrapper(io.BytesIO(b"x \xff\nWo?\n"), encoding="utf-8", errors="strict")
    monkeypatch.setattr(sys, "stdin", strict)
    assert main([*start, "--quiet"]) == 0
    assert "UTF-8" in capsys.readouterr().err and asked[-2:] == ["x \udcff", "Wo?"]


def test_questions_of_a_chat_have_to_come(
    text: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is read."""
    for file in ("-", "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"):
        monkeypatch.setattr(sys, "stdin", io.StringIO(TEXT))
        assert main(["chat", file]) == 2
        assert "brings the questions" in one_sentence(capsys)
    monkeypatch.setattr(sys, "stdin", None)
    assert main(["chat", str(text)]) == 2
    assert "is closed" in one_sentence(capsys)
    with text.open("rb") as file:
        _, err = start("chat", str(text), stdin=file).communicate(timeout=20)
    assert b"brings the questions" in err
