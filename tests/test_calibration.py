"""Calibration: made-up texts, the choice of heads, the rule for "not found", on a tiny model."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_folder import write_folder

import quickllama as ql
from quickllama.cli import main
from quickllama.documents import calibration
from quickllama.documents.calibration import Trial, best_heads, fit_rule, found_rule, mean_log_ranks
from quickllama.documents.facts import filler, make_facts, ordinary_texts, text_with_facts
from quickllama.documents.judgement import Asked, Bond, Opening, judge, standing
from quickllama.documents.retrieval import Grid, Ranking
from quickllama.prompt import DOCUMENT_PROMPT, PASSAGES_PROMPT, PromptForm, text_tokens


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ql.Model:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(calibration, "TEXTS", 2)
    monkeypatch.setattr(calibration, "CHARACTERS", 1200)
    write_folder(tmp_path / "tiny")
    return ql.Model.from_pretrained(tmp_path / "tiny", n_threads=1)


def test_facts_lie_where_they_are_said_to_lie() -> None:
    rng = np.random.default_rng(3)
    text = filler(rng, 4000)
    assert 4000 <= len(text) < 6000
    facts = make_facts(rng, 12)
    assert len({fact.question for fact in facts}) == 12
    made = text_with_facts(rng, text, facts)
    assert len(made.text) == len(text) + sum(len(fact.sentence) + 1 for fact in facts)
    for fact, (start, end) in zip(made.facts, made.places, strict=True):
        assert made.text[start:end] == fact.sentence
        assert fact.answer in fact.sentence and fact.answer not in fact.question
        assert "{" not in fact.sentence + fact.question + fact.paraphrase
    starts = [start for start, _ in made.places]
    assert starts == sorted(starts) and starts[-1] > len(text) / 2
    same = text_with_facts(np.random.default_rng(3), text, facts)
    assert same.facts == made.facts
    assert filler(np.random.default_rng(3), 4000) == text != filler(np.random.default_rng(4), 4000)


def test_ordinary_texts_are_different_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    texts = ordinary_texts(rng, 10, 3000)
    assert len(set(texts)) == 10 and all(3000 <= len(text) < 5000 for text in texts)
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)  # cannot be imported
    made_up = ordinary_texts(rng, 2, 3000)
    assert made_up[0] != made_up[1] and made_up[0] not in texts


def ranking(by_head: np.ndarray) -> Ranking:
    """A ranking of made-up z-scores [heads, n]."""
    heads = tuple((0, head) for head in range(len(by_head)))
    return Ranking(Grid(0, 8 * by_head.shape[1], 0, 8), by_head.astype(np.float32), heads)


def trial(by_head: np.ndarray, answer: tuple[int, ...]) -> Trial:
    """A question about a text of one sentence a piece."""
    pieces = by_head.shape[1]
    said = by_head.astype(np.float32)
    words = [f"Sentence {piece}." for piece in range(pieces)]
    return Trial("Which?", ranking(by_head), answer, words, said, [[p] for p in range(pieces)])


def test_the_best_heads_are_those_that_rank_the_answer_first() -> None:
    rng = np.random.default_rng(5)
    trials = []
    for answer in (3, 17, 30):
        scores = rng.standard_normal((6, 40))
        scores[4, answer] = 9  # first
        scores[2, answer] = np.sort(scores[2])[-2] + 1e-6  # second
        trials.append(trial(scores, (answer, answer + 1)))
    trials.append(trial(rng.standard_normal((6, 40)), ()))
    ranks = mean_log_ranks(trials)
    assert ranks[4] == 0 and 0 < ranks[2] <= 1
    assert best_heads(trials, 2) == ((0, 4), (0, 2))
    heads = tuple((head // 2, head % 2) for head in range(6))
    layered = [
        dataclasses.replace(one, ranking=dataclasses.replace(one.ranking, heads=heads))
        for one in trials
    ]
    assert best_heads(layered, 2) == ((2, 0), (1, 0))
    assert best_heads(layered, 2, layers=2) == ((1, 0), best_heads(layered, 3, layers=2)[1])
    assert {layer for layer, _ in best_heads(layered, layers=2)} == {0, 1}


def test_the_ranking_tells_what_stands_out() -> None:
    raw = np.tile(np.tile([1.0, -1.0], 25), (4, 1))  # standard scores are all 1 and -1
    raw[:, 20] = raw[:, 21] = raw[:, 40] = 7
    raw[:, 20] += 1
    assert ranking(raw).standing_out() == [20, 21, 40]
    raw[:, [1, 3, 5]] = 7
    assert ranking(raw).standing_out() == [20, 1, 3, 5]
    assert ranking(raw).by([(0, 2)]).heads == ((0, 2),)
    np.testing.assert_array_equal(ranking(raw).by([(0, 2)]).by_head[0], ranking(raw).by_head[2])


def bond(gain: float, share: float = 0.5) -> Bond:
    return Bond(gain + 1, gain - 1, share, share / 2)


def test_the_stronger_bond_decides_between_close_passages() -> None:
    bonds = {20: bond(0.0), 21: bond(-0.5), 40: bond(2.5, 0.25)}  # 3 is too far behind
    raw = np.zeros((4, 50))
    raw[:, 20], raw[:, 21], raw[:, 40], raw[:, 3] = 8, 7, 7, 2
    before = ranking(raw)
    after = judge(before, bonds.__getitem__)
    assert before.best(2) == [20, 21] and after.ranking.best(4) == [40, 20, 21, 3]
    np.testing.assert_allclose(
        after.ranking.scores[[40, 20, 3, 7]] - before.scores[[40, 20, 3, 7]], [0, -2.5, -3, -3]
    )
    assert standing(before.scores, 40) > 5 and after.features == (5, 0.25, 0.125)
    for share, kept in ((0.9, 0.3), (-0.9, -0.1)):  # more tells no more
        assert judge(before, lambda _, share=share: Bond(0, 0, share, share)).features[1:] == (
            kept,
            kept,
        )


def test_a_clear_passage_is_judged_alone() -> None:
    judged: list[int] = []

    def bond_with(piece: int) -> Bond:
        judged.append(piece)
        return bond(-float(piece))

    rng = np.random.default_rng(2)
    raw = rng.standard_normal((4, 50))
    raw[:, 20] = 30
    before = ranking(raw)
    after = judge(before, bond_with)
    assert judged == [20]
    np.testing.assert_array_equal(after.ranking.scores, before.scores)
    raw[:, 30] = 26  # close enough
    assert judge(ranking(raw), bond_with).ranking.best(1) == [20]
    assert judged[1:] == [20, 30]
    one = judge(ranking(np.zeros((2, 1))), lambda _: bond(0.0))
    assert one.features[0] == 0


def test_what_stands_out_by_chance_does_not_grow_with_the_text() -> None:
    rng = np.random.default_rng(4)
    highest, stands = [], []
    for pieces in (64, 1024):
        texts = rng.exponential(size=(400, pieces))
        highest.append(texts.max(axis=1).mean())
        stands.append(np.mean([standing(text, int(text.argmax())) for text in texts]))
    assert highest[1] - highest[0] > 2
    assert abs(stands[1] - stands[0]) < 0.4
    text = rng.standard_normal(64)
    assert standing(3 * text + 5, 7) == pytest.approx(standing(text, 7))
    for few in range(1, 5):
        assert np.isfinite(standing(np.zeros(few), 0))


def test_a_question_and_its_sentence_make_each_other_likelier(smollm2_path: Path) -> None:
    model = ql.Model.from_pretrained(smollm2_path)
    asked = Asked(Opening(model), "Who built the lighthouse of Arnvik?")
    near = asked.bond("The lighthouse of Arnvik was built by Ole.")
    far = asked.bond("Cats sleep a lot.")
    assert near.question > far.question + 0.5 and near.sentence > far.sentence + 0.5
    assert 0.2 < near.question_share < 1 and 0.2 < near.sentence_share < 1
    assert near.gain == (near.question + near.sentence) / 2
    assert asked.bond("") == Bond(0, 0, 0, 0)
    assert asked.bond("The lighthouse of Arnvik was built by Ole.") == near  # nothing is left over
    assert -1 < asked.bond("No").sentence_share < 1


def test_gains_are_those_of_whole_prompts(smollm2_path: Path) -> None:
    """Read at once in place of by forks."""
    model = ql.Model.from_pretrained(smollm2_path)
    question, sentence = "Who built the lighthouse?", "It was built by a man called Ole."
    plain = PromptForm.of(DOCUMENT_PROMPT)
    before, _ = plain.prefix(model.tokenizer)
    asked, _ = PromptForm.of(PASSAGES_PROMPT).prefix(model.tokenizer, question)
    suffix, (start, end) = plain.suffix(model.tokenizer, question)
    inside, _ = text_tokens(model.tokenizer, sentence)

    def chances(ids: np.ndarray, last: int) -> np.ndarray:
        logits = model.forward(ids[:-1], logits_to_keep=last).astype(np.float64)
        logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        return np.asarray(logs[np.arange(last), ids[len(ids) - last :]])

    told = chances(np.concatenate([before, inside, suffix[:end]]), end - start)
    alone = chances(np.concatenate([before, suffix[:end]]), end - start)
    given = chances(np.concatenate([asked, inside]), len(inside))
    base = chances(np.concatenate([before, inside]), len(inside))
    bond = Asked(Opening(model), question).bond(sentence)
    assert bond.question == pytest.approx((told - alone).mean(), abs=0.02)
    assert bond.sentence == pytest.approx((given - base).mean(), abs=0.02)
    assert bond.question_share == pytest.approx(1 - told.sum() / alone.sum(), abs=0.01)
    assert bond.sentence_share == pytest.approx(1 - given.sum() / base.sum(), abs=0.01)


def test_the_rule_parts_what_was_found_from_what_was_not() -> None:
    rng = np.random.default_rng(6)
    trials = []
    for number in range(120):
        scores = rng.standard_normal((5, 64))
        answer = (int(rng.integers(64)),) if number % 2 else ()
        if answer:
            scores[:, answer[0]] += 4
        trials.append(trial(scores, answer))
    heads = trials[0].ranking.heads
    words: set[str] = set()

    def bond_of(question: str, sentence: str) -> Bond:
        words.add(sentence)
        return bond(0.0)

    rule = found_rule(trials, heads, bond_of)
    assert words <= {f"Sentence {piece}." for piece in range(64)}
    confident = [
        rule.confidence(judge(one.ranking, lambda _: bond(0.0)).features) for one in trials
    ]
    found = [confidence >= rule.threshold for confidence in confident]
    assert np.mean(found[1::2]) > 0.95 and np.mean(found[::2]) <= 0.1
    nothing = fit_rule(rng.standard_normal((100, 2)), np.arange(100) % 2)
    assert abs(nothing.weights[0]) < 1


def test_the_rule_does_not_depend_on_units() -> None:
    rng = np.random.default_rng(8)
    labels = (np.arange(200) % 2).astype(np.float64)
    features = rng.standard_normal((200, 2)) + labels[:, np.newaxis]
    plain, scaled = fit_rule(features, labels), fit_rule(features * [1, 0.01] + [3, 0], labels)
    for row in features[:20]:
        other = tuple(row * [1, 0.01] + [3, 0])
        assert scaled.confidence(other) == pytest.approx(plain.confidence(tuple(row)), abs=1e-3)
    for rule, rows in ((plain, features), (scaled, features * [1, 0.01] + [3, 0])):
        false = [rule.confidence(tuple(row)) >= rule.threshold for row in rows[labels == 0]]
        assert 0.08 <= np.mean(false) <= 0.1
    assert plain.threshold == pytest.approx(scaled.threshold, abs=1e-3)


def test_the_sentence_is_that_of_the_heads_that_rank() -> None:
    said = np.zeros((4, 3), dtype=np.float32)
    said[0, 0] = said[1:, 2] = 1
    raw = np.random.default_rng(1).standard_normal((4, 50))
    words = ["One.", "Two.", "Three."]
    one = Trial("Which?", ranking(raw), (), words, said, [[0, 1], [1, 2], [0, 2]])
    first = one.ranking.by([(0, 0)])
    assert [one.words(one.ranking, piece) for piece in range(3)] == ["One.", "Three.", "Three."]
    assert [one.words(first, piece) for piece in range(3)] == ["One.", "Two.", "One."]


def test_calibrating_keeps_heads_for_the_next_time(model: ql.Model, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    heads = model.calibrate(progress=lambda done, total: seen.append((done, total)))
    assert seen == [(0, 2), (1, 2), (2, 2)]
    assert len(heads.heads) == 8 and heads.found is not None
    assert heads.skim is not None and heads.skim.found is not None
    assert sorted(heads.skim.heads) == [(0, head) for head in range(4)]  # a third of two layers
    assert model.retrieval_heads is heads
    again = ql.Model.from_pretrained(tmp_path / "tiny", dtype="float32")
    assert again.retrieval_heads == heads
    answer = model.read("Some words. " * 140).ask("Which?", max_new_tokens=2, always_answer=True)
    assert answer.confidence is not None
    skimmed = model.skim("Some words. " * 140)
    assert skimmed.ask("Which?", max_new_tokens=2).confidence is not None
    texts = ["Words of my own, again and again. " * 40]
    own = model.calibrate(texts, seed=1)
    assert own != heads and "seed 1" in own.source
    assert model.calibrate(iter(texts), seed=1) == own


def test_what_cannot_be_calibrated_on(model: ql.Model) -> None:
    for wrong in ("one text", 5, [5], iter([None])):
        with pytest.raises(ql.InvalidType, match="list of str"):
            model.calibrate(wrong)
    for wrong in ([], ["short"], iter(["short"]), iter(())):
        with pytest.raises(ql.InvalidValue, match="characters"):
            model.calibrate(wrong)
    with pytest.raises(ql.InvalidType, match="seed"):
        model.calibrate(seed="x")


def test_the_command(model: ql.Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Words of my own, again and again. " * 40)
    start = ["calibrate", str(tmp_path / "tiny"), "--text", str(text), "--quiet"]
    assert main(start) == 0
    out, err = capsys.readouterr()
    assert out.startswith("retrieval heads (layer.head): ") and str(tmp_path / "cache") in out
    assert err == ""
    assert main([*start, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (
        ql.RetrievalHeads.from_dict(report)
        == ql.Model.from_pretrained(tmp_path / "tiny").retrieval_heads
    )
