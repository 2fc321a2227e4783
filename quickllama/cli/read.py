"""``quickllama read``: read a text into a file, and go on with one that was begun."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from quickllama.cli.terminal import tolerate_any_character
from quickllama.cli.textfile import read_text
from quickllama.config import MemoryConfig
from quickllama.documents.document_file import checked_path
from quickllama.documents.volume_file import is_document
from quickllama.errors import FileProblem
from quickllama.model import Model

__all__ = ["read"]


def read(
    file: str,
    save: str,
    *,
    model: str,
    memory: MemoryConfig,
    skim: bool,
    ram_limit: int | None,
    title: str | None,
    threads: int | None,
    dtype: str | None,
    kv_dtype: str | None,
    quiet: bool,
) -> int:
    """Read the text in ``file`` into the document ``save``; returns the exit code."""
    path = checked_path(save)
    if path.exists() and not is_document(path):  # before a model is loaded
        raise FileProblem(f"{path} exists and is no document; choose another name")
    text = read_text(file)
    loaded = Model.from_pretrained(model, dtype=dtype, n_threads=threads)
    tolerate_any_character()
    read_or_skim = loaded.skim if skim else loaded.read
    document = read_or_skim(
        text,
        progress=not quiet,
        memory=memory,
        title=Path(file).name if title is None else title,
        kv_dtype=kv_dtype,
        store=path,
        ram_limit=ram_limit,
    )
    if not quiet:
        size = path.stat().st_size
        print(
            f"{document!r} in {save}, {size / 1e6:,.1f} MB.\n"
            f"Ask: quickllama ask {shlex.quote(save)} QUESTION",
            file=sys.stderr,
        )
    return 0
