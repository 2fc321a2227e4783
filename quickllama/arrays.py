"""Arrays from outside: token ids and weights, checked and brought into the core's terms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quickllama.errors import InvalidType, InvalidValue

__all__ = ["Tensor", "token_ids", "weight_tensors"]

Tensor = tuple[str, NDArray[Any], str, tuple[int, ...]]
"""Name, data (C-contiguous), dtype name, logical shape."""


def token_ids(
    value: object, vocab_size: int, name: str = "input_ids"
) -> tuple[NDArray[np.int64], int]:
    """Token ids as int64 [T], and the rank they came in: 1, or 2 for [1, T].

    ``value``: list of int or array of any integer dtype. Raises InvalidType for anything else,
    InvalidValue if there are none, if there is more than one sequence, or if an id is not below
    ``vocab_size``.
    """
    if isinstance(value, str):
        raise InvalidType(f"{name} must be token ids, not a str; encode it: tokenizer.encode(text)")
    if isinstance(value, Mapping):
        raise InvalidType(
            f"{name} must be token ids, not a {type(value).__name__}; pass its ['input_ids']"
        )
    if hasattr(value, "ids") and not isinstance(value, np.ndarray):
        raise InvalidType(f"{name} must be token ids, not a {type(value).__name__}; pass its .ids")
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):
        raise InvalidType(f"{name} must be one list of token ids, not {_kind(value)}") from None
    if array.size == 0:
        raise InvalidValue(f"{name} is empty; give at least one token")
    if array.dtype.kind not in "iu":
        raise InvalidType(f"{name} must hold whole numbers, not {_kind(value)} of {array.dtype}")
    if array.ndim == 2 and array.shape[0] != 1:
        raise InvalidValue(
            f"{name} holds {array.shape[0]} sequences; give one at a time: shape [T] or [1, T]"
        )
    if array.ndim not in (1, 2):
        raise InvalidValue(f"{name} must have shape [T] or [1, T], not {list(array.shape)}")
    row = array.reshape(-1)
    bad = np.flatnonzero((row < 0) | (row >= vocab_size))
    if bad.size:
        raise InvalidValue(
            f"{name}[{bad[0]}] is {row[bad[0]]}, and the model's vocabulary has ids 0 to "
            f"{vocab_size - 1}"
        )
    return row.astype(np.int64), array.ndim


def _kind(value: object) -> str:
    return "a NumPy array" if isinstance(value, np.ndarray) else type(value).__name__


def weight_tensors(weights: Mapping[str, Any]) -> Iterator[Tensor]:
    """The arrays of a mapping as the core takes them; none is copied.

    float32, float16, ml_dtypes' bfloat16, or uint16 (the bits of bfloat16), of any rank, [out,
    in], C-contiguous, in this machine's byte order. Raises InvalidType or InvalidValue naming the
    tensor and the remedy.
    """
    for name, array in weights.items():
        if not isinstance(name, str):
            raise InvalidType(f"the names of weights are strings, not {name!r}")
        if not isinstance(array, np.ndarray):
            raise InvalidType(
                f"weight {name} must be a NumPy array, not {type(array).__name__}; convert it, for "
                "instance with numpy.asarray, or tensor.numpy() in PyTorch"
            )
        data, dtype = _in_core_terms(name, array)
        yield name, data, dtype, tuple(array.shape)


def _in_core_terms(name: str, array: NDArray[Any]) -> tuple[NDArray[Any], str]:
    dtype = array.dtype
    if dtype.kind in "iuf" and not dtype.isnative:
        raise InvalidValue(
            f"weight {name} is stored in the other byte order ({dtype.str}); convert it with "
            "array.astype(array.dtype.newbyteorder('='))"
        )
    if not array.flags.c_contiguous:
        raise InvalidValue(
            f"weight {name} is not C-contiguous (strides {array.strides}); pass "
            "numpy.ascontiguousarray(array)"
        )
    if dtype in (np.float32, np.float16):
        return array, dtype.name
    if dtype == np.uint16:
        return array, "bfloat16"
    if dtype.name == "bfloat16" and dtype.itemsize == 2:
        return array.view(np.uint16), "bfloat16"
    raise InvalidType(
        f"weight {name} has dtype {dtype}; expected float32, float16, bfloat16 (ml_dtypes) or "
        "uint16 (the bits of bfloat16): convert it, for instance with array.astype('float32')"
    )
