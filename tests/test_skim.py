"""Skimmed documents: like documents that were read, but for what they can do with passages."""

from __future__ import annotations

import dataclasses
import io
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_document import TEXT, asked_by_threads, same, whole_and_interrupted

import quickllama as ql
from quickllama.cli import main
from quickllama.documents import head_store
from quickllama.documents.answer import NOT_FOUND
from quickllama.documents.head_store import FoundRule, RetrievalHeads, SkimHeads
from quickllama.prompt import PASSAGES_PROMPT

MEMORY = ql.MemoryConfig(mode="stream", n_init=8, n_local=48, block_size=16, exc_block_size=32)
BLOCKS = dataclasses.replace(MEMORY, mode="infllm", topk=0)
EVERY_HEAD = tuple((layer, head) for layer in range(2) for head in range(4))
SURE = FoundRule((0.0, 0.0, 0.0), 9.0, 0.5)
NEVER = FoundRule((0.0, 0.0, 0.0), -9.0, 0.5)


@pytest.fixture
def model(folder: Path) -> ql.Model:
    """With all heads of both layers to skim with, so that tests can look at every one."""
    model = ql.Model.from_pretrained(folder, dtype="float32", n_threads=2)
    skim = SkimHeads(EVERY_HEAD)
    model.retrieval_heads = RetrievalHeads(model.fingerprint, ((1, 3),), "made up", SURE, skim)
    return model


def state(document: ql.Document) -> list[Any]:
    """Every number that an answer can depend on."""
    snapshot = document._snapshot()
    session = snapshot.fork_whole()
    queries = session.listen([1, 2, 3], EVERY_HEAD)
    scores = session.rank(EVERY_HEAD, queries, 0, len(session), 1)
    means = [session.mean_query(layer) for layer in range(2)]
    return [document.text, len(document), snapshot.offsets, queries, scores, *means]


def assert_same_numbers(first: ql.Document, second: ql.Document) -> None:
    for one, other in zip(state(first), state(second), strict=True):
        np.testing.assert_array_equal(one, other)


def test_it_does_not_matter_how_a_text_arrives(model: ql.Model) -> None:
    whole = model.skim(TEXT, memory=MEMORY)
    assert whole.skimmed and "skimmed" in repr(whole)
    rng = np.random.default_rng(4)
    for _ in range(3):
        cuts = np.sort(rng.integers(0, len(TEXT), 5)).tolist()
        parts = [TEXT[a:b] for a, b in zip([0, *cuts], [*cuts, len(TEXT)], strict=True)]
        assert_same_numbers(model.skim(parts, memory=MEMORY), whole)
        appended = model.skim(parts[0] or "Z", memory=MEMORY)
        if parts[0]:
            for part in parts[1:]:
                appended.append(part)
            assert_same_numbers(appended, whole)
    ids = model.tokenizer.encode(TEXT, add_special_tokens=False, parse_special=False)
    found, expected = state(model.skim(ids, memory=MEMORY)), state(whole)
    for one, other in zip(found[3:], expected[3:], strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_interruption_changes_nothing(model: ql.Model) -> None:
    assert_same_numbers(*whole_and_interrupted(partial(model.skim, memory=MEMORY)))


def test_a_text_within_the_window_is_answered_as_if_it_had_been_read(model: ql.Model) -> None:
    """Nothing has left the window, so that the same keys are ranked, and the same passages read."""
    wide = dataclasses.replace(MEMORY, n_local=4096)
    heads = ((1, 0), (0, 2))
    model.retrieval_heads = RetrievalHeads(
        model.fingerprint, heads, "made up", SURE, SkimHeads(heads, SURE)
    )
    skimmed = model.skim(TEXT, memory=wide)
    was_read = model.read(TEXT, memory=dataclasses.replace(wide, mode="infllm", topk=0))
    assert not was_read.skimmed
    for question in ("Wer?", "Wohin denn?"):
        answers = [doc.ask(question, max_new_tokens=8) for doc in (skimmed, was_read)]
        assert same(*answers) and answers[0].evidence and answers[0].confidence is not None
        assert skimmed.text[answers[0].evidence[0].start :].startswith(answers[0].evidence[0].text)


def test_it_holds_less(model: ql.Model) -> None:
    known = model.retrieval_heads
    assert known is not None
    model.retrieval_heads = dataclasses.replace(known, skim=SkimHeads(((0, 1),)))
    skimmed, was_read = model.skim(TEXT * 8, memory=MEMORY), model.read(TEXT * 8, memory=BLOCKS)
    assert skimmed.nbytes < was_read.nbytes / 2


def test_threads_get_the_serial_answers(model: ql.Model) -> None:
    document = model.skim(TEXT, memory=MEMORY)
    questions = ["Wer?", "Wo 12?", "Warum denn nicht, du?", "x", "Zzz zzz"]
    serial = [document.ask(question, max_new_tokens=8) for question in questions]
    document.append("")  # a new snapshot
    assert all(map(same, asked_by_threads(document, questions, max_new_tokens=8), serial))


def test_its_own_rule_says_when_nothing_is_found(model: ql.Model) -> None:
    known = model.retrieval_heads
    assert known is not None
    model.retrieval_heads = dataclasses.replace(known, skim=SkimHeads(EVERY_HEAD, NEVER))
    document = model.skim(TEXT, memory=MEMORY)
    assert document.ask("Wer?").text == NOT_FOUND
    assert document.ask("Wer?", always_answer=True, max_new_tokens=2).text != NOT_FOUND
    assert model.read(TEXT, memory=BLOCKS).ask("Wer?", max_new_tokens=2).text != NOT_FOUND


def test_other_heads_come_too_late_for_what_was_skimmed(model: ql.Model) -> None:
    document = model.skim(TEXT, memory=MEMORY)
    before = document.ask("Wer?", max_new_tokens=4)
    model.retrieval_heads = RetrievalHeads(model.fingerprint, ((0, 0),), "others", SURE)
    assert same(document.ask("Wer?", max_new_tokens=4), before)


def test_a_question_may_be_longer_than_the_window(model: ql.Model) -> None:
    assert model.skim(TEXT, memory=MEMORY).ask("why " * 40, max_new_tokens=2).evidence


def test_what_skimming_cannot_do(model: ql.Model) -> None:
    document = model.skim(TEXT, memory=MEMORY)
    for wrong, named in (
        ({"retrieval": "paper"}, "retrieval 'paper'"),
        ({"use": "memory"}, "use 'memory'"),
        ({"use": "reposition"}, "use 'reposition'"),
        ({"use": "rewrite"}, "use 'rewrite'"),
    ):
        with pytest.raises(ql.InvalidValue, match=named):
            document.ask("Wer?", **wrong)
    assert document.ask("Wer?", retrieval="heads", use="reread", max_new_tokens=2).evidence
    with pytest.raises(ql.InvalidValue, match="question"):
        document.ask()
    for settings, kind, named in (
        ({"memory": BLOCKS}, ql.InvalidValue, "stream or infinite"),
        ({"memory": "stream"}, ql.InvalidType, "MemoryConfig"),
        ({"prompt": PASSAGES_PROMPT}, ql.InvalidValue, "without a question"),
        ({"title": 3}, ql.InvalidType, "title"),
    ):
        with pytest.raises(kind, match=named):
            model.skim(TEXT, **settings)
    with pytest.raises(ql.InvalidValue, match="empty"):
        model.skim(" \n")


def test_without_heads_it_says_to_calibrate(model: ql.Model) -> None:
    known = model.retrieval_heads
    assert known is not None
    model.retrieval_heads = dataclasses.replace(known, skim=None)
    with pytest.raises(ql.InvalidValue, match="calibrate"):
        model.skim(TEXT)


# Heads on disk ------------------------------------------------------------------------------------


def test_heads_to_skim_with_are_kept(model: ql.Model) -> None:
    known = model.retrieval_heads
    assert known is not None
    value = json.loads(json.dumps(known.to_dict()))
    assert RetrievalHeads.from_dict(value) == known
    ruled = dataclasses.replace(known, skim=SkimHeads(((0, 1),), NEVER))
    assert RetrievalHeads.from_dict(json.loads(json.dumps(ruled.to_dict()))) == ruled
    del value["skim"]  # as older files have it
    assert RetrievalHeads.from_dict(value) == dataclasses.replace(known, skim=None)
    for wrong in ("heads", {"heads": [[0, 1]]}, {"heads": [[0]], "found": None}, [1]):
        with pytest.raises(ql.FileProblem, match="no retrieval heads"):
            RetrievalHeads.from_dict({**value, "skim": wrong})
    for heads in (((2, 0),), ((0, 4),), ()):
        with pytest.raises(ql.InvalidValue, match="another model"):
            model.retrieval_heads = dataclasses.replace(known, skim=SkimHeads(heads))


SHIPPED = {  # file: layers, query heads that share a key head
    "smollm2-135m-instruct": (30, 3),
    "qwen2.5-coder-0.5b-instruct": (24, 7),
}


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_models_can_be_skimmed(name: str) -> None:
    n_layers, group = SHIPPED[name]
    path = Path(head_store.__file__).parent / "heads" / f"{name}.json"
    shipped = RetrievalHeads.from_dict(json.loads(path.read_text("utf-8")))
    assert shipped.skim is not None and shipped.skim.found is not None
    assert max(layer for layer, _ in shipped.skim.heads) < n_layers // 3
    kept = {(layer, head // group) for layer, head in shipped.skim.heads}
    assert len(kept) <= 6  # 768 bytes a token


def test_all_shipped_heads_are_tested() -> None:
    files = (Path(head_store.__file__).parent / "heads").glob("*.json")
    assert {path.stem for path in files} == set(SHIPPED)


# The command line ---------------------------------------------------------------------------------


def test_the_command(
    folder: Path,
    model: ql.Model,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    text = tmp_path / "text.txt"
    text.write_text(TEXT, "utf-8")
    ask = ["ask", str(text), "Wer?", "--skim", "--model", str(folder), "--max-new-tokens", "3"]
    assert main(ask) == 1
    assert "calibrate" in capsys.readouterr().err
    assert model.retrieval_heads is not None
    head_store.save_heads(model.retrieval_heads)
    assert main([*ask, "--quiet", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["skimmed"] and report["memory"]["mode"] == "stream"
    assert (report["memory"]["n_local"], report["memory"]["exc_block_size"]) == (256, 256)
    assert report["answers"][0]["evidence"]
    assert main([*ask, "--quiet", "--json", "--n-local", "64"]) == 0
    assert json.loads(capsys.readouterr().out)["memory"]["exc_block_size"] == 64
    for wrong, word in (("--reread-all", "--reread-all"), ("--topk=3", "--reread-all")):
        assert main([*ask, wrong]) == 2
        assert word in capsys.readouterr().err
    assert main([*ask, "--use", "memory"]) == 2
    assert "--use memory" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", io.StringIO("Wer?\n\n"))
    assert main(["chat", *ask[1:2], *ask[3:], "--quiet"]) == 0
    assert "Evidence:" in capsys.readouterr().out
