"""A model in a HuggingFace folder: config.json and safetensors, in one file or in shards."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quickllama.checkpoint.mapped_file import read_json
from quickllama.checkpoint.safetensors import SafetensorsFile
from quickllama.checkpoint.tensor import Checkpoint, Tensor, matrix_dtypes
from quickllama.errors import FileProblem

if TYPE_CHECKING:
    from quickllama.tokenizer import Tokenizer

__all__ = ["FolderCheckpoint"]

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


class FolderCheckpoint(Checkpoint):
    """A folder as ``save_pretrained`` writes it.

    Weights: ``model.safetensors``; else the shards that ``model.safetensors.index.json`` names;
    else the only other ``*.safetensors``. Raises FileProblem if something is missing, truncated,
    or contradicts itself; InvalidValue for tensors in a dtype that is not read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not os.path.exists(path / "config.json"):
            raise FileProblem(f"{path} has no config.json{_instead(path)}")
        self.config = read_json(path / "config.json")
        generation = path / "generation_config.json"
        self.generation_config = read_json(generation) if os.path.exists(generation) else {}
        self._files = _weight_files(path)
        self.matrices = matrix_dtypes(
            (entry.dtype, entry.shape) for file in self._files for entry in file.entries.values()
        )
        self.dtype = next(iter(self.matrices), "float32")

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor once, one at a time, shard by shard."""
        for file in self._files:
            yield from file.tensors()

    @property
    def has_tokenizer(self) -> bool:
        """Whether there is a tokenizer."""
        return os.path.exists(self.path / "tokenizer.json")

    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the folder's ``tokenizer.json``."""
        from quickllama.tokenizer import Tokenizer

        return Tokenizer.from_folder(self.path)


def _weight_files(folder: Path) -> list[SafetensorsFile]:
    if os.path.exists(folder / SINGLE):
        return [SafetensorsFile(folder / SINGLE)]
    if os.path.exists(folder / INDEX):
        return _shards(folder)
    others = sorted(folder.glob("*.safetensors"))
    adapters = [path for path in others if path.name.startswith("adapter_")]
    if len(others) == 1 and not adapters:
        return [SafetensorsFile(others[0])]
    if adapters:
        raise FileProblem(
            f"{folder} holds an adapter ({adapters[0].name}), not a whole model; merge it into its "
            "base model (peft: merge_and_unload) and save that"
        )
    if others:
        raise FileProblem(
            f"{folder} holds {len(others)} safetensors files and no {INDEX} that says how they "
            "belong together; add it"
        )
    raise FileProblem(f"{folder} has no {SINGLE}{_instead(folder)}")


def _instead(folder: Path) -> str:
    """What the folder has in place of what is missing, and what to do."""
    for pattern in ("pytorch_model*.bin", "*.pth", "*.pt"):
        for file in sorted(folder.glob(pattern)):
            return (
                f", only {file.name}, which can run code when it is read and is not read here; "
                "load it with transformers and save it again (save_pretrained writes safetensors)"
            )
    for file in sorted(folder.glob("*.gguf")):
        return f"; give the GGUF file itself: {file}"
    return "; a folder as HuggingFace's save_pretrained writes it was expected"


def _shards(folder: Path) -> list[SafetensorsFile]:
    """The shards of the index, checked against it."""
    source = folder / INDEX
    weights = _weight_map(source)
    files, owner = [], dict[str, str]()
    for shard in sorted(set(weights.values())):
        if not os.path.exists(folder / shard):
            raise FileProblem(f"{source} names {shard}, which is not in the folder: download it")
        file = SafetensorsFile(folder / shard)
        for tensor in file.entries:
            if tensor in owner:
                raise FileProblem(f"{folder}: {tensor!r} is in both {owner[tensor]} and {shard}")
            owner[tensor] = shard
        files.append(file)
    for tensor, shard in weights.items():
        if owner.pop(tensor, None) != shard:
            raise FileProblem(f"{source} says that {shard} holds {tensor!r}, and it does not")
    for tensor, shard in owner.items():
        raise FileProblem(f"{folder / shard} holds {tensor!r}, which {INDEX} does not name")
    return files


def _weight_map(source: Path) -> dict[str, str]:
    """Tensor to shard, from the index; a shard's name is a plain name of a file in the folder."""
    weights: Any = read_json(source).get("weight_map")
    if not isinstance(weights, dict) or not weights:
        raise FileProblem(f"{source} has no weight_map from tensors to files")
    for tensor, shard in weights.items():
        plain = isinstance(shard, str) and not set(shard) & set("/\\:\0")
        if not plain or shard.startswith(".") or not shard.endswith(".safetensors"):
            raise FileProblem(
                f"{source}: the file of {tensor[:200]!r} must be the plain name of a safetensors "
                f"file in the same folder, not {str(shard)[:200]!r}"
            )
    return weights
