"""Sessions that look blocks up at every so manieth token only."""

from __future__ import annotations

from typing import Any

import numpy as np
from tiny_core import core_model, core_session, ids

from quickllama import _core


def chosen(session: _core.Session, steps: Any, layer: int = 1) -> list[list[int]]:
    """The blocks that a layer attends to at each of the steps, fed one by one."""
    begin = len(session.trace)
    for step in steps:
        session.feed([step])
    return [r.block_ids.tolist() for r in session.trace[begin:] if r.layer == layer]


def test_blocks_are_looked_up_at_every_so_manieth_token() -> None:
    model, steps = core_model(), ids(40, seed=5)
    paper, few = (core_session(model, trace=True, mode="infllm", lookup_interval=n) for n in (1, 4))
    for session in (paper, few):
        session.feed(ids(146))
    each, kept = chosen(paper, steps), chosen(few, steps)
    assert len(set(map(tuple, each))) > 3  # or the test would show nothing
    for at, blocks in enumerate(kept):
        if at and (146 + at) % 4:
            assert blocks == kept[at - 1], at
    assert kept[0] == each[0]  # after a longer chunk the first token looks up by itself
    assert sum(kept[at] != kept[at - 1] for at in range(1, 40)) > 3
    # Scores are the token's own in any case.
    assert not np.array_equal(few.trace[-1].scores, few.trace[-3].scores)


def test_a_choice_of_blocks_is_part_of_the_timeline() -> None:
    """Forks take it along, whatever else is read or interrupted; with a trace or without."""
    model, steps = core_model(), ids(12, seed=6)
    sessions = [
        core_session(model, trace=trace, mode="infllm", lookup_interval=6)
        for trace in (True, False, "choices")
    ]
    for session in sessions:
        session.feed(ids(146))
        session.feed(steps[:1])  # at 146, and looks up
        session.feed(steps[1:2])
    traced, plain, choices = sessions
    fork, pinned = plain.fork(), plain.fork()
    other = plain.fork()
    other.feed(ids(60, seed=9))
    expected = [traced.feed([step]) for step in steps[2:]]
    for step, logits in zip(steps[2:], expected, strict=True):
        np.testing.assert_array_equal(plain.feed([step]), logits)
        np.testing.assert_array_equal(fork.feed([step]), logits)
        np.testing.assert_array_equal(choices.feed([step]), logits)
    seen = zip(traced.trace, choices.trace, strict=True)
    assert all(np.array_equal(one.block_ids, other.block_ids) for one, other in seen)
    assert choices.trace[-1].block_ids.size and not choices.trace[-1].scores.size
    assert choices.nbytes < traced.nbytes
    pinned.pin([0, 1])
    assert not np.array_equal(pinned.feed(steps[2:3]), expected[0])
    pinned.pin(None)
    after = pinned.fork(trace=True)
    after.feed(steps[3:4])  # at 149: no old choice is left, and it looks up by itself
    for record in after.trace:
        best = np.argsort(-record.scores, kind="stable")[: after.topk]
        np.testing.assert_array_equal(record.block_ids, np.sort(best))
