"""Questions of a conversation: passages are sought by all of them, the last one is answered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_document_file import TEXT, loaded_model
from test_skim import MEMORY as SKIM_MEMORY

import quickllama as ql
from quickllama.documents import asking


@pytest.fixture(scope="module")
def model(folder: Path) -> ql.Model:
    return loaded_model(folder)


@pytest.mark.parametrize(
    ("use", "skims"),
    [("reread", True), ("reread", False), ("reposition", False), ("memory", False)],
)
def test_passages_by_all_and_an_answer_to_the_last(
    model: ql.Model, use: str, skims: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = model.skim(TEXT, memory=SKIM_MEMORY) if skims else model.read(TEXT)
    options: dict[str, Any] = {"use": use, "passages": 2, "max_new_tokens": 2}
    options["always_answer"] = True
    first, second = "Wer jagt Viktor?", "Und wo?"
    joined = document.ask(f"{first}\n{second}", **options)
    alone = document.ask(second, **options)
    prompts: list[str] = []
    reply = asking.replying

    def replying(*given: Any) -> Any:
        prompts.append(model.tokenizer.decode(given[3]))
        return reply(*given)

    monkeypatch.setattr(asking, "replying", replying)
    answer = document.ask(second, history=[f" {first} "], **options)
    assert answer.question == second
    assert second in prompts[0] and first not in prompts[0]
    assert answer.ranking is not None and joined.ranking is not None and alone.ranking is not None
    np.testing.assert_array_equal(answer.ranking.scores, joined.ranking.scores)
    assert not np.array_equal(answer.ranking.scores, alone.ranking.scores)
    assert answer.evidence == joined.evidence


def test_what_is_no_history(model: ql.Model) -> None:
    document = model.read(TEXT, question="Wer?", memory=ql.MemoryConfig())
    with pytest.raises(ql.InvalidValue, match="history belongs to retrieval 'heads'"):
        document.ask("Wo?", history=["Wer?"])
    for history, error, match in (
        ("Wer?", ql.InvalidType, "a list of questions"),
        ([" "], ql.InvalidValue, "empty"),
        ([3], ql.InvalidType, "a string"),
    ):
        with pytest.raises(error, match=match):
            document.ask("Wo?", retrieval="heads", history=history)
