"""Pictures of where answers come from: block scores by layer, as in the paper, and a strip of the
document below. Needs matplotlib (the extra ``plot``); leaves its global state alone.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from quickllama.documents.relevance import Relevance
from quickllama.errors import InvalidValue

__all__ = ["RetrievalFigure", "plot_relevance"]

ABREAST = 3  # questions side by side
WIDTH = 5.2  # inches a question
COLUMNS = 260  # of a heat map; more would be finer than the screen
COLOURS = "magma_r"
FAINTER = 1.5  # exponent of the scale of colours, so that what stands out little does not distract
ACCENT = "#0072b2"
OUTSIDE = "#e4e4e4"
TITLE_COLUMNS = 66
TITLE_LINES = 2


class RetrievalFigure(Figure):
    """A matplotlib Figure that notebooks show by themselves, whether pyplot is in use or not."""

    def _repr_png_(self) -> bytes:
        target = io.BytesIO()
        self.savefig(target, format="png", dpi=110)
        return target.getvalue()


def plot_relevance(relevances: Sequence[Relevance]) -> RetrievalFigure:
    """One heat map for each answer, side by side, with one scale of colours."""
    if not relevances:
        raise InvalidValue("there is no answer to plot; give at least one")
    abreast = min(len(relevances), ABREAST)
    rows = -(-len(relevances) // abreast)
    most_rows = max(len(relevance.rows) for relevance in relevances)
    height = min(max(0.13 * most_rows, 1.8), 4.0)
    figure = RetrievalFigure(
        figsize=(WIDTH * abreast + 1.0, rows * (height + 2.0)), layout="constrained"
    )
    grid = figure.subplots(2 * rows, abreast, squeeze=False, height_ratios=[height, 0.8] * rows)
    top = max(float(relevance.scores.max()) for relevance in relevances)
    maps = []
    for index in range(rows * abreast):
        heat, strip = grid[2 * (index // abreast) : 2 * (index // abreast) + 2, index % abreast]
        if index >= len(relevances):
            heat.remove()
            strip.remove()
            continue
        relevance = relevances[index]
        maps.append(_draw_heat(heat, relevance, max(top, 1e-6)))
        _draw_strip(strip, relevance)
        _mark(heat, strip, relevance)
        heat.set_title(_title(relevance), fontsize=9, parse_math=False, loc="left", pad=18)
    bar = figure.colorbar(maps[0], ax=[a for a in grid[::2].flat if a.figure], pad=0.01, aspect=30)
    bar.set_label("standard deviations above\nthe row's mean", fontsize=8)
    bar.ax.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    bar.ax.tick_params(labelsize=8)
    return figure


def _title(relevance: Relevance) -> str:
    """The question, and what was answered."""
    parts = (relevance.answer.question, f"→ {relevance.answer.text}")
    lines = [
        line
        for part in parts
        for line in textwrap.wrap(part, TITLE_COLUMNS, max_lines=TITLE_LINES, placeholder=" …")
    ]
    return "\n".join(lines).encode("utf-8", "replace").decode("utf-8")


def columns_of(relevance: Relevance) -> tuple[NDArray[np.int64], int]:
    """Where the columns of a picture begin, as indices of pieces, and the pieces a column."""
    n = len(relevance.total)
    width = -(-n // COLUMNS)
    return np.arange(0, n, width), width


def _draw_heat(axes: Axes, relevance: Relevance, top: float) -> QuadMesh:
    """A row for each layer. Where pieces are too many to be seen, a column is the best of several,
    so that no peak is lost."""
    starts, width = columns_of(relevance)
    scores = np.maximum.reduceat(relevance.scores, starts, axis=1)
    edges = np.append(relevance.edges[starts], relevance.edges[-1])
    n = len(relevance.rows)
    mesh = axes.pcolormesh(
        edges, np.arange(n + 1), scores, cmap=COLOURS, norm=PowerNorm(FAINTER, 0, top)
    )
    mesh.set_rasterized(True)
    axes.invert_yaxis()
    by_head = "." in relevance.rows[0]
    step = 1 if by_head or n <= 12 else 5
    axes.set_yticks(np.arange(0, n, step) + 0.5, relevance.rows[::step])
    axes.set_ylabel("layer.head" if by_head else "layer", fontsize=8)
    axes.tick_params(labelsize=8, bottom=False, labelbottom=False)
    notes = [f"a column is the best of {width} blocks"] if width > 1 else []
    if edges[0] > 0 or edges[-1] < relevance.length:
        axes.set_facecolor(OUTSIDE)
        notes.append("grey: first tokens and window, always attended")
    axes.set_xlabel("; ".join(notes), fontsize=8)
    return mesh


def _draw_strip(axes: Axes, relevance: Relevance) -> None:
    """The whole text from left to right, and how far each part of it stands out."""
    starts, _ = columns_of(relevance)
    total = np.maximum.reduceat(relevance.total, starts)
    edges = np.append(relevance.edges[starts], relevance.edges[-1])
    axes.stairs(total, edges, fill=True, color="#888888")
    axes.set_ylim(0, 1.1 * max(float(total.max()), 1e-6))
    paper = relevance.answer.retrieval == "paper"
    axes.set_ylabel("share of\nlayers" if paper else "score", fontsize=8)
    axes.set_xlabel("tokens of the text", fontsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.yaxis.set_major_locator(MaxNLocator(3))
    axes.tick_params(labelsize=8)


def _mark(heat: Axes, strip: Axes, relevance: Relevance) -> None:
    """The evidence: numbered above the heat map, best passage first, and as bands in the strip."""
    above = heat.get_xaxis_transform()
    numbered: list[float] = []
    for axes in (heat, strip):
        axes.set_xlim(0, relevance.length)
    for rank, (first, last) in enumerate(relevance.passages.tolist(), 1):
        middle = (first + last) / 2
        heat.plot([first, last], [1, 1], color=ACCENT, lw=4, clip_on=False, transform=above)
        strip.axvspan(first, last, color=ACCENT, alpha=0.35, lw=1)
        # Numbers that would lie on one another are left out, the worse ones first.
        if all(abs(middle - other) > 0.04 * relevance.length for other in numbered):
            numbered.append(middle)
            heat.annotate(
                str(rank),
                (middle, 1),
                (0, 4),
                xycoords=above,
                textcoords="offset points",
                color=ACCENT,
                fontsize=9,
                fontweight="bold",
                ha="center",
            )
