"""Retrieval heads: the score by its definition, the files they are kept in, and that they find."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from tiny_folder import write_folder
from tiny_models import random_weights

import quickllama as ql
from quickllama.documents.facts import filler
from quickllama.documents.head_store import (
    Fingerprint,
    FoundRule,
    SkimHeads,
    cache_folder,
    embedding_signs,
    load_heads,
    save_heads,
    skim_heads_of,
)
from quickllama.documents.retrieval import (
    Grid,
    all_heads,
    centred_queries,
    rank_pieces,
    standard_scores,
)

MEMORY = ql.MemoryConfig(
    mode="infllm", n_init=8, n_local=48, block_size=16, topk=0, exc_block_size=32
)
FACT = "The treasure of Captain Morrow was buried under the old lighthouse on Gull Island."
QUESTION = "Where was the treasure of Captain Morrow buried?"


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ql.Model:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_folder(tmp_path / "tiny")
    return ql.Model.from_pretrained(tmp_path / "tiny", dtype="float32", n_threads=1)


@pytest.fixture(scope="module")
def real(smollm2_path: Path) -> ql.Model:
    return ql.Model.from_pretrained(smollm2_path)


# The score ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("begin", "end", "origin", "expected"),
    [
        (5, 30, 8, [(5, 8), (8, 18), (18, 28), (28, 30)]),
        (8, 20, 8, [(8, 18), (18, 20)]),
        (30, 45, 8, [(30, 38), (38, 45)]),
        (5, 7, 128, [(5, 7)]),
        (8, 18, 128, [(8, 18)]),
    ],
)
def test_pieces_are_blocks(
    begin: int, end: int, origin: int, expected: list[tuple[int, int]]
) -> None:
    grid = Grid(begin, end, origin, 10)
    assert [tuple(bound) for bound in grid.bounds.tolist()] == expected
    if (8, 18) in expected and origin == 8:
        assert grid.block(expected.index((8, 18))) == 0


def test_the_ranking_is_its_definition(model: ql.Model) -> None:
    session = model.session(MEMORY, kv_dtype="float32")
    ids = np.random.default_rng(1).integers(0, 256, 203)
    session.feed(ids)
    heads = [(0, 1), (1, 3), (1, 0)]
    fork = session.fork()
    queries = fork.listen([5, 6, 7], heads)
    grid = Grid(20, 203, 8, 16)
    centred = centred_queries(session, heads, queries)
    mean = session.mean_query(1)[3 * 8 : 4 * 8]
    np.testing.assert_allclose(centred[1], queries[1] - mean, rtol=1e-6)
    ranking = rank_pieces(session, heads, centred, grid)
    # The same, piece by piece.
    raw = np.array(
        [
            [session.rank([head], one[np.newaxis], a, b, b - a)[0, 0] for a, b in grid.bounds]
            for head, one in zip(heads, centred, strict=True)
        ]
    )
    away = (raw - raw.mean(1, keepdims=True)) / raw.std(1, keepdims=True)
    np.testing.assert_allclose(ranking.by_head, away, atol=1e-4)
    np.testing.assert_allclose(ranking.scores, away.mean(0), atol=1e-4)
    order = np.argsort(-ranking.scores)
    assert ranking.best(3) == order[:3].tolist()
    assert ranking.layers([int(order[0])], len(order)) == (0, 1)


def test_scores_that_are_all_alike_say_nothing() -> None:
    assert not standard_scores(np.ones((2, 5), dtype=np.float32)).any()
    assert all_heads(2, 3)[-1] == (1, 2)


# Files --------------------------------------------------------------------------------------------


def test_a_fingerprint_survives_rounding_and_tells_models_apart(
    model: ql.Model, tmp_path: Path
) -> None:
    for dtype in ("float32", "bfloat16"):
        again = ql.Model.from_pretrained(tmp_path / "tiny", dtype=dtype)
        assert again.fingerprint == model.fingerprint
    write_folder(tmp_path / "other", seed=6)
    other = ql.Model.from_pretrained(tmp_path / "other")
    assert other.fingerprint.sizes == model.fingerprint.sizes
    assert not other.fingerprint.matches(model.fingerprint)
    array = np.ascontiguousarray(np.linspace(-1, 1, 64 * 512, dtype=np.float32).reshape(64, 512))
    signs = int(embedding_signs(array, "float32", array.shape), 16)
    assert signs == (1 << 128) - 1
    near = dataclasses.replace(model.fingerprint, signs=f"{0b1011 ^ 0:064x}")
    assert near.matches(dataclasses.replace(near, signs=f"{0:064x}"))


def test_heads_are_kept_and_found_again(model: ql.Model) -> None:
    assert model.retrieval_heads is None and load_heads(model) is None
    rule = FoundRule((1.0, 2.0, 3.0), -1.0, 0.5)
    heads = ql.RetrievalHeads(model.fingerprint, ((1, 3), (0, 2)), "a test", rule)
    path = save_heads(heads)
    assert path.parent == cache_folder() and load_heads(model) == heads
    assert model.retrieval_heads == heads
    assert ql.RetrievalHeads.from_dict(json.loads(path.read_text())) == heads
    path.write_text("{")
    with pytest.warns(UserWarning, match="delete it"):
        assert load_heads(model) is None
    for version, why in ((2, "format 2"), (3, "no retrieval heads")):
        path.write_text(json.dumps({"format": version, "heads": [[1]]}))
        with pytest.warns(UserWarning, match=why):
            assert load_heads(model) is None


def test_a_rule_of_other_numbers_is_left_out() -> None:
    """Skimmed documents in files have one, and may be older than the numbers of today."""
    rule = FoundRule((1.0, 2.0, 3.0), -1.0, 0.5)
    value = json.loads(json.dumps(dataclasses.asdict(SkimHeads(((0, 1),), rule))))
    assert skim_heads_of(value) == SkimHeads(((0, 1),), rule)
    value["found"]["features"][0] = "margin"
    assert skim_heads_of(value) == SkimHeads(((0, 1),), None)
    del value["found"]["features"]
    assert skim_heads_of(value) == SkimHeads(((0, 1),), None)


def test_heads_of_another_model(model: ql.Model) -> None:
    wrong = ql.RetrievalHeads(model.fingerprint, ((7, 0),), "a test")
    with pytest.raises(ql.InvalidValue, match="another model"):
        model.retrieval_heads = wrong
    save_heads(wrong)
    assert load_heads(model) is None
    with pytest.raises(ql.InvalidType):
        model.retrieval_heads = [(1, 2)]


def test_a_model_from_arrays_has_a_fingerprint() -> None:
    config = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48}
    config |= {"num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2}
    one, two = (ql.Model(config, random_weights(config, seed)) for seed in (1, 2))
    assert not one.fingerprint.matches(two.fingerprint)
    assert isinstance(one.fingerprint, Fingerprint)


# What they are for --------------------------------------------------------------------------------


def test_without_heads_all_are_asked_and_the_answer_says_so(model: ql.Model) -> None:
    document = model.read("Some words that are read. " * 30, memory=MEMORY)
    answer = document.ask("Which words?", max_new_tokens=2)
    assert "no retrieval heads are known" in answer.notes[0] and answer.confidence is None
    short = model.read("Some words. ", memory=MEMORY)
    model.retrieval_heads = ql.RetrievalHeads(
        model.fingerprint, ((0, 1),), "a test", FoundRule((0.0,) * 3, -9.0, 0.5)
    )
    answer = document.ask("Which words?", max_new_tokens=2)
    assert not answer.found and answer.text == "Not found in the document."
    assert "no passage stands out" in answer.notes[0] and not answer.tokens
    answer = document.ask("Which words?", max_new_tokens=2, always_answer=True)
    assert answer.found and answer.tokens
    answer = short.ask("Which words?", max_new_tokens=2)  # too short to tell
    assert answer.found and answer.confidence is None


@pytest.fixture(scope="module")
def document(real: ql.Model) -> ql.Document:
    text = filler(np.random.default_rng(13), 14_000)
    place = text.index(". ", 5_000) + 2
    return real.read(f"{text[:place]}{FACT} {text[place:]}")


@pytest.mark.parametrize("use", ["reread", "reposition", "memory"])
def test_a_fact_is_found_and_the_evidence_holds_it(document: ql.Document, use: str) -> None:
    ask = {"use": use, "max_new_tokens": 24}
    answer = document.ask(QUESTION, passages=2, neighbours=0, **ask)
    assert "lighthouse" in answer.text and answer.confidence is not None and answer.found
    best = answer.evidence[0]
    assert FACT in best.text and best.layers and len(best.text) < 4_000
    assert document.text[best.start : best.end] == best.text
    assert [p.score for p in answer.evidence] == sorted(
        (p.score for p in answer.evidence), reverse=True
    )
    nothing = document.ask(QUESTION, passages=0, neighbours=0, **ask)
    assert "lighthouse" not in nothing.text and not nothing.evidence
    other = document.ask("What did people say about the harbour?", always_answer=True, **ask)
    assert other.text != answer.text and FACT not in other.evidence[0].text


def test_what_is_not_there_is_not_found(document: ql.Document) -> None:
    answer = document.ask("Which insects does Mrs Abernathy collect?", max_new_tokens=8)
    assert not answer.found and answer.confidence is not None and answer.confidence < 0.5


def test_a_skimmed_text_has_the_fact_too(document: ql.Document) -> None:
    skimmed = document.model.skim(document.text)
    answer = skimmed.ask(QUESTION, max_new_tokens=24)
    assert "lighthouse" in answer.text and FACT in answer.evidence[0].text and answer.found
    assert skimmed.nbytes < document.nbytes / 3
    nothing = skimmed.ask("Which insects does Mrs Abernathy collect?", max_new_tokens=8)
    assert nothing.confidence is not None and nothing.confidence < 0.5


def test_keys_and_values_in_int8_serve_every_use(real: ql.Model, document: ql.Document) -> None:
    read = real.read(document.text, kv_dtype="int8")
    skimmed = real.skim(document.text, kv_dtype="int8")
    cases = [(read, use) for use in ("reread", "reposition", "memory")]
    for each, use in [*cases, (skimmed, "reread")]:
        answer = each.ask(QUESTION, use=use, passages=2, neighbours=0, max_new_tokens=24)
        assert "lighthouse" in answer.text and FACT in answer.evidence[0].text
        nothing = each.ask(QUESTION, use=use, passages=0, neighbours=0, max_new_tokens=24)
        assert "lighthouse" not in nothing.text
    assert read.nbytes < 0.7 * document.nbytes


def test_the_end_of_a_text_is_evidence_too(real: ql.Model) -> None:
    text = filler(np.random.default_rng(8), 5_000)
    document = real.read(text)
    document.append(f" {FACT}")
    answer = document.ask(QUESTION, max_new_tokens=24)
    assert "lighthouse" in answer.text and FACT in answer.evidence[0].text
    assert answer.evidence[0].end == len(document.text)
    start = real.read(f"{FACT} {text}").ask(QUESTION, max_new_tokens=24)
    assert start.evidence[0].start == 0 and FACT in start.evidence[0].text
