"""What of a model's words is the answer, and how it ended."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_document_file import TEXT, loaded_model

import quickllama as ql
from quickllama.documents import reply
from quickllama.documents.reply import Words, goes_round
from quickllama.prompt import POINTED_OUT

LABEL = "The sentence that answers the question:"


def heard(pieces: Iterable[str]) -> tuple[str, bool]:
    words = Words()
    shown = ""
    for piece in pieces:
        shown += words.push(piece)
        if words.over:
            return shown, True
    return shown + words.finish(), False


def test_the_label_is_the_prompts() -> None:
    assert POINTED_OUT == "{passages}\n\n" + LABEL + " {sentence}"


@pytest.mark.parametrize(
    ("written", "expected", "over"),
    [
        ("It is 42.", "It is 42.", False),
        (f"{LABEL} It is 42.", " It is 42.", False),
        (f"It is 42.\n\n{LABEL} It is 42.", "It is 42.\n\n It is 42.", False),
        ("It is 42.\n\nQuestion: What is it?\nAnswer: 42", "It is 42.", True),
        ("The sentence that answers", "The sentence that answers", False),
        ("A question\n\nQuestio", "A question\n\nQuestio", False),
        ("", "", False),
    ],
)
def test_labels_are_no_answer(written: str, expected: str, over: bool) -> None:
    for size in (1, 2, 7, 1000):
        assert heard(written[i : i + size] for i in range(0, len(written), size)) == (
            expected,
            over,
        )


@given(st.lists(st.text("aThe \n", max_size=5)))
def test_nothing_else_is_lost(pieces: list[str]) -> None:
    assert heard(pieces) == ("".join(pieces), False)


@pytest.mark.parametrize(
    ("tokens", "round_and_round"),
    [
        ([7] * 24, True),
        ([7] * 23, False),
        ([1, *[2, 3] * 12], True),
        ([1, *[2, 3] * 11], False),
        ([*range(10)] * 3, True),
        ([5, *[*range(10)] * 2], False),
        ([*range(48)] * 3, True),
        ([*range(49)] * 3, False),
        ([*range(200)], False),
        ([], False),
    ],
)
def test_circles_are_noticed(tokens: list[int], round_and_round: bool) -> None:
    assert goes_round(tokens) is round_and_round
    assert not goes_round([*tokens, 999])


@pytest.mark.parametrize("use", ["reread", "memory"])
def test_how_an_answer_ended(
    folder: Path, monkeypatch: pytest.MonkeyPatch, use: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = loaded_model(folder)
    document = model.read(TEXT)
    encode = model.tokenizer.encode

    def says(ids: list[int]) -> ql.Answer:
        monkeypatch.setattr(reply, "iter_tokens", lambda *_, **__: iter(ids))
        return document.ask(
            "Wer?", use=use, passages=1, always_answer=True, max_new_tokens=40, stream=True
        )

    (eos, *_) = model.eos_token_ids
    answer = says([*encode(f"{LABEL} Sylt."), eos])
    assert (answer.text, answer.finish_reason) == ("Sylt.", "stop")
    assert answer.tokens == encode(f"{LABEL} Sylt.")
    assert LABEL not in capsys.readouterr().out
    answer = says((encode("Ende ") * 40)[:40])
    assert answer.finish_reason == "repetition" and len(answer.tokens) < 40
    assert any("repeat itself" in note for note in answer.notes)
    answer = says(encode(TEXT)[:40])
    assert answer.finish_reason == "length" and len(answer.tokens) == 40
    assert any("cut off after max_new_tokens = 40" in note for note in answer.notes)
    assert answer.to_dict()["finish_reason"] == "length"
