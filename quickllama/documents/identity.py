"""What a document and its reader must have in common, so that answers are the same to the bit."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from quickllama.documents.head_store import Fingerprint
from quickllama.errors import InvalidValue

if TYPE_CHECKING:
    from quickllama.model import Model

__all__ = ["ModelIdentity", "check_same_settings"]


@dataclasses.dataclass(frozen=True)
class ModelIdentity:
    """A model as the keys and values of a document depend on it.

    ``fingerprint``: of the architecture and the embedding's signs; ``weights``: a digest of parts
    of every tensor as its file stores it; ``dtype``: how matrices are held; ``tokenizer``: a digest
    of it; ``cpu``: the kernels that compute, on which only the last bits depend; ``words``: for
    people.
    """

    fingerprint: Fingerprint
    weights: str
    dtype: str
    tokenizer: str
    cpu: str
    words: str

    @classmethod
    def of(cls, model: Model) -> ModelIdentity:
        """That of ``model``. Raises MissingKey if it has no tokenizer."""
        config = model.config
        words = (
            f"{config.model_type}, {config.parameters / 1e6:.1f}M parameters, "
            f"{config.num_hidden_layers} layers"
        )
        digest = model.tokenizer.digest
        return cls(model.fingerprint, model.weights_digest, model.dtype, digest, model.cpu, words)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> ModelIdentity:
        """From what :func:`dataclasses.asdict` made. Raises KeyError or TypeError."""
        given = {field.name: value[field.name] for field in dataclasses.fields(cls)}
        signs = given.pop("fingerprint")
        if not all(isinstance(text, str) for text in (*given.values(), *signs.values())):
            raise TypeError("a model is described by texts")
        return cls(fingerprint=Fingerprint(signs["sizes"], signs["signs"]), **given)

    def check(self, model: Model, name: str) -> None:
        """Raises InvalidValue if the document ``name`` was read with another model."""
        own = ModelIdentity.of(model)
        if self.fingerprint.sizes != own.fingerprint.sizes:
            raise InvalidValue(
                f"{name} was read with another model ({self.words}); this one is {own.words}"
            )
        if self.dtype != own.dtype:
            raise InvalidValue(
                f"{name} was read with weights held as {self.dtype}, and this model holds "
                f"{own.dtype}: load the model with that dtype "
                "(quickllama ask and chat do so where --dtype is left out)"
            )
        if self.fingerprint.signs != own.fingerprint.signs or self.weights != own.weights:
            raise InvalidValue(
                f"{name} was read with a model of the same sizes but other weights ({self.words}): "
                "take that model, or read the text with this one"
            )
        if self.tokenizer != own.tokenizer:
            raise InvalidValue(
                f"{name} was read with another tokenizer or chat template: take that one, or read "
                "the text anew"
            )

    def note(self, model: Model) -> str | None:
        """What answers should say if the CPU is another one."""
        if self.cpu == model.cpu:
            return None
        return (
            f"the document was read with {self.cpu}, and this is {model.cpu}: answers can differ "
            "in the last bits"
        )


def check_same_settings(saved: Mapping[str, Any], asked: Mapping[str, Any], name: str) -> None:
    """Raises InvalidValue, naming the first difference, if a text was read with other settings."""
    for key, value in asked.items():
        if saved[key] != value:
            raise InvalidValue(
                f"{name} was read with {key} = {saved[key]!r}, and {value!r} is asked for: give "
                "the same settings to go on, or another file"
            )
