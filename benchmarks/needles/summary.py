"""Tables of an evaluation's results, with n and 95 % intervals (Wilson)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from report import print_table

Row = dict[str, Any]
_NORMAL = 1.959964  # two-sided 95 %


def wilson(hits: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share, ``hits`` of ``n``: Wilson, 1927."""
    if not n:
        return 0.0, 1.0
    share, z = hits / n, _NORMAL
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(middle - half, 0.0), min(middle + half, 1.0)


def share(rows: Sequence[Row], hit: Callable[[Row], bool]) -> str:
    """``38/40 95 % (84-99)``, or nothing if there are no rows."""
    if not rows:
        return ""
    hits = sum(map(hit, rows))
    low, high = wilson(hits, len(rows))
    return f"{hits}/{len(rows)} {100 * hits / len(rows):.0f} % ({100 * low:.0f}-{100 * high:.0f})"


def among(best: int) -> Callable[[Row], bool]:
    """Whether all facts of a question are among the ``best`` pieces."""
    return lambda row: all(rank is not None and rank <= best for rank in row["ranks"])


def right(row: Row) -> bool:
    """Whether the answer is right."""
    return bool(row["right"])


def said_found(row: Row) -> bool:
    """Whether the text was taken to hold an answer; too short a text always is."""
    return row["found"] is not False


def _lengths(rows: Sequence[Row]) -> list[int]:
    return sorted({row["length"] for row in rows})


def _by_length(
    rows: Sequence[Row], kind: str, system: str, hit: Callable[[Row], bool], lengths: Sequence[int]
) -> list[str]:
    chosen = [row for row in rows if row["kind"] == kind and row["system"] == system]
    cells = [share([row for row in chosen if row["length"] == n], hit) for n in lengths]
    return [*cells, share(chosen, hit)]


def print_summary(rows: Sequence[Row]) -> None:
    """Finding, answering, and not finding, by length and over all of them."""
    lengths = _lengths(rows)
    columns = [f"{n:,} tokens" for n in lengths] + ["all"]
    systems = sorted({row["system"] for row in rows})
    for title, hit in (
        ("Passage among the best 8 blocks", among(8)),
        ("Passage is the best block", among(1)),
        ("Answer right", right),
    ):
        table = []
        for kind in ("lexical", "paraphrase", "two"):
            for system in systems:
                cells = _by_length(rows, kind, system, hit, lengths)
                if cells[-1] and not (hit is not right and system in ("right passage", "stream")):
                    table.append([kind, system, *cells])
        print_table(title, ["question", "system", *columns], table)
    told = [row for row in rows if row["system"] in ("heads", "skim") and row["found"] is not None]
    table = [
        [kind, system, *cells]
        for kind in ("lexical", "paraphrase", "two", "absent", "elsewhere")
        for system in ("heads", "skim")
        if (cells := _by_length(told, kind, system, said_found, lengths))[-1]
    ]
    print_table(
        'Taken to have an answer (not "not found")', ["question", "system", *columns], table
    )
    _print_seconds(rows, lengths)


def _print_seconds(rows: Sequence[Row], lengths: Sequence[int]) -> None:
    table = []
    for reading in sorted({row["reading"] for row in rows}):
        cells = []
        for n in lengths:
            read = {
                row["text"]: row["tokens"] / row["reading_seconds"]
                for row in rows
                if row["length"] == n and row["reading"] == reading and row["reading_seconds"]
            }
            cells.append(f"{sum(read.values()) / len(read):,.0f} tokens/s" if read else "")
        table.append([f"reading: {reading}", *cells])
    for system in sorted({row["system"] for row in rows}):
        cells = []
        for n in lengths:
            waits = sorted(
                row["first_token_seconds"]
                for row in rows
                if row["length"] == n and row["system"] == system
            )
            cells.append(f"{waits[len(waits) // 2]:.2f} s" if waits else "")
        table.append([f"first token: {system}", *cells])
    print_table("Seconds", ["", *[f"{n:,} tokens" for n in lengths]], table)
