"""Where a model's retrieval heads are kept: small JSON files, shipped and in the user's cache."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quickllama.documents.judgement import FEATURES
from quickllama.errors import FileProblem, InvalidValue, warn

if TYPE_CHECKING:
    from quickllama._core import _Tensor
    from quickllama.config import ModelConfig
    from quickllama.model import Model

__all__ = [
    "Fingerprint",
    "FoundRule",
    "RetrievalHeads",
    "SkimHeads",
    "cache_folder",
    "load_heads",
    "save_heads",
]

_FORMAT = 3
_SHIPPED = Path(__file__).parent / "heads"
_EMBEDDING = "model.embed_tokens.weight"
_BITS = 256
_SAMPLES = 251  # bytes of a tensor; prime, so that they are not always the same ones of a block
_MOST_DIFFERENT = 0.15  # of the bits; those of two models that share nothing differ in half


@dataclasses.dataclass(frozen=True)
class Fingerprint:
    """What tells one model from another, however it is quantised or loaded.

    ``sizes``: a digest of the configuration's numbers. ``signs``: the signs of 256 embedding
    weights, evenly spaced, as 64 hex digits. Rounding to bfloat16 changes none of them and 4-bit
    quantisation a few, so that two fingerprints match if their sizes are equal and at most 15 % of
    the signs differ. A fine-tuned model matches its base as long as its embedding does.
    """

    sizes: str
    signs: str

    @classmethod
    def of(cls, config: ModelConfig, signs: str) -> Fingerprint:
        """That of a model with this configuration."""
        numbers = json.dumps(config.core(), sort_keys=True)
        return cls(hashlib.sha256(numbers.encode()).hexdigest()[:16], signs)

    def matches(self, other: Fingerprint) -> bool:
        """Whether both are of the same model."""
        if self.sizes != other.sizes or len(self.signs) != len(other.signs):
            return False
        different = (int(self.signs, 16) ^ int(other.signs, 16)).bit_count()
        return different <= _MOST_DIFFERENT * _BITS


class SignCatcher:
    """Passes a model's tensors on and notes the signs of the embedding on the way, and a digest of
    parts of every tensor as it is stored."""

    def __init__(self) -> None:
        self.signs = "0" * (_BITS // 4)
        self._samples: dict[str, str] = {}

    @property
    def digest(self) -> str:
        """Tells a model from one of the same sizes, and from its fine-tuned kin: 16 hex digits."""
        listed = json.dumps(self._samples, sort_keys=True)
        return hashlib.sha256(listed.encode()).hexdigest()[:16]

    def watch(self, tensors: Iterator[_Tensor]) -> Iterator[_Tensor]:
        """The same tensors."""
        for tensor in tensors:
            name, data, dtype, _ = tensor
            if name == _EMBEDDING:
                self.signs = embedding_signs(*tensor[1:])
            self._samples[name] = f"{dtype} {_sampled(data)}"
            yield tensor


def _sampled(data: Any) -> str:
    """A digest of the size of a tensor's bytes and of a few of them, evenly spaced."""
    raw = _raw(data)
    wanted = raw[np.linspace(0, max(raw.size - 1, 0), min(raw.size, _SAMPLES)).astype(np.int64)]
    return f"{raw.size} {hashlib.sha256(wanted.tobytes()).hexdigest()[:16]}"


def _raw(data: Any) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The bytes of an array or a buffer; nothing is copied."""
    array = data if isinstance(data, np.ndarray) else np.frombuffer(data, dtype=np.uint8)
    return array.reshape(-1).view(np.uint8)


def embedding_signs(data: Any, dtype: str, shape: tuple[int, ...]) -> str:
    """The signs of 256 weights in the embedding's first rows, as hex digits."""
    from quickllama import _core

    values = int(np.prod(shape))
    wanted = min(values, 32 * 1024)  # whole blocks of every stored format
    raw = _raw(data)
    used = raw[: raw.size * wanted // values] if values else raw
    if wanted < _BITS:
        return "0" * (_BITS // 4)
    floats = _core.decode(used, dtype, wanted)
    chosen = floats[np.linspace(0, wanted - 1, _BITS).astype(np.int64)] > 0
    return np.packbits(chosen).tobytes().hex()


@dataclasses.dataclass(frozen=True)
class FoundRule:
    """Tells whether a document answers a question, from the features of
    :mod:`quickllama.documents.judgement`.

    confidence = 1 / (1 + exp(−(bias + Σ weight · feature))); found from ``threshold`` on.
    ``features``: their names, so that a rule of other ones is never taken for one of these.
    """

    weights: tuple[float, ...]
    bias: float
    threshold: float
    features: tuple[str, ...] = FEATURES

    def confidence(self, features: tuple[float, ...]) -> float:
        """0 to 1."""
        total = self.bias + sum(w * f for w, f in zip(self.weights, features, strict=True))
        return float(1 / (1 + np.exp(-np.clip(total, -50, 50))))


@dataclasses.dataclass(frozen=True)
class SkimHeads:
    """The best heads of a model's first layers, best first, as (layer, query head): those that
    :meth:`quickllama.Model.skim` needs.

    ``found`` says when an answer is in the document (None: not known).
    """

    heads: tuple[tuple[int, int], ...]
    found: FoundRule | None = None


@dataclasses.dataclass(frozen=True)
class RetrievalHeads:
    """A model's retrieval heads, best first, as (layer, query head).

    ``source`` says where they are from, ``found`` when an answer is in the document (None: not
    known), ``skim`` which of the first layers' heads to skim with (None: not known).
    """

    fingerprint: Fingerprint
    heads: tuple[tuple[int, int], ...]
    source: str
    found: FoundRule | None = None
    skim: SkimHeads | None = None

    def to_dict(self) -> dict[str, Any]:
        """As the files hold it."""
        return {"format": _FORMAT, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, value: Any, name: str = "this value") -> RetrievalHeads:
        """From what a file holds. Raises FileProblem for anything else, naming ``name``."""
        try:
            if value["format"] != _FORMAT:
                raise FileProblem(
                    f"{name} has format {value['format']!r}, and this version knows {_FORMAT}; "
                    "delete it, and calibrate the model again"
                )
            skim = value.get("skim")
            return cls(
                Fingerprint(str(value["fingerprint"]["sizes"]), str(value["fingerprint"]["signs"])),
                _heads(value["heads"]),
                str(value["source"]),
                _rule(value["found"]),
                None if skim is None else skim_heads_of(skim),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as problem:
            raise FileProblem(f"{name} holds no retrieval heads ({problem!r})") from None

    def fits(self, model: Model) -> bool:
        """Whether ``model`` has these heads."""
        sets = [self.heads] if self.skim is None else [self.heads, self.skim.heads]
        return all(sets) and all(
            0 <= layer < model.n_layers and 0 <= head < model.n_heads
            for heads in sets
            for layer, head in heads
        )


def _heads(value: Any) -> tuple[tuple[int, int], ...]:
    return tuple((int(layer), int(head)) for layer, head in value)


def skim_heads_of(value: Mapping[str, Any]) -> SkimHeads:
    """From a dict, without a rule of other features than today's. Raises KeyError, TypeError or
    ValueError."""
    return SkimHeads(_heads(value["heads"]), _rule(value["found"]))


def _rule(value: Mapping[str, Any] | None) -> FoundRule | None:
    if value is None or list(value.get("features", ())) != list(FEATURES):
        return None
    weights = tuple(float(weight) for weight in value["weights"])
    if len(weights) != len(FEATURES):
        raise ValueError(f"{len(weights)} weights")
    return FoundRule(weights, float(value["bias"]), float(value["threshold"]))


def cache_folder() -> Path:
    """The folder of the user's own heads: ``$XDG_CACHE_HOME/quickllama/heads``, by default below
    ``~/.cache``."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "quickllama" / "heads"


def load_heads(model: Model) -> RetrievalHeads | None:
    """The heads of ``model``: those that the user calibrated, else shipped ones, else None.

    A damaged file is passed over with a warning that names it.
    """
    own = f"{model.fingerprint.sizes}-*.json"  # a damaged file of another model is not our matter
    for folder, names in ((cache_folder(), own), (_SHIPPED, "*.json")):
        for path in sorted(folder.glob(names)) if folder.is_dir() else ():
            try:
                found = _read(path)
            except FileProblem as problem:
                warn(str(problem))
                continue
            if found.fingerprint.matches(model.fingerprint) and found.fits(model):
                return found
    return None


def _read(path: Path) -> RetrievalHeads:
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as problem:
        raise FileProblem(
            f"{path} cannot be read ({problem}); delete it, and calibrate the model again"
        ) from None
    return RetrievalHeads.from_dict(value, str(path))


def save_heads(heads: RetrievalHeads) -> Path:
    """Write ``heads`` to the user's cache, whole or not at all; returns the file."""
    folder = cache_folder()
    print_ = heads.fingerprint
    if not print_.sizes.isalnum() or not print_.signs.isalnum():
        raise InvalidValue("a fingerprint consists of hex digits")
    path = folder / f"{print_.sizes}-{print_.signs[:16]}.json"
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(heads.to_dict(), indent=1) + "\n", "utf-8")
        part.replace(path)
    except OSError as problem:
        raise FileProblem(f"the retrieval heads cannot be kept in {path}: {problem}") from None
    return path
