"""Short numbered documents, one of which holds a fact of our own."""

from __future__ import annotations

from quickllama.errors import InvalidValue
from quickllama.eval.case import Case, Draft, Question, places_among
from quickllama.eval.facts import load_facts

__all__ = ["KINDS", "NEEDS", "NEW_TOKENS", "PER_TEXT", "make"]

KINDS = ("fact_qa",)
NEW_TOKENS = 32
PER_TEXT = 10
NEEDS = ("texts", "facts")

CHARACTERS = 600  # of a document


def make(draft: Draft) -> list[Case]:
    """One text; the document at each depth begins with a fact."""
    facts = load_facts(draft.facts)
    many = len(draft.depths)
    if len(facts) < many:
        raise InvalidValue(f"{many} questions need as many facts, and the file has {len(facts)}")
    order = draft.shared.permutation(len(facts))
    chosen = [facts[order[(draft.index * PER_TEXT + i) % len(facts)]] for i in range(many)]
    start = draft.haystack.start(draft.rng)

    def build(characters: int) -> tuple[str, list[Question]]:
        source = " ".join(draft.haystack.piece(start, characters).split())
        documents = max(len(source) // CHARACTERS, many)
        step = len(source) // documents
        holders = dict(zip(places_among(draft.depths, documents), chosen, strict=True))
        parts: list[str] = []
        questions: list[Question] = []
        length = 0
        for number in range(documents):
            head = f"Document {number + 1}\n"
            fact = holders.get(number)
            if fact is not None:
                place = (length + len(head), length + len(head) + len(fact.sentence))
                depth = draft.depths[len(questions)]
                asked = Question("fact_qa", fact.lexical, fact.answers, (place,), depth)
                questions.append(asked)
                head += fact.sentence + " "
            parts.append(f"{head}{source[number * step : (number + 1) * step].strip()}\n\n")
            length += len(parts[-1])
        return "".join(parts), questions

    return [draft.case(build, 4 * draft.length)]
