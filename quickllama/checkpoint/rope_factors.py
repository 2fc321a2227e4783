"""RoPE scaling of a GGUF file, as the ``rope_scaling`` of a HuggingFace ``config.json``.

A GGUF file does not name the ``llama3`` rule: its writer computes the rule and stores what comes
out, a divisor for each of the D/2 frequencies, as the tensor ``rope_freqs.weight`` (llama.cpp,
``LlamaModel.generate_extra_tensors``). Here the rule is found again from the divisors, and accepted
only if it gives every one of them back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from quickllama.errors import InvalidValue

__all__ = ["linear_scaling", "llama3_divisors", "scaling_of_divisors"]

TOLERANCE = 2e-5  # of divisors, relative; they were computed and stored in float32
ORIGINAL_POSITIONS = 8192  # Llama 3's


def linear_scaling(kind: Any, factor: Any) -> dict[str, Any] | None:
    """``rope_scaling`` from the metadata ``rope.scaling.type`` and ``rope.scaling.factor``.

    None for either: not there; then the type is linear and the factor 1, as in llama.cpp. Raises
    InvalidValue for another type than ``none`` and ``linear``.
    """
    if kind not in (None, "none", "linear"):
        raise InvalidValue(
            f"the GGUF file asks for RoPE scaling of type {kind!r:.40}, which is not computed "
            "here; 'none', 'linear' and Llama 3's are"
        )
    if kind == "none" or factor in (None, 0, 1):
        return None
    return {"rope_type": "linear", "factor": factor}


def scaling_of_divisors(divisors: npt.NDArray[np.float32], theta: float) -> dict[str, Any] | None:
    """``rope_scaling`` from ``rope_freqs.weight`` [D/2]; None if all divisors are 1.

    Raises InvalidValue if the divisors follow neither the linear nor the llama3 rule.
    """
    given = divisors.astype(np.float64)
    if not np.all(np.isfinite(given)) or given.min() < 1 - TOLERANCE:
        raise InvalidValue("rope_freqs.weight must hold finite numbers of at least 1")
    factor = _short(float(given.max()))
    if np.allclose(given, factor, rtol=TOLERANCE, atol=0):
        return None if factor == 1 else {"rope_type": "linear", "factor": factor}
    for low, high in ((1.0, 4.0), _bounds(given, theta, factor)):
        if not 0 < low < high:
            continue
        rule = {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low,
            "high_freq_factor": high,
            "original_max_position_embeddings": ORIGINAL_POSITIONS,
        }
        expected = llama3_divisors(rule, theta, 2 * given.size)
        if np.allclose(given, expected, rtol=TOLERANCE, atol=0):
            return rule
    raise InvalidValue(
        "rope_freqs.weight of the GGUF file holds frequency divisors that do not follow Llama 3's "
        "rule; take the model as safetensors, with its config.json"
    )


def llama3_divisors(
    rule: Mapping[str, Any], theta: float, head_dim: int
) -> npt.NDArray[np.float64]:
    """What the llama3 rule divides the D/2 frequencies by [head_dim / 2] (transformers,
    ``_compute_llama3_parameters``)."""
    low, high = rule["low_freq_factor"], rule["high_freq_factor"]
    turns = _turns(theta, head_dim) * rule["original_max_position_embeddings"]
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    result: npt.NDArray[np.float64] = 1 / ((1 - smooth) / rule["factor"] + smooth)
    return result


def _turns(theta: float, head_dim: int) -> npt.NDArray[np.float64]:
    """Turns per position of each frequency [head_dim / 2]: one over its wavelength."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float64) / head_dim
    result: npt.NDArray[np.float64] = theta**-exponents / (2 * np.pi)
    return result


def _bounds(divisors: npt.NDArray[np.float64], theta: float, factor: float) -> tuple[float, float]:
    """(low_freq_factor, high_freq_factor) for ORIGINAL_POSITIONS; (0, 0) if there are none.

    Between the bounds 1/divisor = (1-s)/factor + s, and s grows linearly with the turns from 0 at
    ``low`` to 1 at ``high``; only the ratios of low, high and the original length count.
    """
    smooth = (1 / divisors - 1 / factor) / (1 - 1 / factor)
    between = (smooth > 1e-3) & (smooth < 1 - 1e-3)
    if np.count_nonzero(between) < 2:
        return 0.0, 0.0
    turns = _turns(theta, 2 * divisors.size)[between] * ORIGINAL_POSITIONS
    slope, at_zero = np.polyfit(turns, smooth[between], 1)
    if not slope > 0:
        return 0.0, 0.0
    return _short(float(-at_zero / slope)), _short(float((1 - at_zero) / slope))


def _short(value: float) -> float:
    """Without the last digits, which are float32's rounding."""
    return float(f"{value:.5g}")
