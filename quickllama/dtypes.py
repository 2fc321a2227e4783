"""Names of number formats: one spelling inside, the usual short ones accepted from outside."""

from __future__ import annotations

from quickllama.checks import nearest
from quickllama.errors import InvalidType, InvalidValue

__all__ = ["WEIGHT_DTYPES", "held_dtype", "kv_bytes", "kv_dtype_name"]

WEIGHT_DTYPES = ("float32", "bfloat16", "int8", "q4", "stored")
"""Ways to hold a model's matrices: as floats; as 8 bits with one scale per row; as 4 bits in
blocks of 32 with scale and minimum; or each in the nearest of these to how its file has it."""

_KV_DTYPES = ("float32", "bfloat16", "int8")
_SHORT = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}


def held_dtype(value: object, name: str = "dtype") -> str:
    """One of :data:`WEIGHT_DTYPES`, for itself or for f32, bf16.

    Raises InvalidType if it is no string, InvalidValue for any other name.
    """
    return _one_of(WEIGHT_DTYPES, value, name)


def kv_dtype_name(value: object, name: str = "kv_dtype") -> str:
    """float32, bfloat16 or int8, how keys and values are kept, for itself or for f32, bf16.

    Raises InvalidType if it is no string, InvalidValue for any other name.
    """
    return _one_of(_KV_DTYPES, value, name)


def kv_bytes(kv_dtype: str, head_dim: int) -> int:
    """Bytes of a key or a value of one token and key/value head; int8 has a float32 scale."""
    return {"float32": 4 * head_dim, "bfloat16": 2 * head_dim, "int8": head_dim + 4}[kv_dtype]


def _one_of(names: tuple[str, ...], value: object, name: str) -> str:
    listed = ", ".join(repr(known) for known in names[:-1]) + f" or {names[-1]!r}"
    if not isinstance(value, str):
        raise InvalidType(f"{name} must be {listed}, not {value!r}")
    result = _SHORT.get(value, value)
    if result in names:
        return result
    if result == "float16":
        raise InvalidValue(
            f"{name} must be {listed}: float16 is read and converted to one of these, but not kept"
        )
    raise InvalidValue(f"{name} must be {listed}, not {value!r}{nearest(value, names)}")
