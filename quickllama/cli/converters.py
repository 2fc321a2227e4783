"""Words of the command line to values, for argparse: a wrong one is wrong usage."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TypeVar

from quickllama.checks import LARGEST, integer
from quickllama.errors import InvalidValue

__all__ = ["checked", "count"]

T = TypeVar("T")


def checked(check: Callable[[str], T]) -> Callable[[str], T]:
    """A converter for argparse: what ``check`` makes of a word."""

    def convert(text: str) -> T:
        try:
            return check(text)
        except (TypeError, ValueError) as problem:
            raise argparse.ArgumentTypeError(str(problem)) from None

    return convert


def count(low: int, high: int = LARGEST) -> Callable[[str], int]:
    """A converter for argparse: a whole number in ``low`` ... ``high``."""

    def convert(text: str) -> int:
        try:
            return integer("it", int(text), low, high)
        except InvalidValue as problem:
            raise argparse.ArgumentTypeError(str(problem)) from None
        except ValueError:
            raise argparse.ArgumentTypeError(f"it must be a whole number, not {text!r}") from None

    return convert
