"""Facts of our own in ordinary text, asked for in several ways."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from quickllama.documents.answer import Span
from quickllama.errors import InvalidValue
from quickllama.eval.case import Case, Draft, Question, insert
from quickllama.eval.facts import Fact, load_facts
from quickllama.eval.words import numbers, places

__all__ = ["KINDS", "NEEDS", "NEW_TOKENS", "PER_TEXT", "USUAL", "make"]

KINDS = ("lexical", "paraphrase", "two", "absent", "elsewhere", "distractors")
USUAL = ("lexical",)
NEW_TOKENS = 32
PER_TEXT = 10
NEEDS = ("texts", "facts")

ALIKE = 3  # sentences of the same form beside each one that is asked for
# Sentence and question; {t} a village, {n} the number that answers.
_FORMS = (
    ("The well of {t} is {n} spans deep.", "How many spans deep is the well of {t}?"),
    ("The mill of {t} was sold for {n} florins.", "For how many florins was the mill of {t} sold?"),
    ("The bell of {t} weighs {n} pounds.", "How many pounds does the bell of {t} weigh?"),
    ("The bridge of {t} has {n} planks.", "How many planks does the bridge of {t} have?"),
    ("The orchard of {t} counts {n} trees.", "How many trees does the orchard of {t} count?"),
)


def make(draft: Draft) -> list[Case]:
    """One text with a fact of the file for each depth, and one with sentences that look alike."""
    cases = []
    if set(draft.kinds) - {"distractors"}:
        cases.append(_with_facts(draft))
    if "distractors" in draft.kinds:
        cases.append(_with_distractors(draft))
    return cases


def _with_facts(draft: Draft) -> Case:
    facts = load_facts(draft.facts)
    many = len(draft.depths)
    wanted = 2 * many if "elsewhere" in draft.kinds else many
    if len(facts) < wanted:
        raise InvalidValue(
            f"a text with {many} facts needs a file of at least {wanted}, and this one has "
            f"{len(facts)}; ask for fewer questions, or give a longer file"
        )
    order = draft.shared.permutation(len(facts))
    # One text after the other takes the next facts of one order, so that they repeat late.
    chosen = [facts[order[(draft.index * PER_TEXT + i) % len(facts)]] for i in range(wanted)]
    inside, outside = chosen[:many], chosen[many:]
    start = draft.haystack.start(draft.rng)

    def build(characters: int) -> tuple[str, list[Question]]:
        text = draft.haystack.piece(start, characters)
        text, found = insert(text, [fact.sentence for fact in inside], draft.depths)
        asked = _questions(inside, found, draft.depths, outside)
        return text, [question for question in asked if question.kind in draft.kinds]

    return draft.case(build, 4 * draft.length)


def _questions(
    inside: Sequence[Fact], found: Sequence[Span], depths: Sequence[int], outside: Sequence[Fact]
) -> Iterator[Question]:
    for fact, place, depth in zip(inside, found, depths, strict=True):
        yield Question("lexical", fact.lexical, fact.answers, (place,), depth)
        yield Question("paraphrase", fact.paraphrase, fact.answers, (place,), depth)
        yield Question("absent", fact.absent, ())
    for one in range(0, len(inside) - 1, 2):
        first, second = inside[one], inside[one + 1]
        words = f"{first.lexical} And {second.lexical[0].lower()}{second.lexical[1:]}"
        # Each expected entry is one fact; any of its answers, divided by "|", will do.
        expected = tuple("|".join(fact.answers) for fact in (first, second))
        yield Question("two", words, expected, (found[one], found[one + 1]))
    for number, fact in enumerate(outside):
        yield Question("elsewhere", (fact.lexical, fact.paraphrase)[number % 2], ())


def _with_distractors(draft: Draft) -> Case:
    many = len(draft.depths)
    names = places(draft.rng, many * (1 + ALIKE))
    values = numbers(draft.rng, len(names), digits=3)
    start = draft.haystack.start(draft.rng)
    # Those asked for come first in names, values and depths; ``order`` is that in the text.
    depths = [*draft.depths, *draft.rng.integers(2, 99, many * ALIKE).tolist()]
    order = sorted(range(len(names)), key=lambda i: depths[i])
    forms = [_FORMS[i % many % len(_FORMS)] for i in range(len(names))]
    sentences = [forms[i][0].format(t=names[i], n=values[i]) for i in order]

    def build(characters: int) -> tuple[str, list[Question]]:
        text = draft.haystack.piece(start, characters)
        text, found = insert(text, sentences, [depths[i] for i in order])
        questions = [
            Question(
                "distractors",
                forms[i][1].format(t=names[i]),
                (values[i],),
                (found[order.index(i)],),
                depths[i],
            )
            for i in range(many)
        ]
        return text, questions

    return draft.case(build, 4 * draft.length)
