"""Tables for the terminal, and plots by matplotlib, which is in the extra ``bench``."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; columns after the first are aligned to the right if they hold numbers."""
    print(title)
    places: list[tuple[int, bool]] = []
    for index, column in enumerate(columns):
        cells = [row[index] for row in rows if row[index]]
        right = index > 0 and bool(cells) and all(cell[0].isdigit() for cell in cells)
        places.append((max(map(len, [column, *cells])), right))
    for cells in (columns, ["─" * width for width, _ in places], *rows):
        line = "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, (width, right) in zip(cells, places, strict=True)
        )
        print(line.rstrip())


def format_value(value: float, unit: str) -> str:
    """A number with as many digits as its unit deserves."""
    if unit in ("s", ""):
        return f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def table_rows(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Cells of the rows of speed.py's JSON, in the order of :data:`COLUMNS`."""
    cells = []
    for row in rows:
        start = [row["what"], row["engine"], row["dtype"]]
        if row["median"] is None:
            cells.append([*start, "", "", "", "", "", row["note"]])
            continue
        low, high = (format_value(end(row["values"]), row["unit"]) for end in (min, max))
        limit = "" if row["limit"] is None else format_value(row["limit"], row["unit"])
        ratio = "" if row["ratio"] is None else f"{100 * row['ratio']:.0f} %"
        beside = "" if row["beside"] is None else f"{row['beside']:.2f}"
        middle = f"{format_value(row['median'], row['unit'])} {row['unit']}".strip()
        cells.append([*start, middle, f"{low} – {high}", limit, ratio, beside, row["note"]])
    return cells


COLUMNS = ("what", "engine", "weights", "median", "rounds", "limit", "of it", "of best peer", "")


def plot(path: Path, curves: Sequence[dict[str, Any]], title: str) -> None:
    """Write a picture of tokens a second against tokens read, one line for each engine and
    dtype."""
    matplotlib = importlib.import_module("matplotlib")
    matplotlib.use("Agg")
    pyplot = importlib.import_module("matplotlib.pyplot")
    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for curve in curves:
        line = axes.plot(
            curve["tokens"],
            curve["tokens_per_second"],
            marker="o",
            markersize=3,
            label=f"{curve['engine']}, {curve['dtype']}",
        )
        if curve["limit"] is not None:
            axes.axhline(curve["limit"], color=line[0].get_color(), linestyle=":", linewidth=1)
    axes.set_xlabel("tokens read")
    axes.set_ylabel("tokens a second (dotted: the machine's limit)")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.grid(which="both", alpha=0.3)
    axes.legend(fontsize=8)
    axes.set_title(title, fontsize=10)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
