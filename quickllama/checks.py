"""The wall for single values: each returns its value in a plain type or raises a sentence."""

from __future__ import annotations

import difflib
import math
import operator
import re
from collections.abc import Iterable, Sequence
from typing import SupportsFloat, SupportsIndex

from quickllama.errors import InvalidType, InvalidValue

__all__ = ["LARGEST", "byte_size", "choice", "flag", "integer", "nearest", "number", "token_span"]

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([KMGT])(I?))?B?")

LARGEST = 2**31 - 1
"""The largest size that the core accepts."""


def integer(name: str, value: object, low: int, high: int = LARGEST) -> int:
    """``value`` as an int in ``low`` ... ``high``.

    Raises InvalidType if it is no whole number (bool included), InvalidValue if out of range.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        raise InvalidType(f"{name} must be a whole number, not {value!r}")
    try:
        result = operator.index(value)
    except TypeError:  # an array of several numbers
        raise InvalidType(f"{name} must be a whole number, not {value!r}") from None
    if not low <= result <= high:
        low_only = high == LARGEST and result < low
        bounds = f"at least {low}" if low_only else f"between {low} and {high}"
        raise InvalidValue(f"{name} must be {bounds}, not {result}")
    return result


def number(
    name: str,
    value: object,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    above: float = -math.inf,
) -> float:
    """``value`` as a finite float, at least ``low``, more than ``above``, at most ``high``.

    Raises InvalidType if it is no number (bool included), InvalidValue if out of range.
    """
    if isinstance(value, bool | str | bytes) or not isinstance(value, SupportsFloat):
        raise InvalidType(f"{name} must be a number, not {value!r}")
    try:
        result = float(value)
    except (TypeError, ValueError, OverflowError):
        raise InvalidType(f"{name} must be a number, not {value!r}") from None
    if not (math.isfinite(result) and low <= result <= high and result > above):
        bounds = [
            text
            for text, given in (
                (f"at least {low:g}", math.isfinite(low)),
                (f"more than {above:g}", math.isfinite(above)),
                (f"at most {high:g}", math.isfinite(high)),
            )
            if given
        ]
        expected = "a finite number" + (f", {' and '.join(bounds)}" if bounds else "")
        raise InvalidValue(f"{name} must be {expected}, not {result:g}")
    return result


def byte_size(name: str, value: object) -> int:
    """``value`` as bytes: a whole number, or a text such as ``"500MB"`` or ``"1.5 GiB"`` (KB, MB,
    GB, TB: powers of 1000; KiB ...: of 1024).

    Raises InvalidType if it is neither, InvalidValue if it is less than one byte or no such text.
    """
    if not isinstance(value, str):
        return integer(name, value, 1, 2**62)
    found = _SIZE.fullmatch(value.strip().upper())
    if found is None:
        raise InvalidValue(
            f"{name} must be a number of bytes, or a text such as '1GB' or '512 MiB', not {value!r}"
        )
    step = 1024 if found[3] else 1000
    return integer(name, int(float(found[1]) * step ** " KMGT".index(found[2] or " ")), 1, 2**62)


def flag(name: str, value: object) -> bool:
    """``value`` if it is True or False; else InvalidType."""
    if not isinstance(value, bool):
        raise InvalidType(f"{name} must be True or False, not {value!r}")
    return value


def choice(name: str, value: object, options: Sequence[str]) -> str:
    """``value`` if it is one of ``options``; else InvalidType (no string) or InvalidValue."""
    listed = ", ".join(repr(option) for option in options)
    if not isinstance(value, str):
        raise InvalidType(f"{name} must be one of {listed}, not {value!r}")
    if value not in options:
        raise InvalidValue(
            f"{name} must be one of {listed}, not {value!r}{nearest(value, options)}"
        )
    return value


def nearest(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` for the known name most like ``name``, or ``""``."""
    found = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {found[0]!r}?" if found else ""


def token_span(name: str, value: object) -> tuple[int, int]:
    """``value`` as (start, end) of a span of tokens, end not included, not empty.

    Raises InvalidType if it is no pair of whole numbers, InvalidValue if empty or negative.
    """
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise InvalidType(f"{name} must be a pair (start, end) of token positions, not {value!r}")
    pair = list(value)
    if len(pair) != 2:
        raise InvalidType(f"{name} must be a pair (start, end) of token positions, not {value!r}")
    start = integer(f"the start of {name}", pair[0], 0, 2**62)
    end = integer(f"the end of {name}", pair[1], 0, 2**62)
    if end <= start:
        raise InvalidValue(f"{name} must hold at least one token, and ({start}, {end}) holds none")
    return start, end
