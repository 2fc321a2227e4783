"""Pictures: their numbers are those of rankings and lookups, their marks stand where passages are.

Needs matplotlib (the extra ``plot``), but for what is said without it.
"""

from __future__ import annotations

import dataclasses
import io
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import quickllama as ql
from quickllama.documents.asking import hear_question
from quickllama.documents.head_store import FoundRule, RetrievalHeads, SkimHeads
from quickllama.documents.relevance import Relevance
from quickllama.documents.retrieval import Ranking, rank_pieces

BLOCKS = ql.MemoryConfig(
    mode="infllm", n_init=8, n_local=48, block_size=16, topk=0, exc_block_size=32
)
PAPER = dataclasses.replace(BLOCKS, mode="qllm", topk=2)
SKIM = dataclasses.replace(BLOCKS, mode="stream")
TEXT = "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. Ende <|end|> nie. " * 12
HEADS = ((1, 3), (0, 2))
SURE = FoundRule((0.0, 0.0, 0.0), 9.0, 0.5)


@pytest.fixture
def model(folder: Path) -> ql.Model:
    model = ql.Model.from_pretrained(folder, dtype="float32", n_threads=1)
    model.retrieval_heads = RetrievalHeads(
        model.fingerprint, HEADS, "made up", SURE, SkimHeads(HEADS, SURE)
    )
    return model


def drawn(figure: Any) -> list[tuple[Any, Any]]:
    """The heat map and the strip of each answer."""
    figure.canvas.draw()
    heats = [axes for axes in figure.axes if axes.collections and axes.get_ylabel() != ""]
    heats = [axes for axes in heats if axes.get_ylabel().startswith("layer")]
    strips = [axes for axes in figure.axes if axes.get_xlabel() == "tokens of the text"]
    return list(zip(heats, strips, strict=True))


def cells(axes: Any) -> Any:
    """The numbers of a heat map: [rows, columns]."""
    (mesh,) = axes.collections
    return np.asarray(mesh.get_array())


def marks(axes: Any) -> list[list[float]]:
    """From where to where the evidence is marked, best passage first."""
    return [line.get_xdata().tolist() for line in axes.lines]


def tokens_of(document: ql.Document, passage: ql.Passage) -> list[int]:
    """The tokens of the text that hold a passage."""
    offsets = document._snapshot().offsets
    inside = (offsets[:, 1] > passage.start) & (offsets[:, 0] < passage.end)
    found = np.flatnonzero(inside)
    return [int(found[0]), int(found[-1]) + 1]


def ranked(snapshot: Any, suffix: Any, span: tuple[int, int], heads: Any) -> Ranking:
    session = snapshot.fork_whole()
    queries = hear_question(session, suffix, span, heads)
    return rank_pieces(session, heads, queries, snapshot.grid)


def test_heat_maps_hold_the_ranking(model: ql.Model) -> None:
    pytest.importorskip("matplotlib")
    document = model.read(TEXT, memory=BLOCKS)
    answers = [document.ask(q, max_new_tokens=2) for q in ("Wer?", "Wo genau?")]
    figure = document.plot_retrieval(answers)
    assert len(drawn(figure)) == 2
    snapshot = document._snapshot()
    for (heat, strip), answer in zip(drawn(figure), answers, strict=True):
        suffix, span = snapshot.form.suffix(model.tokenizer, answer.question)
        ranking = ranked(snapshot, suffix, span, sorted(HEADS))
        np.testing.assert_allclose(cells(heat), ranking.by_head)
        assert [label.get_text() for label in heat.get_yticklabels()] == ["0.2", "1.3"]
        (stairs,) = strip.patches[:1]
        np.testing.assert_allclose(stairs.get_data().values, ranking.scores)
        np.testing.assert_array_equal(stairs.get_data().edges[[0, -1]], [0, len(document)])
        assert answer.evidence and marks(heat) == [tokens_of(document, p) for p in answer.evidence]
        begin, end = marks(heat)[0]
        best = ranking.grid.bounds[ranking.best(4)] - snapshot.text_start
        assert any(begin < last and first < end for first, last in best)
        assert answer.question in heat.get_title(loc="left")
    assert not np.array_equal(*(cells(heat) for heat, _ in drawn(figure)))


def test_all_layers_are_means_over_their_heads(model: ql.Model) -> None:
    pytest.importorskip("matplotlib")
    document = model.read(TEXT, memory=BLOCKS)
    answer = document.ask("Wer?", max_new_tokens=2)
    ((heat, strip),) = drawn(document.plot_retrieval(answer, all_layers=True))
    snapshot = document._snapshot()
    suffix, span = snapshot.form.suffix(model.tokenizer, answer.question)
    heads = [(layer, head) for layer in range(2) for head in range(4)]
    by_head = ranked(snapshot, suffix, span, heads).by_head
    np.testing.assert_allclose(cells(heat)[1], by_head[4:].mean(axis=0))
    chosen = by_head[[heads.index(head) for head in HEADS]].mean(axis=0)
    np.testing.assert_allclose(strip.patches[0].get_data().values, chosen)


def test_the_papers_heat_map_holds_the_lookups(model: ql.Model) -> None:
    pytest.importorskip("matplotlib")
    document = model.read(TEXT, question="Wer jagt wen?", memory=PAPER)
    answer = document.ask(max_new_tokens=1)
    assert answer.retrieval == "paper" and answer.evidence
    ((heat, strip),) = drawn(document.plot_retrieval(answer))
    # The same once more, by hand.
    snapshot = document._snapshot()
    session = snapshot.fork(scores=True)
    suffix, _ = snapshot.form.suffix(model.tokenizer, answer.question)
    ids = np.concatenate([snapshot.rest, suffix])
    session.feed(ids[:-1])
    session.feed(ids[-1:])
    records = session.trace[-2:]
    blocks = np.stack([record.scores for record in records]).astype(np.float64)
    expected = (blocks - blocks.mean(axis=1, keepdims=True)) / blocks.std(axis=1, keepdims=True)
    first = snapshot.text_start - PAPER.n_init  # blocks before it hold the question alone
    skipped = first // PAPER.block_size
    shown = cells(heat)
    np.testing.assert_allclose(shown, expected[:, skipped : skipped + shown.shape[1]])
    values = strip.patches[0].get_data().values
    for block, share in enumerate(values, skipped):
        assert share == pytest.approx(np.mean([block in record.block_ids for record in records]))
    assert values.sum() > 0
    # One token was asked for, so that the evidence is what this lookup chose.
    edges = strip.patches[0].get_data().edges
    chosen = {block for record in records for block in record.block_ids.tolist()}
    expected_marks = {
        (int(edges[b - skipped]), int(edges[b - skipped + 1])) for b in chosen if b >= skipped
    }
    assert {tuple(mark) for mark in marks(heat)} == expected_marks
    assert len(expected_marks) == len(answer.evidence)


def test_without_lookups_there_is_no_picture(model: ql.Model) -> None:
    pytest.importorskip("matplotlib")
    for memory in (
        dataclasses.replace(PAPER, topk=0),
        ql.MemoryConfig(mode="full"),
        dataclasses.replace(SKIM, mode="stream"),
    ):
        document = model.read(TEXT, question="Wer?", memory=memory)
        with pytest.raises(ql.InvalidValue, match="looks nothing up"):
            document.plot_retrieval(document.ask(max_new_tokens=1))
    wide = dataclasses.replace(PAPER, n_local=4096)
    document = model.read(TEXT, question="Wer?", memory=wide)
    with pytest.raises(ql.InvalidValue, match="fits into the window"):
        document.plot_retrieval(document.ask(max_new_tokens=1))


def test_skimmed_documents_show_the_heads_they_have(model: ql.Model) -> None:
    pytest.importorskip("matplotlib")
    document = model.skim(TEXT, memory=SKIM)
    answer = document.ask("Wer?", max_new_tokens=2)
    ((heat, _),) = drawn(document.plot_retrieval(answer))
    assert cells(heat).shape[0] == len(HEADS) and np.ptp(cells(heat)) > 0
    with pytest.raises(ql.InvalidValue, match="all_layers"):
        document.plot_retrieval(answer, all_layers=True)


def test_what_cannot_be_plotted(model: ql.Model) -> None:
    pytest.importorskip("matplotlib")
    document = model.read(TEXT, memory=BLOCKS)
    answer = document.ask("Wer?", max_new_tokens=1)
    for wrong in ("Wer?", 3, None, [answer, "Wer?"]):
        with pytest.raises(ql.InvalidType, match="Answer"):
            document.plot_retrieval(wrong)
    with pytest.raises(ql.InvalidValue, match="at least one"):
        document.plot_retrieval([])
    with pytest.raises(ql.InvalidType, match="all_layers"):
        document.plot_retrieval(answer, all_layers="yes")
    other = model.read("Something else. " * 60, memory=BLOCKS)
    with pytest.raises(ql.InvalidValue, match="does not have there"):
        other.plot_retrieval(answer)
    document.append(" More of it." * 20)  # what was there stays where it was
    assert marks(drawn(document.plot_retrieval(answer))[0][0])


def test_without_matplotlib_it_says_what_to_install(
    model: ql.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = model.read(TEXT, memory=BLOCKS)
    answer = document.ask("Wer?", max_new_tokens=1)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"quickllama\[plot\]") as caught:
        document.plot_retrieval(answer)
    assert isinstance(caught.value, ql.MissingPackage)


def made(rows: int, pieces: int, question: str = "How much?") -> Relevance:
    """Scores with one piece that stands out, two thirds into the text."""
    scores = np.random.default_rng(3).standard_normal((rows, pieces))
    best = 2 * pieces // 3
    scores[:, best] = 9
    edges = 64 * np.arange(pieces + 1)
    answer = ql.Answer(question, "It was $5, not $6_a.", [], 1.0, 0.5, (), 0.7, [])
    passages = edges[np.array([[best, best + 1]])]
    labels = tuple(str(row) for row in range(rows))
    return Relevance(answer, labels, scores, scores.mean(axis=0), edges, int(edges[-1]), passages)


@pytest.mark.parametrize(("rows", "pieces"), [(4, 10), (1, 1), (30, 2000)])
def test_no_peak_is_lost(rows: int, pieces: int) -> None:
    pytest.importorskip("matplotlib")
    from quickllama.documents.plot import COLUMNS, plot_relevance

    relevance = made(rows, pieces)
    ((heat, strip),) = drawn(plot_relevance([relevance]))
    shown = cells(heat)
    assert shown.shape[0] == rows and shown.shape[1] <= COLUMNS
    np.testing.assert_array_equal((shown == 9).sum(axis=1), 1)  # one column in each row
    edges = strip.patches[0].get_data().edges
    column = int(np.argmax(shown[0]))
    ((begin, end),) = marks(heat)
    assert edges[column] <= begin < end <= edges[column + 1]
    if pieces <= COLUMNS:
        np.testing.assert_array_equal(shown, relevance.scores)
    else:
        width = -(-pieces // COLUMNS)
        assert f"best of {width} blocks" in heat.get_xlabel()
        np.testing.assert_array_equal(shown[:, 0], relevance.scores[:, :width].max(axis=1))


def test_many_questions_and_odd_ones_are_drawn_without_global_state() -> None:
    pytest.importorskip("matplotlib")
    from quickllama.documents.plot import plot_relevance

    questions = ["$", "$\\frac{$", "a\nb", "half \ud800", "x" * 900]
    before = "matplotlib.pyplot" in sys.modules
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = plot_relevance([made(3, 40, question) for question in questions])
        assert len(drawn(figure)) == 5
        target = io.BytesIO()
        figure.savefig(target, format="svg")
        assert figure._repr_png_().startswith(b"\x89PNG")
    assert ("matplotlib.pyplot" in sys.modules) == before
