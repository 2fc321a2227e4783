"""Generation: how a prompt is fed, when an answer ends, and what comes back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_models import random_ids, random_weights

import quickllama as ql
from quickllama.generation import ReadingPlan, iter_tokens, read

CONFIG = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
SMALL = ql.MemoryConfig(
    mode="infllm",
    n_init=4,
    n_local=24,
    block_size=8,
    topk=2,
    repr_topk=2,
    exc_block_size=16,
    question_weight=1.0,
)
ASKING = ql.MemoryConfig(
    mode="qllm", n_init=4, n_local=24, block_size=8, topk=2, repr_topk=2, exc_block_size=16
)


@pytest.fixture(scope="module")
def model() -> ql.Model:
    return ql.Model(CONFIG, random_weights(CONFIG, 3), n_threads=1)


class ScriptedSession:
    """A session whose best tokens are given; it remembers what it was fed."""

    def __init__(self, tokens: Sequence[int], vocab_size: int = 10) -> None:
        self.fed: list[tuple[list[int], tuple[int, int] | None]] = []
        self._tokens = list(tokens)
        self._vocab_size = vocab_size

    def feed(
        self, ids: Any, all_logits: bool = False, query_span: tuple[int, int] | None = None
    ) -> NDArray[np.float32]:
        self.fed.append((list(ids), query_span))
        return self.next_logits()

    def next_logits(self) -> NDArray[np.float32]:
        logits = np.zeros(self._vocab_size, dtype=np.float32)
        logits[self._tokens.pop(0)] = 1
        return logits

    def __len__(self) -> int:
        return sum(len(ids) for ids, _ in self.fed)


# How a prompt is fed ------------------------------------------------------------------------------


def spans(plan: ReadingPlan) -> list[tuple[int, int]]:
    return [(piece.start, piece.end) for piece in plan.pieces]


@pytest.mark.parametrize(
    ("n_tokens", "expected"),
    [
        (1, [(0, 1)]),
        (2, [(0, 1), (1, 2)]),
        (16, [(0, 15), (15, 16)]),
        (17, [(0, 16), (16, 17)]),
        (18, [(0, 16), (16, 17), (17, 18)]),
        (33, [(0, 16), (16, 32), (32, 33)]),
        (40, [(0, 16), (16, 32), (32, 39), (39, 40)]),
    ],
)
def test_chunks_start_at_multiples_and_the_last_token_is_alone(
    n_tokens: int, expected: list[tuple[int, int]]
) -> None:
    plan = ReadingPlan.of(n_tokens, SMALL)
    assert spans(plan) == expected
    assert plan.opening_span is None
    assert all(piece.question is None for piece in plan.pieces)


def test_a_question_at_the_front_goes_to_the_session() -> None:
    # With n_local 24 and chunks of 16, the window is full after 32 tokens.
    for span in [(0, 3), (10, 30), (30, 32)]:
        plan = ReadingPlan.of(100, ASKING, span)
        assert plan.opening_span == span
        assert spans(plan) == spans(ReadingPlan.of(100, ASKING))
    assert ReadingPlan.of(20, ASKING, (15, 20)).opening_span == (15, 20)


@pytest.mark.parametrize(
    ("span", "piece"),
    [
        ((30, 33), (16, 48, (14, 17))),
        ((50, 60), (48, 64, (2, 12))),
        ((48, 64), (48, 64, (0, 16))),
        ((60, 80), (48, 80, (12, 32))),
        ((90, 99), (80, 99, (10, 19))),
        ((97, 100), (96, 100, (1, 4))),
    ],
)
def test_a_later_question_goes_with_the_chunks_that_hold_it(
    span: tuple[int, int], piece: tuple[int, int, tuple[int, int]]
) -> None:
    plan = ReadingPlan.of(100, ASKING, span)
    assert plan.opening_span is None
    asking = [(p.start, p.end, p.question) for p in plan.pieces if p.question]
    assert asking == [piece]
    found = spans(plan)
    assert found[0][0] == 0 and found[-1][1] == 100
    assert all(before[1] == after[0] for before, after in pairwise(found))
    assert all(start % 16 == 0 or start == 99 for start, _ in found)


def test_reading_reports_progress() -> None:
    session = ScriptedSession([0] * 4)
    ids = np.arange(40) % 10
    seen: list[tuple[int, int]] = []
    read(session, ids, ReadingPlan.of(40, SMALL), lambda *both: seen.append(both))
    assert seen == [(16, 40), (32, 40), (39, 40), (40, 40)]
    assert [token for part, _ in session.fed for token in part] == ids.tolist()


# When an answer ends ------------------------------------------------------------------------------


def answer(session: ScriptedSession, **settings: Any) -> list[int]:
    eos = settings.pop("eos", ())
    tokenizer = settings.pop("tokenizer", None)
    return list(
        iter_tokens(
            session,
            session.next_logits(),
            ql.GenerationConfig(**settings),
            prompt=np.array([1]),
            eos_token_ids=eos,
            tokenizer=tokenizer,
        )
    )


def test_an_answer_has_at_most_so_many_tokens_and_feeds_all_but_the_last() -> None:
    session = ScriptedSession([3, 4, 5, 6])
    assert answer(session, max_new_tokens=3) == [3, 4, 5]
    assert session.fed == [([3], None), ([4], None)]
    assert answer(ScriptedSession([3]), max_new_tokens=0) == []


def test_an_end_token_ends_and_is_given() -> None:
    assert answer(ScriptedSession([3, 4, 7, 5]), eos=(9, 7)) == [3, 4, 7]


def test_tokens_are_fed_only_when_the_next_is_asked_for() -> None:
    session = ScriptedSession([3, 4, 5])
    tokens = iter_tokens(
        session, session.next_logits(), ql.GenerationConfig(), prompt=np.array([1])
    )
    assert next(tokens) == 3 and session.fed == []
    assert next(tokens) == 4 and session.fed == [([3], None)]


@pytest.mark.parametrize(
    ("value", "named"), [(math.nan, "NaN"), (math.inf, "infinite"), (-math.inf, "infinite")]
)
def test_logits_that_are_no_numbers_are_an_error_with_their_position(
    value: float, named: str
) -> None:
    session = ScriptedSession([3, 4])
    session.feed([1, 2, 3, 4])
    logits = np.full(10, value, dtype=np.float32)
    tokens = iter_tokens(session, logits, ql.GenerationConfig(), prompt=np.array([1]))
    with pytest.raises(ql.InvalidValue, match=f"position 3 are {named}"):
        next(tokens)


def test_stop_strings_need_a_tokenizer() -> None:
    with pytest.raises(ql.InvalidValue, match="tokenizer"):
        answer(ScriptedSession([3]), stop_strings="x")


# generate -----------------------------------------------------------------------------------------


def test_generate_is_its_parts(model: ql.Model) -> None:
    ids = random_ids(CONFIG, 90, 5)
    session = model.session(SMALL)
    for start in range(0, 89, 16):
        session.feed(ids[start : min(start + 16, 89)])
    expected = []
    token = int(session.feed(ids[89:]).argmax())
    for _ in range(12):
        expected.append(token)
        token = int(session.feed([token]).argmax())
    result = model.generate(ids, max_new_tokens=12, memory=SMALL, eos_token_id=[])
    assert result.dtype == np.int64
    np.testing.assert_array_equal(result, [*ids, *expected])


def test_the_result_has_the_rank_of_the_input(model: ql.Model) -> None:
    ids = random_ids(CONFIG, 20, 6)
    flat = model.generate(ids, max_new_tokens=3, memory=SMALL)
    assert flat.shape == (23,)
    for form in (ids[np.newaxis], ids[np.newaxis].astype(np.uint8), [ids.tolist()]):
        result = model.generate(form, max_new_tokens=3, memory=SMALL)
        assert result.dtype == np.int64
        np.testing.assert_array_equal(result, flat[np.newaxis])
    for form in (ids.tolist(), ids.astype(np.int16), ids[::-1][::-1]):
        np.testing.assert_array_equal(model.generate(form, max_new_tokens=3, memory=SMALL), flat)
    np.testing.assert_array_equal(model.generate(ids, max_new_tokens=0, memory=SMALL), ids)


def test_without_memory_the_window_is_1k(model: ql.Model) -> None:
    ids = random_ids(CONFIG, 1400, 7)
    window = ql.MemoryConfig.window("1k", mode="infllm")
    np.testing.assert_array_equal(
        model.generate(ids, max_new_tokens=4),
        model.generate(ids, max_new_tokens=4, memory=window),
    )
    asking = ql.MemoryConfig.window("1k", mode="qllm", question_weight=1)
    np.testing.assert_array_equal(
        model.generate(ids, max_new_tokens=4, query_span=(3, 9)),
        model.generate(ids, max_new_tokens=4, query_span=(3, 9), memory=asking),
    )


@pytest.mark.parametrize("span", [(2, 7), (50, 55), (60, 70), (85, 90), (88, 90)])
def test_a_question_anywhere_is_heard(model: ql.Model, span: tuple[int, int]) -> None:
    ids = random_ids(CONFIG, 90, 8)
    result = model.generate(ids, max_new_tokens=5, memory=ASKING, query_span=span)
    assert len(result) == 95
    again = model.generate(ids, max_new_tokens=5, memory=ASKING, query_span=span)
    np.testing.assert_array_equal(result, again)


def test_other_modes_check_the_question_and_do_not_use_it(model: ql.Model) -> None:
    ids = random_ids(CONFIG, 60, 9)
    np.testing.assert_array_equal(
        model.generate(ids, max_new_tokens=4, memory=SMALL, query_span=(1, 5)),
        model.generate(ids, max_new_tokens=4, memory=SMALL),
    )
    with pytest.raises(ql.InvalidValue, match="outside the prompt"):
        model.generate(ids, memory=SMALL, query_span=(50, 61))


def test_end_tokens(model: ql.Model) -> None:
    ids = random_ids(CONFIG, 30, 10)
    free = model.generate(ids, max_new_tokens=8, memory=SMALL)
    third = int(free[32])
    stop = free.tolist().index(third, 30) + 1
    for eos in (third, [third, third], np.int64(third)):
        result = model.generate(ids, max_new_tokens=8, memory=SMALL, eos_token_id=eos)
        np.testing.assert_array_equal(result, free[:stop])
    configured = ql.Model({**CONFIG, "eos_token_id": third}, random_weights(CONFIG, 3))
    result = configured.generate(ids, max_new_tokens=8, memory=SMALL)
    np.testing.assert_array_equal(result, free[:stop])


def test_sampling_repeats_with_its_seed(model: ql.Model) -> None:
    ids = random_ids(CONFIG, 30, 11)

    def draw(seed: int) -> list[int]:
        settings = {"do_sample": True, "temperature": 1.5, "top_k": 50, "top_p": 0.95}
        result = model.generate(ids, max_new_tokens=12, memory=SMALL, seed=seed, **settings)
        return result.tolist()

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


class Listener:
    """Writes down what a streamer gets."""

    def __init__(self) -> None:
        self.got: list[list[int]] = []
        self.shapes: list[tuple[int, ...]] = []
        self.ends = 0

    def put(self, value: Any) -> None:
        self.shapes.append(value.shape)
        self.got.append(value.reshape(-1).tolist())

    def end(self) -> None:
        self.ends += 1


def test_a_streamer_hears_the_prompt_then_each_token(model: ql.Model) -> None:
    ids = random_ids(CONFIG, 20, 12)
    listener = Listener()
    result = model.generate(ids, max_new_tokens=4, memory=SMALL, streamer=listener)
    assert listener.shapes == [(1, 20), (1,), (1,), (1,), (1,)]
    assert [token for part in listener.got for token in part] == result.tolist()
    assert listener.ends == 1


def test_a_streamer_hears_the_end_of_a_failure(model: ql.Model) -> None:
    listener = Listener()

    def fail(done: int, total: int) -> None:
        raise LookupError("enough")

    with pytest.raises(LookupError):
        model.generate(random_ids(CONFIG, 20, 12), memory=SMALL, streamer=listener, progress=fail)
    assert listener.ends == 1


def test_a_bar_shows_reading(model: ql.Model, capsys: pytest.CaptureFixture[str]) -> None:
    ids = random_ids(CONFIG, 40, 12)
    silent = model.generate(ids, max_new_tokens=2, memory=SMALL, progress=False)
    assert capsys.readouterr().err == ""
    shown = model.generate(ids, max_new_tokens=2, memory=SMALL, progress=True)
    np.testing.assert_array_equal(shown, silent)
    assert "reading" in (err := capsys.readouterr().err) and "40.0/40.0" in err


def test_nan_weights_are_an_error_that_names_the_position() -> None:
    weights = random_weights(CONFIG, 3)
    weights["model.norm.weight"][5] = np.nan
    broken = ql.Model(CONFIG, weights)
    with pytest.raises(ql.InvalidValue, match="position 19 are NaN"):
        broken.generate(random_ids(CONFIG, 20, 1), memory=SMALL)


@pytest.mark.parametrize(
    ("ids", "error", "named"),
    [
        ([], ql.InvalidValue, "empty"),
        ([[]], ql.InvalidValue, "empty"),
        ([1, 97], ql.InvalidValue, r"input_ids\[1\] is 97"),
        ([-1], ql.InvalidValue, "-1"),
        ([[1], [2]], ql.InvalidValue, "2 sequences"),
        (np.ones((1, 1, 4), dtype=int), ql.InvalidValue, "shape"),
        (np.array(3), ql.InvalidValue, "shape"),
        ([1.0, 2.0], ql.InvalidType, "whole numbers"),
        ([True], ql.InvalidType, "whole numbers"),
        ("text", ql.InvalidType, "str"),
        ([[1], [2, 3]], ql.InvalidType, "list"),
        ([2**70], ql.InvalidType, "whole numbers"),
        (np.array([2**63], dtype=np.uint64), ql.InvalidValue, str(2**63)),
    ],
)
def test_prompts_that_cannot_be_read(
    model: ql.Model, ids: object, error: type[ql.Error], named: str
) -> None:
    with pytest.raises(error, match=named):
        model.generate(ids, memory=SMALL)


@pytest.mark.parametrize(
    ("options", "error", "named"),
    [
        ({"max_new_token": 3}, ql.InvalidType, "did you mean 'max_new_tokens'"),
        ({"temprature": 3}, ql.InvalidType, "did you mean 'temperature'"),
        ({"querry_span": 3}, ql.InvalidType, "did you mean 'query_span'"),
        ({"wibble": 3}, ql.InvalidType, "wibble.*it has max_new_tokens"),
        ({"memory": "1k"}, ql.InvalidType, "MemoryConfig.window"),
        ({"memory": ql.MemoryConfig()}, ql.InvalidValue, "query_span"),
        ({"query_span": (3, 3)}, ql.InvalidValue, "at least one token"),
        ({"query_span": (3, 31)}, ql.InvalidValue, "outside the prompt"),
        ({"query_span": (-1, 3)}, ql.InvalidValue, "query_span"),
        ({"query_span": 3}, ql.InvalidType, "pair"),
        ({"query_span": (1, 2, 3)}, ql.InvalidType, "pair"),
        ({"query_span": (1.5, 3)}, ql.InvalidType, "query_span"),
        ({"query_span": (1, 28), "memory": ASKING}, ql.InvalidValue, "27 tokens, more than"),
        ({"kv_dtype": "q4"}, ql.InvalidValue, "kv_dtype"),
        ({"progress": "yes"}, ql.InvalidType, "progress"),
        ({"stop_strings": "x"}, ql.MissingKey, "tokenizer"),
    ],
)
def test_wrong_options(
    model: ql.Model, options: dict[str, Any], error: type[ql.Error], named: str
) -> None:
    with pytest.raises(error, match=named):
        model.generate(random_ids(CONFIG, 30, 1), **{"max_new_tokens": 2, **options})


@pytest.mark.parametrize("max_new_tokens", [0, 2])
def test_a_wrong_progress_is_refused_before_the_streamer_hears_anything(
    model: ql.Model, max_new_tokens: int
) -> None:
    listener: Any = Listener()
    with pytest.raises(ql.InvalidType, match="progress"):
        model.generate([1, 2, 3], max_new_tokens=max_new_tokens, streamer=listener, progress="yes")
    assert not listener.got and not listener.ends


def test_settings_of_a_distribution_that_is_not_used_are_told(model: ql.Model) -> None:
    ids = random_ids(CONFIG, 5, 1)
    with pytest.warns(UserWarning, match="top_k, top_p without do_sample"):
        model.generate(ids, max_new_tokens=1, top_k=3, top_p=0.5)
    plain = model.generate(ids, max_new_tokens=1)
    # What others write to say "no sampling" is no reason to complain.
    same = model.generate(ids, max_new_tokens=1, do_sample=False, temperature=0.0, top_p=1.0)
    np.testing.assert_array_equal(plain, same)
