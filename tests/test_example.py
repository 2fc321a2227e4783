"""The example of examples/README.md on the real model: right, and right because of the memory."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

import quickllama as ql
from quickllama.cli import main
from quickllama.config import GenerationConfig
from quickllama.documents.passages import Passage, retrieved_passages
from quickllama.generation import ReadingPlan, iter_tokens, read
from quickllama.prompt import question_prompt, text_tokens

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
TEXT = (EXAMPLES / "lighthouse.txt").read_text("utf-8")
QUESTION = "What is the number that opens the strong-box?"
OPTIONS = ["--window", "2k", "--question-weight", "4", "--reread-all"]
MEMORY = ql.MemoryConfig.window("2k", question_weight=4)
FACT = "The number that opens the strong-box is 48213."
ANSWER = "48213"


def ask(path: Path, memory: ql.MemoryConfig) -> tuple[str, list[Passage], int]:
    """(answer, passages, prompt tokens) as ``quickllama ask`` finds them, with five passages."""
    model = ql.Model.from_pretrained(path)
    prompt = question_prompt(model.tokenizer, QUESTION, *text_tokens(model.tokenizer, TEXT))
    plan = ReadingPlan.of(len(prompt.ids), memory, prompt.query_span)
    session = model.session(memory, query_span=plan.opening_span, trace=True)
    logits = read(session, prompt.ids, plan)
    options = GenerationConfig(max_new_tokens=24)
    eos = model.eos_token_ids
    new = list(iter_tokens(session, logits, options, prompt=prompt.ids, eos_token_ids=eos))
    passages = retrieved_passages(session.trace, prompt, TEXT, memory, most=5)
    return model.tokenizer.decode(new), passages, len(prompt.ids)


def test_it_is_answered_from_the_right_passage(smollm2_path: Path) -> None:
    answer, passages, n_tokens = ask(smollm2_path, MEMORY)
    assert ANSWER in answer
    start = TEXT.index(FACT)
    assert start < len(TEXT) // 2
    end = start + len(FACT)
    (holding,) = [passage for passage in passages if passage.start <= start and end <= passage.end]
    assert len(holding.layers) >= 10
    # The text is several times longer than what a token sees of it.
    seen = MEMORY.n_init + MEMORY.n_local + MEMORY.topk * MEMORY.block_size
    assert n_tokens > 3 * (seen + MEMORY.exc_block_size // 2)


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
