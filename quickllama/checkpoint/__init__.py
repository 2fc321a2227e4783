"""Models as they lie on disk: a HuggingFace folder with safetensors, or a GGUF file.

>>> checkpoint = open("SmolLM2-135M-Instruct.Q4_1.gguf")
>>> config = ModelConfig.from_hf(checkpoint.config)
>>> for name, data, dtype, shape in checkpoint.tensors(): ...
"""

from __future__ import annotations

import os
from pathlib import Path

from quickllama.checkpoint.folder import FolderCheckpoint
from quickllama.checkpoint.gguf_checkpoint import GGUFCheckpoint
from quickllama.checkpoint.tensor import BLOCKS, Checkpoint, Tensor
from quickllama.errors import FileProblem, InvalidType

__all__ = ["BLOCKS", "Checkpoint", "FolderCheckpoint", "GGUFCheckpoint", "Tensor", "open"]


def open(path: str | os.PathLike[str]) -> Checkpoint:
    """A model from a HuggingFace folder (config.json and safetensors) or a ``.gguf`` file.

    Reads headers and configuration only; the weights stay in the mapped file until they are used.

    Raises FileProblem if the path is not there, or the files are truncated, damaged or contradict
    each other; InvalidValue for what is well-formed and not read here (a dtype, an architecture);
    InvalidType if ``path`` is no path.
    """
    if not isinstance(path, str | os.PathLike):
        raise InvalidType(f"a path is a string or os.PathLike, not {type(path).__name__}")
    place = Path(path)
    if os.path.isdir(place):
        return FolderCheckpoint(place)
    if not os.path.exists(place):
        raise FileProblem(f"there is no file or folder {place}")
    if place.suffix.lower() == ".safetensors":
        raise FileProblem(
            f"{place} holds tensors only; give its folder, which has config.json and the tokenizer"
        )
    return GGUFCheckpoint(place)
