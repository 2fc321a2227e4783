"""How keys and values are rounded when they are kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def round_to_bfloat16(x: Floats) -> Floats:
    """The nearest numbers with 8 significant bits, ties to even."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    upper = bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))
    rounded: Floats = (upper & np.uint32(0xFFFF0000)).view(np.float32)
    return rounded


def round_to_int8(x: Floats) -> Floats:
    """The nearest multiples of a scale of each row [..., D], 127 of which are its largest number;
    a row below 2^-100 becomes zeros."""
    largest = np.abs(x).max(axis=-1, keepdims=True)
    empty = largest < 2.0**-100
    largest = np.where(empty, np.float32(1), largest)
    whole = np.rint(x * (np.float32(127) / largest)) * ~empty
    rounded: Floats = (whole * (largest / np.float32(127))).astype(np.float32)
    return rounded


ROUNDED: Mapping[str, Callable[[Floats], Floats]] = {
    "float32": lambda x: x,
    "bfloat16": round_to_bfloat16,
    "int8": round_to_int8,
}
