"""Rotary positions of the executable specification (reference.py): frequencies and rotation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Ints = NDArray[np.int64]


class Rope:
    """Rotary positions, the two halves of a head as the two components ("rotate half")."""

    def __init__(self, config: Mapping[str, Any], head_dim: int) -> None:
        settings = {"rope_theta": config.get("rope_theta", 10000.0)}
        settings |= config.get("rope_scaling") or {}
        settings |= config.get("rope_parameters") or {}
        kind = settings.get("rope_type", settings.get("type", "default"))
        base = float(settings["rope_theta"])
        frequencies = base ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)  # [D/2]
        if kind == "linear":
            frequencies = frequencies / float(settings["factor"])
        elif kind == "llama3":
            frequencies = llama3_frequencies(frequencies, settings)
        elif kind != "default":
            raise ValueError(f"rope type {kind!r} is not specified here")
        self.frequencies: Doubles = frequencies

    def rotate(self, x: Floats, positions: Ints) -> Floats:
        """x [heads, n, D], each of its n vectors rotated to its own of the positions [n]."""
        angles = positions[:, None].astype(np.float64) * self.frequencies  # [n, D/2], in double
        cos = np.cos(angles).astype(np.float32)
        sin = np.sin(angles).astype(np.float32)
        a, b = np.split(x, 2, axis=-1)  # the two halves, [heads, n, D/2] each
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)

    def rotate_to(self, x: Floats, position: int) -> Floats:
        """x [heads, n, D], all n vectors rotated to one and the same position."""
        return self.rotate(x, np.full(x.shape[1], position))


def llama3_frequencies(frequencies: Doubles, settings: Mapping[str, Any]) -> Doubles:
    """Llama 3.1: long waves are stretched by `factor`, short ones kept, others blended. [D/2]"""
    factor = float(settings["factor"])
    low, high = float(settings["low_freq_factor"]), float(settings["high_freq_factor"])
    turns = float(settings["original_max_position_embeddings"]) * frequencies / (2 * np.pi)
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)  # 0: a long wave, 1: a short one
    blended: Doubles = (1 - kept) * frequencies / factor + kept * frequencies
    return blended
