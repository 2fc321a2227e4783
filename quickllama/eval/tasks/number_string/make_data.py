"""Ten digits, each beside its double, in repeated filler."""

from __future__ import annotations

from quickllama.eval.case import Case, Draft
from quickllama.eval.tasks.passkey.make_data import filled
from quickllama.eval.words import numbers

__all__ = ["KINDS", "NEW_TOKENS", "make"]

KINDS = ("number_string",)
NEW_TOKENS = 32


def make(draft: Draft) -> list[Case]:
    """One text with one string of digits."""
    (half,) = numbers(draft.rng, 1, digits=5)
    digits = "".join(2 * digit for digit in half)
    sentence = f"The row of digits is {digits}. Keep it in mind, for {digits} is the row.\n"
    return [filled(draft, "number_string", sentence, "What is the row of digits?", digits)]
