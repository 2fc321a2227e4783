"""What every checkpoint gives: its configuration and its tensors, whatever the file's format."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from quickllama.tokenizer import Tokenizer

__all__ = ["BLOCKS", "Checkpoint", "Tensor", "matrix_dtypes", "n_bytes", "view"]

BLOCKS: Mapping[str, tuple[int, int]] = {
    "float32": (1, 4),
    "float16": (1, 2),
    "bfloat16": (1, 2),
    "q4_0": (32, 18),
    "q4_1": (32, 20),
    "q5_0": (32, 22),
    "q5_1": (32, 24),
    "q8_0": (32, 34),
    "q2_k": (256, 84),
    "q3_k": (256, 110),
    "q4_k": (256, 144),
    "q5_k": (256, 176),
    "q6_k": (256, 210),
}
"""Storage dtypes: values and bytes of one block, as the core has them (csrc/quant.c)."""

_PLAIN = {"float32": "<f4", "float16": "<f2", "bfloat16": "<u2"}


class Tensor(NamedTuple):
    """One weight as it is stored, not yet converted.

    * ``name``: HuggingFace's, such as ``model.layers.0.self_attn.q_proj.weight``.
    * ``data``: C-contiguous, read-only, over the mapped file where possible: float32, float16,
      uint16 (the bits of bfloat16), each of ``shape``; or uint8, the raw blocks of quantised rows,
      with ``shape[-1]`` replaced by the bytes of a row.
    * ``dtype``: a key of :data:`BLOCKS`.
    * ``shape``: logical, ``[out, in]`` for matrices.
    """

    name: str
    data: npt.NDArray[Any]
    dtype: str
    shape: tuple[int, ...]


class Checkpoint(ABC):
    """A model as it lies on disk; see :func:`quickllama.checkpoint.open`.

    * ``path``: the folder or file it came from.
    * ``config``: keys of a HuggingFace ``config.json``, for ``ModelConfig.from_hf``.
    * ``generation_config``: keys of ``generation_config.json``; empty if there is none.
    * ``dtype``: the storage dtype of most weights, a key of :data:`BLOCKS`.
    * ``matrices``: the storage dtypes of the matrices, that of most weights first.
    """

    path: Path
    config: dict[str, Any]
    generation_config: dict[str, Any]
    dtype: str
    matrices: tuple[str, ...]

    @abstractmethod
    def tensors(self) -> Iterator[Tensor]:
        """Every tensor once, one at a time, in the order of the file. Asking for the next one says
        that the one before has been converted, or will not be read again at once."""

    @property
    @abstractmethod
    def has_tokenizer(self) -> bool:
        """Whether a tokenizer came with the model, be it good or bad."""

    @abstractmethod
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that came with the model. Raises an Error if none came, or it is bad."""


def n_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor whose rows are whole blocks."""
    values, size = BLOCKS[dtype]
    return prod(shape) // values * size


def view(raw: npt.NDArray[np.uint8], dtype: str, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """``raw`` [bytes] as ``Tensor.data``; copied only where the file does not align the values."""
    if dtype not in _PLAIN:
        values, size = BLOCKS[dtype]
        return raw.reshape((*shape[:-1], shape[-1] // values * size))
    kind = np.dtype(_PLAIN[dtype])
    if raw.ctypes.data % kind.alignment:
        raw = raw.copy()
        raw.flags.writeable = False
    return raw.view(kind).reshape(shape)


def matrix_dtypes(tensors: Iterable[tuple[str, tuple[int, ...]]]) -> tuple[str, ...]:
    """The dtypes of matrices, that of most values first; ``tensors``: (dtype, shape) of each."""
    values: Counter[str] = Counter()
    for dtype, shape in tensors:
        if len(shape) == 2:
            values[dtype] += prod(shape)
    return tuple(dtype for dtype, _ in values.most_common())
