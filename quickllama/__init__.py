"""QuickLLaMA: reads texts of any length with small Llama-family models on the CPU.

    import quickllama as ql
    model = ql.Model.from_pretrained("smollm2")
    book = model.read(open("book.txt").read(), progress=True)
    print(book.ask("Where was the treasure buried?").text)
    ids = model.tokenizer.encode("Once upon a time")
    print(model.tokenizer.decode(model.generate(ids, max_new_tokens=32)))

``MemoryConfig`` says how a text beyond the window is remembered, ``Model.generate`` the rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

try:
    from quickllama._core import Session, cpu_variant, cpu_variants, set_cpu_variant
except ModuleNotFoundError as problem:
    if problem.name != "quickllama._core":
        raise
    raise ModuleNotFoundError(
        f"{__file__} is QuickLLaMA's source, in which the C core is not built: leave that folder "
        "to import the installed package, or build the core there with `pip install -e .`",
        name=problem.name,
    ) from None
from quickllama.config import GenerationConfig, MemoryConfig, ModelConfig
from quickllama.documents.answer import Answer, AnswerStream, Passage
from quickllama.documents.head_store import RetrievalHeads
from quickllama.errors import (
    Busy,
    Error,
    FileProblem,
    InvalidType,
    InvalidValue,
    MissingKey,
    MissingPackage,
)
from quickllama.model import Model

if TYPE_CHECKING:
    from quickllama.documents.document import Document
    from quickllama.tokenizer import Tokenizer

    __version__: str

__all__ = [
    "Answer",
    "AnswerStream",
    "Busy",
    "Document",
    "Error",
    "FileProblem",
    "GenerationConfig",
    "InvalidType",
    "InvalidValue",
    "MemoryConfig",
    "MissingKey",
    "MissingPackage",
    "Model",
    "ModelConfig",
    "Passage",
    "RetrievalHeads",
    "Session",
    "Tokenizer",
    "__version__",
    "cpu_variant",
    "cpu_variants",
    "set_cpu_variant",
]


def __getattr__(name: str) -> object:
    """What takes time to import and is not always needed."""
    if name == "Tokenizer":
        from quickllama.tokenizer import Tokenizer

        return Tokenizer
    if name == "Document":
        from quickllama.documents.document import Document

        return Document
    if name == "__version__":
        from importlib.metadata import version

        return version("quickllama")
    raise AttributeError(f"module 'quickllama' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
