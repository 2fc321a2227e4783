"""``quickllama calibrate``: find a model's retrieval heads and keep them."""

from __future__ import annotations

from collections.abc import Sequence

from quickllama.cli.terminal import print_json
from quickllama.cli.textfile import read_text
from quickllama.documents.head_store import cache_folder
from quickllama.model import Model

__all__ = ["calibrate"]


def calibrate(
    name: str,
    files: Sequence[str],
    *,
    seed: int,
    threads: int | None,
    as_json: bool,
    quiet: bool,
) -> int:
    """Calibrate the model ``name``, on the texts in ``files`` if there are any; returns the exit
    code."""
    texts = [read_text(file) for file in files] or None
    model = Model.from_pretrained(name, n_threads=threads)
    found = model.calibrate(texts, progress=not quiet, seed=seed)
    if as_json:
        print_json(found.to_dict())
    else:
        print(f"retrieval heads (layer.head): {_listed(found.heads)}")
        if found.skim is not None:
            print(f"heads to skim with: {_listed(found.skim.heads)}")
        print(f"kept in {cache_folder()}")
    return 0


def _listed(heads: Sequence[tuple[int, int]]) -> str:
    return ", ".join(f"{layer}.{head}" for layer, head in heads)
