"""People walk between rooms and carry things; what they did is spread over ordinary text.

The five kinds of question are those of bAbI's first five tasks (Weston et al., 2015), which
BABILong hides in long texts; the simulation, names and sentences are our own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from quickllama.eval.case import Case, Draft, Question, insert

__all__ = ["KINDS", "LABELS", "NEEDS", "NEW_TOKENS", "PER_TEXT", "make"]

KINDS = ("qa1", "qa2", "qa3", "qa4", "qa5")
NEW_TOKENS = 24
PER_TEXT = 5
NEEDS = ("texts",)

PEOPLE = ("Agnes", "Boris", "Clara", "Dmitri", "Edith", "Felix")
ROOMS = ("attic", "cellar", "chapel", "library", "pantry", "stable")
THINGS = ("candle", "kettle", "lantern", "ledger", "saddle", "violin")
WAYS = ("north", "east", "south", "west")
LABELS = {"qa1": ROOMS, "qa2": ROOMS, "qa3": ROOMS, "qa4": ROOMS, "qa5": PEOPLE}
STEPS = 40  # things that happen in a text


@dataclasses.dataclass(frozen=True)
class Asked:
    """A question, its answer, and which of the sentences it rests on."""

    text: str
    answer: str
    rests_on: tuple[int, ...]


def make(draft: Draft) -> list[Case]:
    """One text for each kind, with so many questions as the draft has depths, as far as what
    happened gives so many; the sentences lie anywhere, in their order."""
    cases = []
    for kind in draft.kinds:
        rng = np.random.default_rng([int(draft.rng.integers(2**32)), KINDS.index(kind)])
        sentences, asked = _STORIES[kind](rng)
        chosen = [asked[i] for i in rng.permutation(len(asked))[: len(draft.depths)].tolist()]
        depths = sorted(rng.integers(1, 100, len(sentences)).tolist())
        start = draft.haystack.start(rng)
        cases.append(_case(draft, kind, sentences, chosen, depths, start))
    return cases


def _case(
    draft: Draft,
    kind: str,
    sentences: Sequence[str],
    asked: Sequence[Asked],
    depths: Sequence[int],
    start: int,
) -> Case:
    def build(characters: int) -> tuple[str, list[Question]]:
        text, found = insert(draft.haystack.piece(start, characters), sentences, depths)
        questions = [
            Question(kind, one.text, (one.answer,), tuple(found[i] for i in one.rests_on))
            for one in asked
        ]
        return text, questions

    return draft.case(build, 4 * draft.length)


class House:
    """Who is where, who holds what, and which sentences said so."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.sentences: list[str] = []
        self.room: dict[str, tuple[str, int]] = {}  # of a person; the sentence
        self.holder: dict[str, tuple[str, int]] = {}  # of a thing; the sentence that it was taken
        # Of a thing: rooms one after the other, each with the sentences that it follows from.
        self.seen: dict[str, list[tuple[str, tuple[int, ...]]]] = {thing: [] for thing in THINGS}

    def one(self, items: Sequence[str]) -> str:
        """One of them."""
        return items[int(self.rng.integers(len(items)))]

    def say(self, sentence: str) -> int:
        """Note what happened; its number."""
        self.sentences.append(sentence)
        return len(self.sentences) - 1

    def walk(self) -> None:
        """Somebody goes somewhere else, with what they hold."""
        person = self.one(PEOPLE)
        here = self.room.get(person, ("", 0))[0]
        room = self.one([room for room in ROOMS if room != here])
        number = self.say(f"{person} went to the {room}.")
        self.room[person] = room, number
        for thing, (holder, taken) in self.holder.items():
            if holder == person:
                self.seen[thing].append((room, (taken, number)))

    def take(self) -> None:
        """Somebody whose room is known picks up a thing that nobody holds, or puts one down."""
        if not self.room:
            return self.walk()
        person = self.one(sorted(self.room))
        room, came = self.room[person]
        held = [thing for thing, (holder, _) in self.holder.items() if holder == person]
        if held and self.rng.integers(3) == 0:
            thing = self.one(held)
            self.say(f"{person} put the {thing} down.")
            del self.holder[thing]
            return None
        # A thing that lies somewhere is picked up there.
        free = [
            thing
            for thing in THINGS
            if thing not in self.holder
            and (not self.seen[thing] or self.seen[thing][-1][0] == room)
        ]
        if not free:
            return self.walk()
        thing = self.one(free)
        number = self.say(f"{person} picked up the {thing}.")
        self.holder[thing] = person, number
        if not self.seen[thing]:
            self.seen[thing].append((room, (came, number)))
        return None


def _walks(rng: np.random.Generator) -> tuple[list[str], list[Asked]]:
    house = House(rng)
    for _ in range(STEPS):
        house.walk()
    asked = [
        Asked(f"In which room is {person} now?", room, (number,))
        for person, (room, number) in sorted(house.room.items())
    ]
    return house.sentences, asked


def _errands(rng: np.random.Generator) -> House:
    house = House(rng)
    for _ in range(STEPS):
        if rng.integers(2):
            house.walk()
        else:
            house.take()
    return house


def _things(rng: np.random.Generator) -> tuple[list[str], list[Asked]]:
    house = _errands(rng)
    asked = [
        Asked(f"In which room is the {thing} now?", seen[-1][0], seen[-1][1])
        for thing, seen in house.seen.items()
        if seen
    ]
    return house.sentences, asked


def _earlier(rng: np.random.Generator) -> tuple[list[str], list[Asked]]:
    house = _errands(rng)
    asked = []
    for thing, seen in house.seen.items():
        rooms = [room for room, _ in seen]
        for place in range(len(seen) - 1, 0, -1):
            if rooms.count(rooms[place]) == 1:  # "before" has one meaning
                words = f"In which room was the {thing} before it was in the {rooms[place]}?"
                rests_on = tuple(sorted({*seen[place - 1][1], *seen[place][1]}))
                asked.append(Asked(words, rooms[place - 1], rests_on))
                break
    return house.sentences, asked


def _neighbours(rng: np.random.Generator) -> tuple[list[str], list[Asked]]:
    """Rooms in a row, each a way from the one before it; no two pairs are alike."""
    order = [ROOMS[i] for i in rng.permutation(len(ROOMS)).tolist()]
    sentences: list[str] = []
    asked: list[Asked] = []
    back = ""
    for one, other in zip(order[1:], order, strict=False):
        ways = [way for way in WAYS if way != back]  # else two rooms would lie there
        way = ways[int(rng.integers(len(ways)))]
        back = WAYS[(WAYS.index(way) + 2) % len(WAYS)]
        number = len(sentences)
        sentences.append(f"The {one} lies {way} of the {other}.")
        if rng.integers(2):
            asked.append(Asked(f"Which room lies {way} of the {other}?", one, (number,)))
        else:
            asked.append(Asked(f"Of which room does the {one} lie {way}?", other, (number,)))
    return sentences, asked


def _gifts(rng: np.random.Generator) -> tuple[list[str], list[Asked]]:
    """Things change hands; each is asked about by one who gave or got it only once."""
    sentences: list[str] = []
    gifts: list[tuple[str, str, str]] = []
    for _ in range(STEPS // 2):
        giver, getter = (PEOPLE[i] for i in rng.permutation(len(PEOPLE))[:2].tolist())
        thing = THINGS[int(rng.integers(len(THINGS)))]
        gifts.append((giver, thing, getter))
        sentences.append(f"{giver} gave the {thing} to {getter}.")
    asked = []
    for number, (giver, thing, getter) in enumerate(gifts):
        if sum((a, b) == (giver, thing) for a, b, _ in gifts) == 1:
            words = f"To whom did {giver} give the {thing}?"
            asked.append(Asked(words, getter, (number,)))
        elif sum((b, c) == (thing, getter) for _, b, c in gifts) == 1:
            asked.append(Asked(f"Who gave the {thing} to {getter}?", giver, (number,)))
    return sentences, asked


_STORIES: dict[str, Callable[[np.random.Generator], tuple[list[str], list[Asked]]]] = {
    "qa1": _walks,
    "qa2": _things,
    "qa3": _earlier,
    "qa4": _neighbours,
    "qa5": _gifts,
}
