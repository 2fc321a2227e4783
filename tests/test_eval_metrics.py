"""Scores against values worked out by hand."""

from __future__ import annotations

import pytest

from quickllama.errors import MissingPackage
from quickllama.eval import metrics


def test_exact_match_ignores_case_articles_and_signs() -> None:
    assert metrics.exact_match("The  Plum-dumpling!", ["plumdumpling", "x"]) == 1
    assert metrics.exact_match("plum dumplings", ["plum dumpling"]) == 0


def test_token_f1() -> None:
    # given: red red fox; wanted: quick red fox. Common 2 of 3 and 3: 2/3.
    assert metrics.token_f1("the red, red fox", ["A quick red fox"]) == pytest.approx(2 / 3)
    # given: fox (1), wanted: red fox (2): precision 1, recall 1/2, F1 2/3; the best one counts.
    assert metrics.token_f1("fox", ["dog", "red fox"]) == pytest.approx(2 / 3)
    assert metrics.token_f1("", ["fox"]) == metrics.token_f1("the", ["fox"]) == 0


def test_rouge() -> None:
    pytest.importorskip("rouge_score")
    # Longest common subsequence: "the cat the mat" (4); 6 and 4 words: P 2/3, R 1, F 0.8.
    assert metrics.rouge("the cat sat on the mat", ["the cat the mat"]) == pytest.approx(0.8)
    # By sentences the order of lines does not count.
    answer, wanted = "red fox\nblue hen", ["blue hen\nred fox"]
    assert metrics.rouge(answer, wanted, "rougeLsum") == 1
    assert metrics.rouge(answer, wanted) == pytest.approx(0.5)


def test_code_similarity() -> None:
    pytest.importorskip("rapidfuzz")
    # "a = b + 1" and "a = b": 5 signs shared of 9 and 5: 10/14 = 71 %.
    answer = "# a comment\n```python\na = b + 1\nreturn a"
    assert metrics.code_similarity(answer, ["a = b", "zzz"]) == pytest.approx(0.71)
    assert metrics.code_similarity("# nothing", ["a = b"]) == 0


def test_classification_counts_what_is_named() -> None:
    classes = ["City", "Capital City", "Person", "Date"]
    assert metrics.classification("It is a Date", ["Date"], classes) == 1
    assert metrics.classification("Date or Person", ["Date"], classes) == 0.5
    # "City" is a part of the right one's name.
    assert metrics.classification("Capital City", ["Capital City"], classes) == 1
    assert metrics.classification("Capital City", ["City"], classes) == 0.5
    assert metrics.classification("nothing", ["City"], classes) == 0


def test_numbers() -> None:
    assert metrics.number_share("Paragraph 7, not 9 or 17", "7") == pytest.approx(1 / 3)
    assert metrics.number_share("none", "7") == 0
    assert metrics.first_number("key 71432. Remember 1", ["71432"]) == 1
    assert metrics.first_number("key 71432", ["7143"]) == 0
    assert metrics.first_number("", ["1"]) == 0


def test_words_and_parts() -> None:
    assert metrics.in_words('The value is "ab-12".', ["ab-12"]) == 1
    assert metrics.in_words("xab-12", ["ab-12"]) == 0
    assert metrics.share_inside("Fig and PLUM", ["plum", "pear", "fig", "date"]) == 0.5


def test_only_one_label_of_the_first_sentence() -> None:
    labels = ["kitchen", "garden", "office"]
    question = "Where was Mary before the garden?"
    assert metrics.only_label("In the Kitchen. Office.", "kitchen", labels, question) == 1
    assert metrics.only_label("Kitchen or office", "kitchen", labels, question) == 0
    assert metrics.only_label("Before the garden: kitchen", "kitchen", labels, question) == 1
    assert metrics.only_label("office", "kitchen", labels, question) == 0


def test_libraries_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "rouge_score", None)
    monkeypatch.setitem(__import__("sys").modules, "rapidfuzz", None)
    with pytest.raises(MissingPackage, match="rouge-score"):
        metrics.rouge("a", ["a"])
    with pytest.raises(MissingPackage, match="rapidfuzz"):
        metrics.code_similarity("a", ["a"])
