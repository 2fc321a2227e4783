"""Answers and documents as HTML: what they hold is there, and no text breaks out of the markup."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import quickllama as ql
from quickllama.documents.answer import sentences

MEMORY = ql.MemoryConfig(
    mode="infllm", n_init=8, n_local=48, block_size=16, topk=0, exc_block_size=32
)
TAGS = {"div", "b", "i", "ol", "li", "span", "blockquote", "mark"}
NASTY_PARTS = (
    *("<script>x</script>", "</div>", "&lt;", "&", '"', "'", "-->", "<!--", "]]>", "{{ 1 }}"),
    *("{% raw %}", "<img src=x onerror=y>", "</mark>", "</style", "\ud800", "\x00", "`"),
)
NASTY = st.lists(st.one_of(st.sampled_from(NASTY_PARTS), st.text(max_size=20)), max_size=6).map(
    "".join
)


class Reader(HTMLParser):
    """Tags, their attributes, and texts; whether every tag is closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.open: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self.other: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open and not self.other

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(name for name, _ in attrs)))
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))

    def handle_comment(self, data: str) -> None:
        self.other.append(data)

    handle_decl = handle_pi = unknown_decl = handle_comment

    def text_in(self, tag: str) -> str:
        """All text directly in elements of this kind."""
        return "".join(data for inside, data in self.texts if inside == tag)


def sent(text: str) -> str:
    """As UTF-8 can hold it."""
    return text.encode("utf-8", "replace").decode("utf-8")


@given(NASTY, NASTY, NASTY, NASTY, NASTY, NASTY, st.sampled_from(["heads", "paper"]))
def test_no_text_breaks_out(
    question: str, text: str, note: str, before: str, sentence: str, after: str, retrieval: str
) -> None:
    passage = before + sentence + after
    span = (100 + len(before), 100 + len(before) + len(sentence))
    evidence = [
        ql.Passage(100, 100 + len(passage), passage, 1.5, (1, 2), span),
        ql.Passage(0, len(before), before, 1.25, (3,)),
    ]
    answer = ql.Answer(question, text, [], 1.0, 0.5, (note,), 0.25, evidence, retrieval)
    read = Reader(answer._repr_html_())
    assert {tag for tag, _ in read.tags} <= TAGS
    assert {name for _, names in read.tags for name in names} <= {"class", "style"}
    assert [tag for tag, _ in read.tags].count("li") == 2
    assert read.text_in("mark") == sent(sentence)
    assert read.text_in("b") == sent(text)
    assert read.text_in("i") == sent(f"Note: {note}")
    quoted = sent(before).strip() + sent(after).strip() + sent(before).strip()
    assert re.sub(r"\s", "", read.text_in("blockquote")) == re.sub(r"\s", "", quoted)
    assert sent(question) in read.text_in("div")


def test_what_an_answer_shows() -> None:
    passage = ql.Passage(2500, 2530, "One is. Two counts. Three is.", 3.64, (9,), (2508, 2519))
    answer = ql.Answer("How many?", "Two", [5], 1.26, 0.5, ("a note",), 0.93, [passage])
    html = answer._repr_html_()
    assert "characters 2,500–2,530 · score 3.64 · 1 layer<" in html
    assert "confidence 0.93 · 1.3 s" in html
    assert Reader(html).text_in("mark") == "Two counts."
    assert "<script" not in html and "http" not in html and "url(" not in html
    paper = ql.Answer("Q?", "A", [], 1.0, 0.5, (), None, [passage], "paper")
    assert "in 364 % of the look-ups" in paper._repr_html_()
    assert "confidence" not in paper._repr_html_()
    assert "<ol" not in ql.Answer("Q?", "A", [], 1.0, 0.5, (), None, [])._repr_html_()


# The sentence that matters ------------------------------------------------------------------------


def test_sentences() -> None:
    text = 'See Mr. Crane. He said "so."  I. K. Brun is late!\n\nA title\n\nNo. 4 it is'
    found = [text[a:b] for a, b in sentences(text, 0, len(text))]
    whole = ["See Mr. Crane.", 'He said "so."', "I. K. Brun is late!", "A title", "No. 4 it is"]
    assert found == whole
    assert sentences(text, 4, 9) == [(4, 9)]
    assert sentences("  \n\n ", 0, 5) == [] and sentences("", 0, 0) == []
    chinese = "第一句。第二句。"
    assert sentences(chinese, 0, 8) == [(0, 4), (4, 8)]


@given(st.text(st.sampled_from("aB. \n!?”。é")), st.data())
def test_sentences_leave_only_white_space_out(text: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    found = sentences(text, start, end)
    edges = [start, *(edge for span in found for edge in span), end]
    assert edges == sorted(edges)
    between = zip(edges[::2], edges[1::2], strict=True)
    assert not any(text[a:b].strip() for a, b in between)
    assert all(text[a:b] and text[a:b] == text[a:b].strip() for a, b in found)


@pytest.fixture(scope="module")
def model(folder: Path) -> ql.Model:
    return ql.Model.from_pretrained(folder, dtype="float32", n_threads=1)


def test_the_marked_sentence_is_one_of_the_passage(model: ql.Model) -> None:
    text = "All work. No play makes Jack dull. Why? Nobody knows that. " * 20
    document = model.read(text, memory=MEMORY)
    answer = document.ask("Who is dull?", max_new_tokens=2, passages=3, neighbours=1)
    assert answer.evidence
    for passage in answer.evidence:
        assert passage.sentence in sentences(text, passage.start, passage.end)
    plain = answer.to_dict()["evidence"][0]
    assert plain["sentence"] == list(answer.evidence[0].sentence or ())


def test_the_marked_sentence_holds_the_answer(smollm2_path: Path) -> None:
    text = (Path(__file__).parents[1] / "examples" / "lighthouse.txt").read_text("utf-8")
    document = ql.Model.from_pretrained(smollm2_path).skim(text)
    for question, fact in (
        ("What is the number that opens the strong-box?", "48213"),
        ("What does Dr. Ines Valcourt study?", "lichens"),
        ("How did we name the goat?", "Persimmon"),
    ):
        best = document.ask(question, max_new_tokens=1).evidence[0]
        assert best.sentence is not None and fact in text[slice(*best.sentence)]
        assert best.sentence[1] - best.sentence[0] < 0.8 * len(best.text)


# Documents ----------------------------------------------------------------------------------------


@given(st.none() | NASTY)
def test_a_document_and_its_title(model: ql.Model, title: str | None) -> None:
    text = "<b>Bold</b> & 'quoted' words. " * 30
    document = model.read(text, memory=MEMORY, title=title)
    read = Reader(document._repr_html_())
    assert {tag for tag, _ in read.tags} <= TAGS
    assert read.text_in("b") == sent("Untitled document" if title is None else title)
    assert read.text_in("blockquote") == text[:280] + "…"
    facts = read.text_in("div")
    assert f"{len(document):,} tokens" in facts and "mode infllm" in facts and "MiB" in facts
