"""Chains of assignments in ordinary text: which variables have a value?"""

from __future__ import annotations

from quickllama.eval.case import Case, Draft, Question, insert
from quickllama.eval.words import codes, numbers

__all__ = ["KINDS", "NEEDS", "NEW_TOKENS", "PER_TEXT", "make"]

KINDS = ("variable_tracking",)
NEW_TOKENS = 64
PER_TEXT = 3
NEEDS = ("texts",)

HOPS = 4
FEWEST = 2  # chains in a text, however few are asked for


def make(draft: Draft) -> list[Case]:
    """One text with as many chains asked for as the draft has depths; links lie anywhere, in their
    order."""
    chains = max(len(draft.depths), FEWEST)
    size = HOPS + 1
    names = codes(draft.rng, chains * size)
    values = numbers(draft.rng, chains, digits=5)
    # Which chain comes next in the text; each one's links come in order.
    turns = draft.rng.permutation([i for i in range(chains) for _ in range(size)]).tolist()
    depths = sorted(draft.rng.integers(2, 99, len(turns)).tolist())
    links = [iter(range(chain * size, (chain + 1) * size)) for chain in range(chains)]
    order = [next(links[chain]) for chain in turns]
    sentences = []
    for link in order:
        right = names[link - 1] if link % size else values[link // size]
        sentences.append(f"SET {names[link]} = {right}.")
    start = draft.haystack.start(draft.rng)

    def build(characters: int) -> tuple[str, list[Question]]:
        text = draft.haystack.piece(start, characters)
        text, found = insert(text, sentences, depths)
        questions = []
        for chain in range(len(draft.depths)):
            own = range(chain * size, (chain + 1) * size)
            words = (
                f"Which {size} variables have the value {values[chain]}, SET to it or to another "
                "variable that has it? Give their names."
            )
            spans = tuple(found[order.index(i)] for i in own)
            expected = tuple(names[i] for i in own)
            questions.append(Question("variable_tracking", words, expected, spans))
        return text, questions

    return [draft.case(build, 4 * draft.length)]
