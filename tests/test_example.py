"""The example of examples/README.md on the real model: right, and right because of the memory."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

import quickllama as ql
from quickllama.cli import main

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
TEXT = (EXAMPLES / "lighthouse.txt").read_text("utf-8")
QUESTION = "What is the number that opens the strong-box?"
OPTIONS = ["--window", "2k", "--question-weight", "4", "--reread-all"]
MEMORY = ql.MemoryConfig.window("2k", question_weight=4)
FACT = "The number that opens the strong-box is 48213."
ANSWER = "48213"


def test_it_is_answered_from_the_right_passage(smollm2_path: Path) -> None:
    document = ql.Model.from_pretrained(smollm2_path).read(TEXT, question=QUESTION, memory=MEMORY)
    answer = document.ask(max_new_tokens=24)
    assert ANSWER in answer.text
    start = TEXT.index(FACT)
    assert start < len(TEXT) // 2
    end = start + len(FACT)
    (holding,) = [p for p in answer.evidence[:5] if p.start <= start and end <= p.end]
    assert len(holding.layers) >= 10
    # The text is several times longer than what a token sees of it.
    seen = MEMORY.n_init + MEMORY.n_local + MEMORY.topk * MEMORY.block_size
    assert len(document) > 3 * (seen + MEMORY.exc_block_size // 2)


@pytest.mark.usefixtures("smollm2_path")
def test_without_retrieved_blocks_it_is_not_answered(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(EXAMPLES.parent)
    asked = ["ask", "examples/lighthouse.txt", QUESTION, *OPTIONS, "--topk", "0", "--quiet"]
    assert main([*asked, "--max-new-tokens", "24"]) == 0
    printed = capsys.readouterr().out
    assert printed.strip() and ANSWER not in printed


def test_examples_readme_shows_this_question_and_these_settings() -> None:
    readme = (EXAMPLES / "README.md").read_text("utf-8")
    command = f'quickllama ask examples/lighthouse.txt "{QUESTION}" {" ".join(OPTIONS)}'
    assert f"`{command}`" in readme
    assert dataclasses.replace(MEMORY, question_weight=None) == ql.MemoryConfig.window("2k")


def test_the_fact_stands_in_one_place() -> None:
    assert TEXT.count(FACT) == 1
    assert TEXT.count(ANSWER) == 2
    assert TEXT.rindex(ANSWER) - TEXT.index(ANSWER) < 100
