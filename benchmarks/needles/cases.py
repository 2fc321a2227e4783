"""What is asked: our own facts in ordinary texts, and the questions about them.

A case is one text of some length with several facts in it. Its questions:

* ``lexical``, ``paraphrase``: about one fact, in its words or in almost none of them;
* ``two``: about two facts at once;
* ``absent``: about the same thing as a fact, asking for what the text does not say;
* ``elsewhere``: about facts that are not in this text, in both wordings.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

FACTS = Path(__file__).with_name("facts.toml")
KINDS = ("lexical", "paraphrase", "two", "absent", "elsewhere")
ANSWERABLE = ("lexical", "paraphrase", "two")
Span = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Needle:
    """One fact of facts.toml."""

    sentence: str
    lexical: str
    paraphrase: str
    absent: str
    answers: tuple[str, ...]

    def answered_by(self, text: str) -> bool:
        """Whether ``text`` gives one of the right answers."""
        return any(answer in text.lower() for answer in self.answers)


@dataclasses.dataclass(frozen=True)
class Question:
    """A question; ``facts`` and ``places`` (characters in the text) of what answers it, empty if
    the text does not."""

    kind: str
    text: str
    facts: tuple[Needle, ...]
    places: tuple[Span, ...]


@dataclasses.dataclass(frozen=True)
class Case:
    """A text of about ``tokens`` tokens; ``name`` says which one."""

    name: str
    tokens: int
    text: str
    questions: tuple[Question, ...]


def load_facts(path: Path = FACTS) -> list[Needle]:
    """The facts of a file such as facts.toml."""
    rows = tomllib.loads(path.read_text("utf-8"))["fact"]
    return [Needle(**{**row, "answers": tuple(row["answers"])}) for row in rows]


def insert(text: str, facts: Sequence[Needle], rng: np.random.Generator) -> tuple[str, list[Span]]:
    """``text`` with each fact behind a sentence somewhere in its own part of it, and the places."""
    part = len(text) // len(facts)
    pieces: list[str] = []
    places: list[Span] = []
    done = length = 0
    for index, fact in enumerate(facts):
        wanted = index * part + int(rng.integers(part // 10, max(part * 9 // 10, 2)))
        found = text.find(". ", max(wanted, done))
        place = len(text) if found < 0 else found + 2
        pieces += [text[done:place], fact.sentence, " "]
        length += place - done
        places.append((length, length + len(fact.sentence)))
        length += len(fact.sentence) + 1
        done = place
    return "".join([*pieces, text[done:]]), places


def make_case(
    name: str,
    source: str,
    tokens: int,
    characters_per_token: float,
    facts: Sequence[Needle],
    present: int,
    seed: int | Sequence[int],
) -> Case:
    """A part of ``source`` with ``present`` of the facts; which ones and where comes from
    ``seed``."""
    rng = np.random.default_rng(seed)
    wanted = int(tokens * characters_per_token)
    if len(source) < wanted:
        raise ValueError(f"{name} has {len(source)} characters; {tokens} tokens need {wanted}")
    start = int(rng.integers(len(source) - wanted + 1))
    order = [facts[i] for i in rng.permutation(len(facts))]
    inside, outside = order[:present], order[present : 2 * present]
    text, places = insert(source[start : start + wanted], inside, rng)
    return Case(name, tokens, text, tuple(_questions(inside, places, outside)))


def _questions(
    inside: Sequence[Needle], places: Sequence[Span], outside: Sequence[Needle]
) -> list[Question]:
    found = list(zip(inside, places, strict=True))
    asked = [Question("lexical", fact.lexical, (fact,), (place,)) for fact, place in found]
    asked += [Question("paraphrase", fact.paraphrase, (fact,), (place,)) for fact, place in found]
    for (one, here), (other, there) in zip(found[::2], found[1::2], strict=False):
        words = f"{one.lexical} And {other.lexical[0].lower()}{other.lexical[1:]}"
        asked.append(Question("two", words, (one, other), (here, there)))
    asked += [Question("absent", fact.absent, (), ()) for fact in inside]
    for index, fact in enumerate(outside):
        asked.append(Question("elsewhere", (fact.lexical, fact.paraphrase)[index % 2], (), ()))
    return asked
