"""The picture that people know: right answers by length and depth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from quickllama.errors import InvalidValue, MissingPackage
from quickllama.eval.tables import labelled, length_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["heat_map", "heat_maps"]

Row = Mapping[str, Any]


def heat_map(
    rows: Sequence[Row],
    headers: Mapping[str, Mapping[str, Any]],
    task: str | None = None,
    method: str | None = None,
) -> Figure:
    """The share of right answers, a column for each length, a row for each depth, kinds of question
    taken together; shown in a notebook, and kept by ``figure.savefig``.

    ``method``: a method, with its settings in brackets as tables name it where results of several
    are there. Raises InvalidValue if results of several tasks or methods would be mixed, or have no
    depths; MissingPackage where matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise MissingPackage(
            "pictures are drawn by matplotlib, which is not installed; "
            'pip install "quickllama[eval]"'
        )
    from quickllama.documents.plot import RetrievalFigure

    own = [row for row in labelled(rows, headers) if row["depth"] is not None]
    own = [row for row in own if task in (None, row["task"])]
    own = [row for row in own if method is None or method in (row["label"], row["method"])]
    names = {(row["task"], row["label"]) for row in own}
    if len(names) != 1:
        listed = ", ".join(f"{a} by {b}" for a, b in sorted(names)) or "none with depths"
        raise InvalidValue(f"a heat map shows one task and method, and there are: {listed}")
    lengths = sorted({row["length"] for row in own})
    depths = sorted({row["depth"] for row in own})
    size = 1.6 + 0.8 * len(lengths), 1.2 + 0.4 * len(depths)
    figure = RetrievalFigure(figsize=size, dpi=150, layout="constrained")
    axes = figure.subplots()
    cells = [[_cell(own, length, depth) for length in lengths] for depth in depths]
    shares = [[hits / n if n else float("nan") for hits, n in line] for line in cells]
    image = axes.imshow(shares, cmap="RdYlGn", vmin=0, vmax=1, aspect="auto")
    for y, line in enumerate(cells):
        for x, (hits, n) in enumerate(line):
            dark = n > 0 and not 0.15 < hits / n < 0.85
            text = axes.text(x, y, f"{hits}/{n}" if n else "–", ha="center", va="center")
            text.set(fontsize=8, color="white" if dark else "black")
    axes.set_xticks(range(len(lengths)), [length_name(n) for n in lengths])
    axes.set_yticks(range(len(depths)), [f"{depth} %" for depth in depths])
    axes.set_xlabel("tokens")
    axes.set_ylabel("depth")
    ((of_task, label),) = names
    kinds = list(dict.fromkeys(row["kind"] for row in own))
    asked = f" ({', '.join(kinds)})" if kinds != [of_task] else ""
    axes.set_title(f"{of_task}{asked}: {label}", fontsize=9)
    figure.colorbar(image, ax=axes, label="right answers")
    return figure


def _cell(rows: Sequence[Row], length: int, depth: int) -> tuple[int, int]:
    own = [row for row in rows if row["length"] == length and row["depth"] == depth]
    return sum(row["correct"] for row in own), len(own)


def heat_maps(
    rows: Sequence[Row], headers: Mapping[str, Mapping[str, Any]]
) -> dict[tuple[str, str], Figure]:
    """A picture for each task and method (as tables name it) whose questions have depths."""
    placed = [row for row in labelled(rows, headers) if row["depth"] is not None]
    names = dict.fromkeys((row["task"], row["label"]) for row in placed)
    return {name: heat_map(rows, headers, *name) for name in names}
