"""Answers and passages: whole sentences, merged neighbours, JSON."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_folder import write_folder

import quickllama as ql
from quickllama.documents.answer import NOT_FOUND, merge, widen
from quickllama.documents.passages import MOST_PASSAGES, Passage, retrieved_passages
from quickllama.documents.retrieval import Grid, Ranking

TEXT = 'One is here. Two, "said so." Three ends\nlate! Four is last'


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ("wo, ", 'Two, "said so."'),
        ("is here. T", 'One is here. Two, "said so."'),
        ("is here. ", "One is here."),
        (" Three e", "Three ends\nlate!"),
        ("is last", "Four is last"),
        (TEXT, TEXT),
    ],
)
def test_passages_grow_to_whole_sentences(part: str, expected: str) -> None:
    start = TEXT.index(part)
    first, last = widen(TEXT, start, start + len(part))
    assert TEXT[first:last] == expected


def test_paragraphs_and_other_scripts_end_sentences_too() -> None:
    assert "title\n\nbody here\n\nnext"[slice(*widen("title\n\nbody here\n\nnext", 9, 11))] == (
        "body here"
    )
    chinese = "第一句。第二句在这里。第三句。"
    assert chinese[slice(*widen(chinese, 6, 8))] == "第二句在这里。"


@given(
    st.text(st.sampled_from("ab. \n!?”。é😀"), min_size=1, max_size=900),
    st.integers(0, 900),
    st.integers(1, 300),
)
def test_passages_hold_the_block_and_no_half_words(text: str, start: int, length: int) -> None:
    start = min(start, len(text) - 1)
    end = min(start + length, len(text))
    first, last = widen(text, start, end)
    assert 0 <= first <= last <= len(text)
    part = text[start:end].strip()
    if part:
        assert first <= text.index(part, start) and last >= start + len(text[start:end].rstrip())
    stops = ".!?”。"
    if part and first > 0:
        cut = text.index(part, start) - first == 600
        assert cut or text[first - 1].isspace() or text[first - 1] in stops
    if part and last < len(text):
        cut = last - start - len(text[start:end].rstrip()) == 600
        assert cut or text[last].isspace() or text[last - 1] in stops


def test_a_text_without_sentences_is_cut_between_words() -> None:
    text = "word " * 400
    first, last = widen(text, 1001, 1003)
    assert text[first - 1] == " " and text[last] == " "
    assert 300 <= last - first <= 612


def test_a_text_without_white_space_is_cut_anywhere() -> None:
    assert widen("x" * 10**6, 500_000, 500_100) == (499_400, 500_700)
    assert widen("x" * 2000, 500, 1500) == (0, 2000)
    assert widen("x" * 2000, 700, 1300) == (100, 1900)
    minified = '{"key":[1,2.5,"value"]},' * 1000
    assert widen(minified, 12_000, 12_100) == (11_400, 12_700)
    words = f"{'x' * 5} {'y' * 1200} {'z' * 5}"  # white space is looked for as far as that
    assert widen(words, 6 + 600, 6 + 601) == (6, 6 + 1200)


def test_neighbours_are_merged() -> None:
    assert merge([(5, 9), (0, 3), (4, 5), (20, 22)]) == [(0, 9), (20, 22)]
    assert merge([(0, 3), (4, 5)], gap=0) == [(0, 3), (4, 5)]
    assert merge([(0, 9), (2, 3)]) == [(0, 9)]
    assert merge([]) == []


def test_an_answer_is_plain_json() -> None:
    passage = ql.Passage(3, 7, "text", 1.5, (2, 4))
    answer = ql.Answer("q", "a", [1, 2], 0.5, 0.25, ("note",), 0.75, [passage])
    assert json.loads(json.dumps(answer.to_dict())) == answer.to_dict()
    assert answer.to_dict()["evidence"][0]["layers"] == [2, 4]
    ranked = dataclasses.replace(
        answer, ranking=Ranking(Grid(0, 9, 0, 3), np.ones((1, 3), np.float32), ())
    )
    assert ranked.to_dict() == answer.to_dict() and "ranking" not in answer.to_dict()
    assert ranked == answer and repr(ranked) == repr(answer)
    assert str(answer) == "a" and answer.found
    assert not ql.Answer("q", NOT_FOUND, [], 0.5, 0.5, (), 0.1, []).found


class Record:
    """A record of a trace."""

    def __init__(self, layer: int, blocks: list[int]) -> None:
        self.layer = layer
        self.block_ids = np.array(blocks, dtype=np.int32)


def test_passages_are_the_blocks_chosen_most_often() -> None:
    # 3 first tokens, blocks of 4; the text of 10 tokens (2 characters each) begins at token 5.
    memory = ql.MemoryConfig(n_init=3, n_local=8, exc_block_size=8, block_size=4)
    offsets = np.stack([np.arange(0, 20, 2), np.arange(2, 22, 2)], axis=1)
    text = "abcdefghijklmnopqrst"
    trace = [
        Record(0, [0, 2]),
        Record(1, [2, 3]),
        Record(0, [0, 1]),
        Record(1, [2, 3]),
    ]
    found = retrieved_passages(trace, text, offsets, 5, memory)
    assert found == [
        Passage(12, 20, "mnopqrst", 0.75, (0, 1)),  # block 2: tokens 11 to 14
        Passage(0, 4, "abcd", 0.5, (0,)),  # block 0: tokens 3 to 6, of which 5 and 6 are text
        Passage(4, 12, "efghijkl", 0.25, (0,)),  # block 3 is not text
    ]
    assert retrieved_passages([], text, offsets, 5, memory) == []
    many = [Record(0, list(range(100)))]
    offsets = np.stack([np.arange(500), np.arange(1, 501)], axis=1)
    assert len(retrieved_passages(many, "x" * 500, offsets, 5, memory)) == MOST_PASSAGES


def test_nothing_before_a_text(tmp_path: Path) -> None:
    write_folder(tmp_path, template=None)
    model = ql.Model.from_pretrained(tmp_path, dtype="float32", n_threads=1)
    memory = ql.MemoryConfig(
        mode="infllm", n_init=0, n_local=48, block_size=16, topk=0, exc_block_size=32
    )
    document = model.read(TEXT * 9, memory=memory, prompt="{text} {question}")
    for passages in (0, 1):
        answer = document.ask("Who is last?", use="reposition", passages=passages, max_new_tokens=2)
        assert len(answer.evidence) == passages and answer.tokens
