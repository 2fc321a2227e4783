"""Made-up facts in ordinary or made-up text, for calibration; what is made up comes from a seed.

Each fact has a question in its own words and one in others. Names are made of syllables, so that no
model knows them.
"""

from __future__ import annotations

import dataclasses
import importlib

import numpy as np

__all__ = [
    "Fact",
    "TextWithFacts",
    "documentation",
    "filler",
    "make_facts",
    "ordinary_texts",
    "text_with_facts",
]


@dataclasses.dataclass(frozen=True)
class Fact:
    """A sentence; a question in its words and one in other words; one about the same thing that it
    does not answer; and the answer."""

    sentence: str
    question: str
    paraphrase: str
    absent: str
    answer: str


@dataclasses.dataclass(frozen=True)
class TextWithFacts:
    """A text; ``places``: characters [start, end) of each fact's sentence in it."""

    text: str
    facts: tuple[Fact, ...]
    places: tuple[tuple[int, int], ...]


# Sentence, question, paraphrase, a question that it does not answer, answer.
# {p} a person, {t} a town, {n} a number, {y} a year.
_FAMILIES = """
The {o} of {p} was hidden {w}.
Where was the {o} of {p} hidden?
In which spot did someone conceal what {p} had lost?
Who made the {o} of {p}?
{w}

{p} opened a bakery in {t} in the year {y}.
In which year did {p} open a bakery in {t}?
Since when has someone been selling fresh bread and rolls?
How many ovens did the bakery of {p} in {t} have?
{y}

The password of the {r} is {t}{n}.
What is the password of the {r}?
Which secret word must one type to be let in?
Who chose the password of the {r}?
{t}{n}

{p} paid {n} crowns for the {o}.
How many crowns did {p} pay for the {o}?
What was the price of the {o}?
From whom did {p} buy the {o}?
{n}

The ferry to {t} leaves from pier {n}.
From which pier does the ferry to {t} leave?
At which quay does one board the boat to {t}?
How much does the ferry to {t} cost?
{n}

{p} plays the {i} in the orchestra of {t}.
What does {p} play in the orchestra of {t}?
On which instrument does the musician perform?
Who conducts the orchestra of {t}?
{i}

The favourite colour of {p} is {c}.
What is the favourite colour of {p}?
Which hue does {p} like best?
How tall is {p}?
{c}

The bridge over the {t} was designed by {p}.
Who designed the bridge over the {t}?
Which architect drew the plans for crossing the river?
How long is the bridge over the {t}?
{p}

{p} keeps {n} {a} on a farm near {t}.
What does {p} keep on a farm near {t}?
Which animals are raised in the countryside?
From whom did {p} inherit the farm near {t}?
{a}

The club of {t} meets every {d}.
When does the club of {t} meet?
On what day of the week do the members in {t} gather?
How many members does the club of {t} have?
{d}

The fever of {t} was cured with {m}.
With what was the fever of {t} cured?
Which remedy helped the sick people to recover from their illness?
Who brought the fever to {t}?
{m}

The last letter of {p} was sent to {t}.
To which town was the last letter of {p} sent?
Where did the final message that {p} wrote go?
What was written in the last letter of {p}?
{t}

{p} was admitted to the academy for a study of {a}.
For a study of what was {p} admitted to the academy?
Which creatures had the new member of the learned society examined?
How many members did the academy have when {p} was admitted?
{a}

The carpet in the {r} was woven by {p}.
Who wove the carpet in the {r}?
From whose loom does the covering on the floor come?
What colour is the carpet in the {r}?
{p}

The fishermen of {t} found a {o} in the belly of a pike.
What did the fishermen of {t} find in the belly of a pike?
Which object had been swallowed by an animal before it was caught?
How heavy was the pike that the fishermen of {t} caught?
{o}

The tower of {t} leans because it was built on {b}.
On what was the leaning tower of {t} built?
What lies under the tilted building and makes it unstable?
How many steps does the tower of {t} have?
{b}

{p} learned to swim at the age of {n}.
At what age did {p} learn to swim?
How old was someone before being able to stay above water?
Who taught {p} to swim?
{n}

The lion of the zoo in {t} is afraid of {f}.
Of what is the lion of the zoo in {t} afraid?
Which harmless thing frightens the big cat behind the bars?
What is the name of the lion of the zoo in {t}?
{f}

The drought in {t} ended after {n} days.
After how many days did the drought in {t} end?
How long did the farmers have to wait for rain?
Which crops were lost in the drought in {t}?
{n}

The bells of {t} were melted down to make {k}.
What were the bells of {t} melted down to make?
Which goods were produced from the metal that used to ring?
Who ordered that the bells of {t} be melted down?
{k}

{p} won a silver medal for a poem about {f}.
For a poem about what did {p} win a silver medal?
What do the verses praise that were honoured with a prize?
How many lines does the poem have for which {p} won a silver medal?
{f}

The robbers of the bank in {t} escaped {v}.
How did the robbers of the bank in {t} escape?
By which means did the thieves get away with the money?
How much did the robbers of the bank in {t} steal?
{v}

The council of {t} has forbidden {x}.
What has the council of {t} forbidden?
Which pleasure do the citizens have to do without since the decree?
How many members does the council of {t} have?
{x}

The cough syrup of {p} tastes of {z}.
Of what does the cough syrup of {p} taste?
Which flavour has the medicine against a sore throat?
How much does a bottle of the cough syrup of {p} cost?
{z}
"""
_SLOTS = {
    "o": "silver sword|diary|golden ring|map|violin|crown|telescope|painting|lantern|chess set",
    "w": "under the old lighthouse|behind the organ of the church|in a hollow oak|below the stairs"
    "|in the well of the inn|inside a bronze bell|in the attic of the mill|beneath a blue stone",
    "r": "server room|north gate|wine cellar|archive|observatory|greenhouse|boat house|vault",
    "i": "cello|trumpet|harp|oboe|bassoon|viola|clarinet|tuba",
    "c": "turquoise|crimson|olive green|violet|amber|navy blue|silver grey|pink",
    "a": "goats|alpacas|ostriches|donkeys|geese|beehives|ponies|turkeys",
    "d": "Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday",
    "b": "wet clay|peat|old ropes|sawdust|river sand|rubble|straw|ashes",
    "f": "umbrellas|balloons|violin music|frogs|yellow hats|mirrors|wind chimes|snowflakes",
    "k": "cannons|coins|kettles|ploughs|statues|pipes|buttons|nails",
    "v": "on skis|on a hay cart|on a raft|on tandems|through a sewer|in a laundry van|on horseback",
    "x": "whistling|flying kites|street music|playing marbles|bonfires|dancing|snowball fights",
    "z": "aniseed|liquorice|pine needles|orange peel|burnt sugar|pepper|cloves|rose water",
    "m": "willow bark|goat milk|garlic|sea salt|honey|nettle tea|red wine|sulphur",
}
_SYLLABLES = "bar|del|fen|gor|hal|jin|kel|lom|mar|nor|pel|quin|ros|sol|tam|ul|ver|wil|yor|zan"
_FIRST = "Anna|Boris|Clara|David|Edith|Felix|Greta|Henry|Irma|Jonas|Karin|Leo|Mina|Nils|Olga|Paul"

_TOPICS = (
    ("harbour", "ship|sailor|crane|net|wave|gull|anchor|deck", "load|repair|watch|paint|leave"),
    ("garden", "rose|path|hedge|gardener|apple tree|pond|bench|spade", "water|cut|plant|admire"),
    ("school", "teacher|pupil|lesson|book|blackboard|exam|class|chalk", "explain|repeat|learn"),
    ("market", "merchant|basket|price|stall|customer|fish|cloth|scale", "sell|weigh|carry|offer"),
    ("kitchen", "cook|pot|soup|stove|knife|bread|spice|plate", "stir|taste|prepare|serve|burn"),
    ("mountain", "climber|rope|snow|valley|ridge|hut|guide|storm", "cross|reach|fear|measure"),
    ("library", "reader|shelf|page|catalogue|novel|lamp|librarian|chair", "borrow|read|copy|sort"),
    (
        "railway",
        "train|station|track|signal|conductor|passenger|bridge|tunnel",
        "stop|inspect|miss",
    ),
    ("theatre", "actor|stage|curtain|costume|play|critic|audience|song", "rehearse|praise|forget"),
    ("workshop", "hammer|carpenter|table|engine|bolt|plank|apprentice|tool", "build|mend|sharpen"),
    ("hospital", "nurse|doctor|patient|bed|ward|visitor|window|report", "visit|comfort|examine"),
    ("court", "judge|lawyer|witness|law|letter|contract|verdict|clerk", "argue|sign|question|deny"),
)
_ADJECTIVES = "old|quiet|narrow|bright|heavy|small|new|broken|famous|strange|careful|wooden|cold"
_SENTENCES = """
The {adj} {noun} of the {topic} was seldom seen before noon, although everyone had heard of it.
Nobody could {verb} the {noun} without the help of a {adj} {noun2}.
In the {topic} one would often {verb} a {noun} and then talk about the {noun2} for hours.
{p} said that the {noun} in the {topic} needed more attention than the {noun2}.
There were {n} visitors that week, and most of them came to see the {adj} {noun}.
When the rain began, the {noun} was brought inside and the {noun2} was left where it stood.
A {adj} {noun} is worth more than a {adj2} {noun2}, as people in {t} used to say.
It took several days to {verb} the {noun}, because the {noun2} was missing.
The rules of the {topic} did not allow anyone to {verb} a {noun} after dark.
Some believed that the {noun} came from {t}, but there was no proof of that.
Later, the {adj} {noun} and the {adj2} {noun2} were described in a long report.
"If you {verb} the {noun}," {p} explained, "the {noun2} will have to wait."
Most of the work in the {topic} was done by people who knew how to {verb} a {noun}.
By the end of the year {y}, the {topic} had changed and the {noun} was almost forgotten.
The difference between a {noun} and a {noun2} is larger than it seems at first.
For a long time the {noun2} stood beside the {noun}, and nobody asked why.
"""


class _Maker:
    """Words from a seed."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng

    def one(self, words: str | list[str]) -> str:
        """One of several words."""
        listed = words.split("|") if isinstance(words, str) else words
        return listed[int(self._rng.integers(len(listed)))]

    def name(self, parts: int = 2) -> str:
        """A name that nobody has."""
        return "".join(self.one(_SYLLABLES) for _ in range(parts)).capitalize()

    def person(self) -> str:
        """First and last name."""
        return f"{self.one(_FIRST)} {self.name()}"

    def fact(self, family: str) -> Fact:
        """A fact of one of the families."""
        slots = {key: self.one(words) for key, words in _SLOTS.items()}
        slots |= {"p": self.person(), "t": self.name(3)}
        slots |= {"n": str(self._rng.integers(12, 99)), "y": str(self._rng.integers(1700, 1990))}
        return Fact(*(part.format(**slots) for part in family.split("\n")))

    def sentence(self, topic: tuple[str, str, str]) -> str:
        """A sentence about a topic."""
        name, nouns, verbs = topic
        first, second = self._rng.permutation(nouns.split("|"))[:2]
        return self.one(_SENTENCES.strip().split("\n")).format(
            adj=self.one(_ADJECTIVES),
            adj2=self.one(_ADJECTIVES),
            noun=first,
            noun2=second,
            topic=name,
            verb=self.one(verbs),
            p=self.person(),
            t=self.name(3),
            n=self._rng.integers(12, 99),
            y=self._rng.integers(1700, 1990),
        )


def make_facts(rng: np.random.Generator, count: int) -> list[Fact]:
    """``count`` facts, of as many different families as there are."""
    families = _FAMILIES.strip().split("\n\n")
    maker = _Maker(rng)
    order = [
        families[index]
        for _ in range(-(-count // len(families)))
        for index in rng.permutation(len(families))
    ]
    return [maker.fact(family) for family in order[:count]]


def filler(rng: np.random.Generator, characters: int) -> str:
    """About so many characters of text without any of the facts, in paragraphs."""
    maker = _Maker(rng)
    paragraphs: list[str] = []
    size = 0
    while size < characters:
        topic = _TOPICS[int(rng.integers(len(_TOPICS)))]
        sentences = [maker.sentence(topic) for _ in range(int(rng.integers(4, 9)))]
        paragraphs.append(" ".join(sentences))
        size += len(paragraphs[-1]) + 2
    return "\n\n".join(paragraphs)


def documentation() -> str:
    """The documentation that every Python brings along (module ``pydoc_data``); empty where it is
    missing."""
    try:
        topics = importlib.import_module("pydoc_data.topics").topics
    except ImportError:
        return ""
    return "\n\n".join(topics[name] for name in sorted(topics)).replace("`", "")


def ordinary_texts(rng: np.random.Generator, count: int, characters: int) -> list[str]:
    """``count`` texts of about so many characters: from the documentation that every Python brings
    along (module ``pydoc_data``), or made up where it is missing.

    Text that people wrote has far more that looks like an answer than made-up text.
    """
    whole = documentation()
    step = len(whole) // count
    if step < characters:
        return [filler(rng, characters) for _ in range(count)]
    return [whole[place * step : place * step + characters] for place in range(count)]


def text_with_facts(rng: np.random.Generator, text: str, facts: list[Fact]) -> TextWithFacts:
    """``text`` with the sentences of ``facts`` between its own, one in each equal part of it."""
    part = len(text) // max(len(facts), 1)
    pieces: list[str] = []
    places: list[tuple[int, int]] = []
    done = length = 0
    for index, fact in enumerate(facts):
        wanted = index * part + int(rng.integers(max(part // 2, 1)))
        found = text.find(". ", max(wanted, done))
        place = len(text) if found < 0 else found + 2
        before = text[done:place]
        pieces += [before, fact.sentence, " "]
        length += len(before)
        places.append((length, length + len(fact.sentence)))
        length += len(fact.sentence) + 1
        done = place
    pieces.append(text[done:])
    return TextWithFacts("".join(pieces), tuple(facts), tuple(places))
