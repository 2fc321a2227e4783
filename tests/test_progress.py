"""Bars: what they tell in logs, terminals and notebooks."""

from __future__ import annotations

import io
import sys
from typing import Any

import pytest
import tqdm.notebook
import tqdm.std

from quickllama.errors import InvalidType
from quickllama.progress import showing


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def run(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, **options: Any) -> str:
    """What a bar writes that begins at 40 of 100 tokens and ends at 150 of 150."""
    monkeypatch.setattr(sys, "stderr", stream)
    with showing(True, "reading", **options) as show:
        assert show is not None
        for done, total in ((40, 100), (60, 100), (100, 150), (150, 150)):
            show(done, total)
    return stream.getvalue()


def test_it_tells_rate_time_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    held = iter([1 << 20, 2 << 20, 3 << 20, 4321 << 20])
    written = run(monkeypatch, io.StringIO(), held=lambda: next(held))
    first, last = written.strip().split("\r")[0], written.strip().split("\r")[-1]
    assert first.startswith("reading:  40%") and "40.0/100" in first
    assert last.startswith("reading: 100%") and "150/150" in last
    assert "tok/s" in last and "4,321 MiB" in last and "<00:00" in last
    assert written.count("\r") <= 4  # a log is not flooded


def test_without_memory_and_in_other_units(monkeypatch: pytest.MonkeyPatch) -> None:
    written = run(monkeypatch, Terminal(), unit="text")
    assert "text/s" in written and "MiB" not in written


def test_the_rate_counts_only_what_was_done_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    original = tqdm.std.tqdm.__init__

    def remember(bar: Any, *args: Any, **options: Any) -> None:
        made.append(bar)
        original(bar, *args, **options)

    monkeypatch.setattr(tqdm.std.tqdm, "__init__", remember)
    run(monkeypatch, io.StringIO())
    (bar,) = made
    assert bar.initial == 40 and bar.n == 150


def test_a_notebooks_bar_grows_with_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ipywidgets")
    shown: list[Any] = []
    monkeypatch.setattr(tqdm.notebook, "display", shown.append, raising=False)
    monkeypatch.setattr("tqdm.auto.tqdm", tqdm.notebook.tqdm)
    with showing(True, "reading") as show:
        assert show is not None
        show(0, 100)
        _, widget, _ = shown[0].children
        assert (widget.value, widget.max) == (0, 100)
        show(100, 400)
        assert widget.max == 400
        show(400, 400)
    assert widget.value == 400 and widget.bar_style == "success"
    assert "tok/s" in shown[0].children[2].value


def test_callbacks_and_silence() -> None:
    seen: list[tuple[int, int]] = []
    with showing(lambda done, total: seen.append((done, total)), "reading") as show:
        assert show is not None
        show(1, 2)
    assert seen == [(1, 2)]
    for nothing in (None, False):
        with showing(nothing, "reading") as show:
            assert show is None
    with pytest.raises(InvalidType, match="progress"), showing("yes", "reading"):
        pass


def test_a_bar_is_closed_when_reading_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with pytest.raises(KeyboardInterrupt), showing(True, "reading") as show:
        assert show is not None
        show(30, 100)
        raise KeyboardInterrupt
    assert stream.getvalue().endswith("\n") and "30%" in stream.getvalue()
