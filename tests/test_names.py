"""Names of a question in a text: which words are names, and what they add to which pieces."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from test_document_file import loaded_model

from quickllama.documents.names import MENTIONED, USED, named

FILLER = "It is what one does with the words of the text, and which of them matter. "


def scores(question: str, *pieces: str) -> NDArray[np.float64]:
    """What a text adds whose first pieces are these, and 13 of ordinary words behind them."""
    parts = [*(f"{piece} {FILLER}" for piece in pieces), *[FILLER] * 13]
    starts = np.cumsum([0, *map(len, parts[:-1])])
    return named(question, "".join(parts), starts)


@pytest.mark.parametrize(
    ("question", "held", "worth"),
    [
        ("What does testzip do?", "testzip(self) Read all files", MENTIONED + USED),
        ("What does make_archive do?", "make_archive is older", MENTIONED),
        ("What is ZipFile.extractall for?", "see ZipFile.extractall", MENTIONED),
        ("What is zip::extract_all for?", "zip::extract_all", MENTIONED),
        ("Does getData2 raise?", "and getData2 too", MENTIONED),
        ("what is --kv-dtype", "give --kv-dtype int8", MENTIONED),
        ("What is Session?", "class Session: a timeline", MENTIONED + USED),
        ("What is 'quiet'?", "set 'quiet' to 1", MENTIONED + USED),
        ("What does TESTZIP do?", "testzip(self)", MENTIONED + USED),
        ("What does shutil.which do?", "which(cmd) Return a path", MENTIONED + USED),
        ("What does which() do?", "which(cmd) Return a path", MENTIONED + USED),
        ("What does which do?", "which(cmd) Return a path", 0),
        ("Who wrote the words?", "somebody", 0),
        ("What does testzip do?", "testzips and atestzip and test-zip", 0),
        ("Who is the harbour master?", "the harbour master is Ida", 0),
        ("Où est la clé?", "la clé est là", 0),
        ("Who came at eight p.m. to the lamp?", "at 7 p.m. the lamp", 0),
        ("What is a struggle?", "the class struggle goes on", 0),
        ("What is a Passage?", "\n  export default class Passage {", MENTIONED + USED),
        ("Who are the passengers?", "first class passengers", 0),
    ],
)
def test_names_count_and_words_do_not(question: str, held: str, worth: float) -> None:
    found = scores(question, held)
    assert found[0] == pytest.approx(worth)
    assert not found[1:].any()


def test_rare_names_count_most() -> None:
    once = scores("What is a_b and c_d?", "a_b", "c_d", "c_d", "c_d")
    assert once[0] == pytest.approx(MENTIONED)
    assert 0 < once[1] == once[2] == once[3] < 0.6 * once[0]
    assert not named("What is a_b?", "a_b", np.array([0])).any()  # one piece only
    assert named("What is a_b?", "", np.zeros(0, np.int64)).shape == (0,)


def test_places_of_names_in_other_capitals() -> None:
    """A letter that becomes two small ones moves nothing."""
    found = scores("What does TESTZIP do?", "İ" * 400, "testzip(self)")
    assert found[1] == pytest.approx(MENTIONED + USED) and not found[0] and not found[2:].any()


def test_a_mention_counts_less_than_the_definition() -> None:
    found = scores(
        "What does copystat do?", "copystat(src, dst)", "as copystat does", "of copystat"
    )
    assert found[0] > found[1] == found[2] > 0


def test_an_asked_name_is_found(folder: Path) -> None:
    """A model that knows nothing finds the piece all the same, and what it adds is in the score."""
    model = loaded_model(folder)
    text = FILLER * 30 + "frob_nicate(x) Return the square of x. " + FILLER * 30
    document = model.read(text)
    answer = document.ask("What does frob_nicate do?", max_new_tokens=1, passages=1)
    assert "frob_nicate(x)" in answer.evidence[0].text
    ranking = answer.ranking
    assert ranking is not None and ranking.named is not None and ranking.added is not None
    np.testing.assert_allclose(
        ranking.scores, ranking.by_head.mean(axis=0) + ranking.named + ranking.added
    )
