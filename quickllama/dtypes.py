"""Names of number formats: one spelling inside, the usual short ones accepted from outside."""

from __future__ import annotations

from quickllama.checks import nearest
from quickllama.errors import InvalidType, InvalidValue

__all__ = ["dtype_name", "held_dtype"]

_SHORT = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}
_NAMES = ("float32", "bfloat16", "float16")
_HELD = ("float32", "bfloat16")


def dtype_name(value: object, name: str = "dtype") -> str:
    """``"float32"``, ``"bfloat16"`` or ``"float16"`` for a name or for f32, bf16, f16.

    Raises InvalidType if it is no string, InvalidValue if the name is not known.
    """
    if not isinstance(value, str):
        raise InvalidType(
            f"{name} must be the name of a number format ('float32', 'bfloat16'), not {value!r}"
        )
    result = _SHORT.get(value, value)
    if result not in _NAMES:
        raise InvalidValue(
            f"{name} must be one of 'float32', 'bfloat16', 'float16' (or f32, bf16, f16), "
            f"not {value!r}{nearest(value, _NAMES)}"
        )
    return result


def held_dtype(value: object, name: str = "dtype") -> str:
    """The name of a format that the core can hold and compute with: float32 or bfloat16.

    Raises InvalidValue for float16, which is read from files and arrays but not held.
    """
    result = dtype_name(value, name)
    if result not in _HELD:
        raise InvalidValue(
            f"{name} must be 'float32' or 'bfloat16': {result} is read and converted to one of "
            "these, but not kept"
        )
    return result
