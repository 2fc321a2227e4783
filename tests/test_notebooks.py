"""The notebooks of examples/: all cells run, say what the texts around them promise, and are kept
with their outputs.

Running them needs the extra ``notebook`` and the real model.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
# What stands in the outputs, in this order, and how many pictures.
EXPECTED = {
    "ask_a_book": (("48213", "lichens", "Not found in the document."), 1),
    "compare_memories": (("stream", "qllm", "71432", "71432", "71432"), 2),
    "arrays": (("int64", "Paris", "71432"), 0),
}
MOST_BYTES = 400_000


def load(name: str) -> dict[str, Any]:
    notebook: dict[str, Any] = json.loads((EXAMPLES / f"{name}.ipynb").read_text("utf-8"))
    return notebook


def outputs(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    """All outputs of all cells."""
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return [output for cell in cells for output in cell["outputs"]]


def shown(notebook: dict[str, Any]) -> str:
    """All text that the cells print or return."""
    found = []
    for output in outputs(notebook):
        for text in (output.get("text"), output.get("data", {}).get("text/plain")):
            found.append("".join(text or ()))
    return "\n".join(found)


def check(name: str, notebook: dict[str, Any]) -> None:
    """The outputs are those that the notebook's texts speak of."""
    words, pictures = EXPECTED[name]
    text = shown(notebook)
    place = 0
    for word in words:
        assert word in text[place:], f"{word!r} is missing after {text[:place][-80:]!r}"
        place = text.index(word, place) + len(word)
    assert sum("image/png" in output.get("data", {}) for output in outputs(notebook)) == pictures


def test_these_are_all() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.ipynb")} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_they_are_kept_with_their_outputs(name: str) -> None:
    notebook = load(name)
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    check(name, notebook)
    assert (EXAMPLES / f"{name}.ipynb").stat().st_size < MOST_BYTES
    assert not re.search(r"/(home|tmp|root|usr|opt)/", json.dumps(notebook))


@pytest.mark.usefixtures("smollm2_path")
@pytest.mark.parametrize("name", EXPECTED)
def test_all_cells_run(name: str) -> None:
    pytest.importorskip("ipykernel")
    pytest.importorskip("matplotlib")
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    notebook = nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    resources = {"metadata": {"path": str(EXAMPLES)}}
    client = nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources=resources
    )
    client.execute()
    check(name, notebook)
