"""Made-up words, names and numbers for the tasks, other ones than calibration's."""

from __future__ import annotations

import uuid

import numpy as np

__all__ = ["codes", "identifiers", "invented_words", "numbers", "places"]

_BEGINNINGS = "Alder Bram Cinder Dun Elm Fair Gorse Hazel Iron Juniper Kings Lark Moss Nettle"
_BEGINNINGS += " Oaken Pebble Quarry Raven Sedge Thistle Umber Vale Willow Yarrow"
_ENDINGS = "bank brook combe den fold gate ham holt ley mere mouth ness reach ridge stead wick"
_SYLLABLES = "ba be bo da de di do fa fe ga go ka ke ki ko la le li lo ma me mi mo na ne ni no pa"
_SYLLABLES += " pe po ra re ri ro sa se si so ta te ti to va ve vi vo za ze zo"


def _drawn(rng: np.random.Generator, firsts: list[str], lasts: list[str], count: int) -> list[str]:
    """``count`` different pairs."""
    chosen = rng.choice(len(firsts) * len(lasts), count, replace=False)
    return [firsts[i // len(lasts)] + lasts[i % len(lasts)] for i in chosen.tolist()]


def places(rng: np.random.Generator, count: int) -> list[str]:
    """``count`` different names of villages, at most 384."""
    return _drawn(rng, _BEGINNINGS.split(), _ENDINGS.split(), count)


def numbers(rng: np.random.Generator, count: int, digits: int = 7) -> list[str]:
    """``count`` different numbers of so many digits."""
    found: dict[str, None] = {}
    while len(found) < count:
        found[str(rng.integers(10 ** (digits - 1), 10**digits))] = None
    return list(found)


def identifiers(rng: np.random.Generator, count: int) -> list[str]:
    """``count`` random UUIDs."""
    raw = rng.bytes(16 * count)
    parts = (raw[16 * i : 16 * i + 16] for i in range(count))
    return [str(uuid.UUID(bytes=part, version=4)) for part in parts]


def codes(rng: np.random.Generator, count: int) -> list[str]:
    """``count`` different names of variables, five capital letters each."""
    found: dict[str, None] = {}
    while len(found) < count:
        letters = rng.integers(26, size=5) + ord("A")
        found["".join(map(chr, letters.tolist()))] = None
    return list(found)


def invented_words(rng: np.random.Generator, count: int) -> list[str]:
    """``count`` different words of three syllables, at most 117,649."""
    syllables = _SYLLABLES.split()
    pairs = [a + b for a in syllables for b in syllables]
    count = min(count, len(pairs) * len(syllables))
    return _drawn(rng, pairs, syllables, count)
