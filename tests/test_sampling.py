"""Choosing tokens: each step on cases worked out by hand, and what is drawn against its odds."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from quickllama import sampling
from quickllama.config import GenerationConfig
from quickllama.sampling import Sampler, probabilities

OUT = -np.inf
NOTHING = np.array([], dtype=np.int64)


def row(*values: float) -> NDArray[np.float32]:
    return np.array(values, dtype=np.float32)


def odds(*values: float) -> NDArray[np.float32]:
    """Logits with these probabilities."""
    return np.log(np.array(values)).astype(np.float32)


def kept(logits: NDArray[np.float32]) -> list[int]:
    return np.flatnonzero(logits > OUT).tolist()


def test_probabilities_survive_large_logits() -> None:
    np.testing.assert_allclose(probabilities(row(1e4, 1e4, OUT)), [0.5, 0.5, 0])


def test_repetition_penalty_weakens_what_was_there() -> None:
    seen = np.array([True, True, False, True])
    result = sampling.repetition_penalty(row(3, -3, 3, 0), seen, 1.5)
    np.testing.assert_array_equal(result, row(2, -4.5, 3, 0))


def test_temperature_divides() -> None:
    logits = row(1, 3, 2)
    for value in (0.25, 4):
        expected = np.exp(np.array([1, 3, 2]) / value)
        found = probabilities(sampling.temperature(logits, value))
        np.testing.assert_allclose(found, expected / expected.sum(), rtol=1e-6)
    coldest = probabilities(sampling.temperature(logits, 1e-40))
    np.testing.assert_array_equal(coldest, [0, 1, 0])


def test_top_k_keeps_ties_of_the_last() -> None:
    logits = row(1, 4, 2, 4, 3, 3)
    assert kept(sampling.top_k(logits, 1)) == [1, 3]
    assert kept(sampling.top_k(logits, 2)) == [1, 3]
    assert kept(sampling.top_k(logits, 3)) == [1, 3, 4, 5]
    for everything in (0, 6, 7):
        assert kept(sampling.top_k(logits, everything)) == list(range(6))


def test_top_p_keeps_the_fewest_that_reach_the_mass() -> None:
    logits = odds(0.1, 0.5, 0.25, 0.15)
    assert kept(sampling.top_p(logits, 0.4)) == [1]
    assert kept(sampling.top_p(logits, 0.6)) == [1, 2]
    assert kept(sampling.top_p(logits, 0.8)) == [1, 2, 3]
    assert kept(sampling.top_p(logits, 0.95)) == [0, 1, 2, 3]
    assert kept(sampling.top_p(logits, 1e-9)) == [1]
    assert kept(sampling.top_p(logits, 1.0)) == [0, 1, 2, 3]


def test_min_p_is_relative_to_the_best() -> None:
    logits = odds(0.1, 0.5, 0.26, 0.14)
    assert kept(sampling.min_p(logits, 0.5)) == [1, 2]
    assert kept(sampling.min_p(logits, 0.19)) == [0, 1, 2, 3]
    assert kept(sampling.min_p(logits, 1.0)) == [1]
    assert kept(sampling.min_p(logits, 0.0)) == [0, 1, 2, 3]


def test_steps_leave_their_input_alone() -> None:
    logits = row(1, 2, 3)
    sampling.top_k(logits, 1)
    sampling.top_p(logits, 0.1)
    sampling.min_p(logits, 0.9)
    sampling.temperature(logits, 2)
    sampling.repetition_penalty(logits, np.array([True] * 3), 2)
    np.testing.assert_array_equal(logits, row(1, 2, 3))


def test_the_order_of_the_steps() -> None:
    # At temperature 2 the odds 0.64 : 0.16 : 0.16 : 0.04 become 0.8 : 0.4 : 0.4 : 0.2 over 1.8.
    # top_k 3 leaves 0.5, 0.25, 0.25, and of these top_p 0.6 needs the first two. In any other
    # order the first token alone has more than 0.6.
    options = GenerationConfig(do_sample=True, temperature=2, top_k=3, top_p=0.6, seed=1)
    sampler = Sampler(options, 4, NOTHING)
    drawn = {sampler.choose(odds(0.64, 0.165, 0.155, 0.04)) for _ in range(200)}
    assert drawn == {0, 1}


def test_greedy_takes_the_best_and_knows_the_penalty() -> None:
    options = GenerationConfig(repetition_penalty=2)
    sampler = Sampler(options, 3, np.array([0]))
    logits = row(4, 3, 2.5)
    assert [sampler.choose(logits) for _ in range(3)] == [1, 2, 0]
    assert Sampler(GenerationConfig(), 3, NOTHING).choose(row(1, 5, 5)) == 1


def test_draws_follow_the_odds() -> None:
    chances = np.array([0.05, 0.45, 0.0, 0.3, 0.2])
    with np.errstate(divide="ignore"):
        logits = odds(*chances)
    sampler = Sampler(GenerationConfig(do_sample=True, seed=7), 5, NOTHING)
    n = 20_000
    counts = np.bincount([sampler.choose(logits) for _ in range(n)], minlength=5)
    assert counts[2] == 0
    spread = np.sqrt(n * chances * (1 - chances))
    assert np.all(np.abs(counts - n * chances) <= 4 * spread)


@pytest.mark.parametrize("settings", [{"top_k": 2}, {"top_p": 0.7}, {"min_p": 0.6}])
def test_draws_stay_among_the_kept(settings: dict[str, float]) -> None:
    logits = odds(0.2, 0.45, 0.3, 0.05)
    options = GenerationConfig(do_sample=True, seed=3, **settings)
    sampler = Sampler(options, 4, NOTHING)
    drawn = [sampler.choose(logits) for _ in range(2000)]
    assert set(drawn) == {1, 2}
    assert abs(drawn.count(1) / 2000 - 0.6) < 0.05


def test_a_seed_repeats_its_draws() -> None:
    def draws(seed: int | None) -> list[int]:
        sampler = Sampler(GenerationConfig(do_sample=True, seed=seed), 100, NOTHING)
        return [sampler.choose(np.zeros(100, dtype=np.float32)) for _ in range(20)]

    assert draws(5) == draws(5)
    assert draws(5) != draws(6)
    assert draws(None) != draws(None)
