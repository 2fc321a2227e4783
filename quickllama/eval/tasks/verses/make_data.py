"""Verses of the King James Bible with their labels: the one is asked for, given the other."""

from __future__ import annotations

from quickllama.eval.case import Case, Draft, Question, places_among
from quickllama.eval.haystack import verses

__all__ = ["DATA_FORMAT", "KINDS", "NEW_TOKENS", "PER_TEXT", "make"]

KINDS = ("words", "label")
NEW_TOKENS = {"words": 96, "label": 64}  # answers repeat the words that they were given
DATA_FORMAT = 2  # 1: 16 tokens of a label, which came to no label
PER_TEXT = 10

OPENING = 10  # words of a verse that a question gives
LEAST = 12  # words of a verse that is asked for


def make(draft: Draft) -> list[Case]:
    """One text: verses in a row from a random one on, and after the last one the first again."""
    known = verses()
    start = int(draft.rng.integers(len(known)))

    def build(count: int) -> tuple[str, list[Question]]:
        chosen = [known[(start + i) % len(known)] for i in range(max(count, len(draft.depths)))]
        lines = [f"{label} {words}" for label, words in chosen]
        long = [i for i, (_, words) in enumerate(chosen) if len(words.split()) >= LEAST]
        begins = [0]
        for line in lines:
            begins.append(begins[-1] + len(line) + 1)
        questions = []
        for depth, near in zip(draft.depths, places_among(draft.depths, len(chosen)), strict=True):
            index = min(long or range(len(chosen)), key=lambda i: abs(i - near))
            long = [i for i in long if i != index]
            label, words = chosen[index]
            place = (begins[index], begins[index] + len(lines[index]))
            opening = " ".join(words.split()[:OPENING])
            asked = {
                "words": (f"What are the words of {label}?", words),
                "label": (f'Which book, chapter and verse begins with "{opening}"?', label),
            }
            questions += [
                Question(kind, *_pair(asked[kind]), (place,), depth) for kind in draft.kinds
            ]
        return "\n".join(lines), questions

    return [draft.case(build, draft.length // 36)]


def _pair(asked: tuple[str, str]) -> tuple[str, tuple[str, ...]]:
    return asked[0], (asked[1],)
