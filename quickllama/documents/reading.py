"""Reading and skimming a text into a new document: what Model.read and Model.skim do."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from quickllama import checks
from quickllama.config import MemoryConfig
from quickllama.documents.document import Document
from quickllama.documents.source import Source
from quickllama.errors import InvalidType, InvalidValue, warn
from quickllama.progress import Progress
from quickllama.prompt import DOCUMENT_PROMPT, PASSAGES_PROMPT, PromptForm, checked_question

if TYPE_CHECKING:
    from quickllama.documents.head_store import SkimHeads
    from quickllama.model import Model

__all__ = ["read_document", "skim_document"]

_LONGEST_NAME = 255  # characters of a path that may be meant


def read_document(
    model: Model,
    source: Source,
    *,
    progress: bool | Progress | None,
    memory: MemoryConfig | None,
    title: str | None,
    question: str | None,
    prompt: str | None,
    kv_dtype: str | None,
    store: str | os.PathLike[str] | None = None,
    ram_limit: int | str | None = None,
    resume: bool = True,
) -> Document:
    """What :meth:`quickllama.Model.read` does."""
    if question is not None:
        question = checked_question(question)
    if prompt is None:
        prompt = DOCUMENT_PROMPT if question is None else PASSAGES_PROMPT
    form = PromptForm.of(prompt)
    if form.asks_first and question is None:
        raise InvalidValue(
            "this prompt has {question} before {text}, so that the text is read for one question: "
            "give question="
        )
    if memory is None:
        memory = MemoryConfig(mode="infllm", topk=0) if question is None else MemoryConfig()
    document = _empty_document(model, memory, form, title, question, kv_dtype)
    return _filled(document, source, progress, store, ram_limit, resume)


def skim_document(
    model: Model,
    source: Source,
    *,
    progress: bool | Progress | None,
    memory: MemoryConfig | None,
    title: str | None,
    prompt: str | None,
    kv_dtype: str | None,
    heads: SkimHeads | None = None,
    store: str | os.PathLike[str] | None = None,
    ram_limit: int | str | None = None,
    resume: bool = True,
) -> Document:
    """What :meth:`quickllama.Model.skim` does; ``heads``: other ones than the model's."""
    if heads is None:
        known = model.retrieval_heads
        heads = None if known is None else known.skim
    if heads is None:
        raise InvalidValue(
            "it is not known which heads of this model's first layers find passages, so that its "
            "texts cannot be skimmed; run model.calibrate() or quickllama calibrate once, or use "
            "model.read()"
        )
    form = PromptForm.of(DOCUMENT_PROMPT if prompt is None else prompt)
    if form.asks_first:
        raise InvalidValue(
            "a text is skimmed without a question, but this prompt has {question} before {text}"
        )
    memory = MemoryConfig.skim() if memory is None else memory
    document = _empty_document(model, memory, form, title, None, kv_dtype, heads)
    return _filled(document, source, progress, store, ram_limit, resume)


def _empty_document(
    model: Model,
    memory: object,
    form: PromptForm,
    title: object,
    question: str | None,
    kv_dtype: str | None,
    skim: SkimHeads | None = None,
) -> Document:
    memory = MemoryConfig.checked(memory)
    if title is not None and not isinstance(title, str):
        raise InvalidType(f"a title is a string, not {type(title).__name__}")
    return Document(model, memory, form, title, question, kv_dtype, skim)


def _filled(
    document: Document,
    source: Source,
    progress: bool | Progress | None,
    store: str | os.PathLike[str] | None,
    ram_limit: int | str | None,
    resume: bool,
) -> Document:
    budget = None if ram_limit is None else checks.byte_size("ram_limit", ram_limit)
    checks.flag("resume", resume)
    if isinstance(source, str) and not source.strip():
        raise InvalidValue("the text is empty; there is nothing to read")
    if isinstance(source, str) and _names_a_file(source):
        warn(
            f"the text {source!r} is read as it stands, and is also the name of a file: if that is "
            "meant, give what it holds, Path(name).read_text(encoding='utf-8')"
        )
    if store is not None:
        from quickllama.documents.document_file import read_into_file

        read_into_file(document, source, store, budget=budget, resume=resume, progress=progress)
    elif budget is not None:
        raise InvalidValue(
            "ram_limit needs a file in which the rest of the document can lie: give store="
        )
    else:
        document.append(source, progress)
    if not document.text.strip():
        raise InvalidValue("the text is empty; there is nothing to read")
    return document


def _names_a_file(text: str) -> bool:
    if len(text) > _LONGEST_NAME or "\n" in text or "\0" in text:
        return False
    return os.path.isfile(text)
