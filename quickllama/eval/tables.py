"""Tables of results in Markdown, with n and 95 % intervals (Wilson)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from quickllama.prompt import DOCUMENT_PROMPT, PASSAGES_PROMPT

__all__ = ["labelled", "length_name", "markdown", "share", "tables", "wilson", "wrong_answers"]

Row = Mapping[str, Any]
Headers = Mapping[str, Mapping[str, Any]]

_NORMAL = 1.959964  # two-sided 95 %
_VARIED = (
    *("window", "mask", "question_weight", "keep_query_tokens", "question_position"),
    *("dtype", "kv_dtype", "prompt"),
    *("texts", "facts", "model", "parameters", "fingerprint", "seed", "version"),
)


def wilson(hits: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share, ``hits`` of ``n`` (Wilson, 1927)."""
    if not n:
        return 0.0, 1.0
    part, z = hits / n, _NORMAL
    middle = (part + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(part * (1 - part) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(middle - half, 0.0), min(middle + half, 1.0)


def share(rows: Sequence[Row], hit: Callable[[Row], bool]) -> str:
    """``38/40 95 % (84–99)``, or nothing if there are no rows."""
    if not rows:
        return ""
    hits = sum(map(hit, rows))
    low, high = wilson(hits, len(rows))
    return f"{hits}/{len(rows)} {100 * hits / len(rows):.0f} % ({100 * low:.0f}–{100 * high:.0f})"


def length_name(tokens: int) -> str:
    """``4k`` for 4,096, ``1m`` for 1,048,576, else the number."""
    for unit, name in ((1 << 20, "m"), (1 << 10, "k")):
        if tokens % unit == 0:
            return f"{tokens // unit}{name}"
    return f"{tokens:,}"


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def labelled(rows: Iterable[Row], headers: Headers) -> list[dict[str, Any]]:
    """The rows with ``label``: the method, and in brackets those of its settings that differ among
    the results of that task and method."""
    rows = list(rows)
    used: dict[tuple[str, str], dict[str, None]] = {}
    for row in rows:
        used.setdefault((row["task"], row["method"]), {})[row["settings"]] = None
    labels = {}
    for (_, method), names in used.items():
        varied = {name: _settings(headers.get(name, {})) for name in names}
        for name, own in varied.items():
            differing = [
                f"{key.replace('_', ' ')} {value}"
                for key, value in own.items()
                if any(other.get(key) != value for other in varied.values())
            ]
            if len(varied) > 1 and not differing:  # in something that users do not set
                differing = [f"settings {name}"]
            labels[name] = f"{method} ({', '.join(differing)})" if differing else method
    return [{**row, "label": labels[row["settings"]]} for row in rows]


def _settings(identity: Mapping[str, Any]) -> dict[str, Any]:
    """What may differ, by the names that users know."""
    flat = {"keep_query_tokens": False, **identity.get("memory", {}), **identity}
    if flat.get("prompt") in (DOCUMENT_PROMPT, PASSAGES_PROMPT):
        flat["prompt"] = None
    return {key: flat[key] for key in _VARIED if flat.get(key) is not None}


def _best(count: int) -> Callable[[Row], bool]:
    return lambda row: all(rank is not None and rank <= count for rank in row["ranks"])


def _right(row: Row) -> bool:
    return bool(row["correct"])


def _said(row: Row) -> bool:
    return bool(row["right_words"])


def _found(row: Row) -> bool:
    return row["found"] is not False  # too short a text is always taken to hold an answer


def tables(rows: Sequence[Row], headers: Headers, heading: str = "##") -> str:
    """All tables of the results of one or several tasks: right answers, mean scores, passages,
    refusals and seconds, by method and length; ``heading``: how a task's name begins."""
    rows = labelled(rows, headers)
    parts = []
    for task in dict.fromkeys(row["task"] for row in rows):
        parts.append(
            f"{heading} {task}\n\n" + _of_task([row for row in rows if row["task"] == task])
        )
    return "\n".join(parts)


def _of_task(rows: Sequence[Row]) -> str:
    answerable = [row for row in rows if row["expected"]]
    ranked = [row for row in answerable if row["ranks"]]
    told = [row for row in rows if row["found"] is not None]
    partly = answerable if any(0 < row["score"] < 1 for row in answerable) else []
    refusing = {row["label"] for row in told}
    refused = [row for row in answerable if row["label"] in refusing]
    parts = [
        _by_length("Right answers", rows, lambda part: share(part, _right)),
        _by_length("Right words, even where refused", refused, lambda p: share(p, _said)),
        _by_length("Mean score", partly, _mean),
        _by_length("The answer's passage ranks first", ranked, lambda p: share(p, _best(1))),
        _by_length("It is among the best 8", ranked, lambda part: share(part, _best(8))),
        _by_length("Taken to have an answer", told, lambda part: share(part, _found)),
        _by_length("Seconds to an answer's first token, median", rows, _seconds),
    ]
    return "\n".join(part for part in parts if part)


def _mean(rows: Sequence[Row]) -> str:
    return f"{sum(row['score'] for row in rows) / len(rows):.2f} (n {len(rows)})" if rows else ""


def _seconds(rows: Sequence[Row]) -> str:
    return f"{median(row['first_token_seconds'] for row in rows):.2f}" if rows else ""


def _by_length(title: str, rows: Sequence[Row], cell: Callable[[Sequence[Row]], str]) -> str:
    """A line for each kind of question and method, a column for each length."""
    if not rows:
        return ""
    lengths = sorted({row["length"] for row in rows})
    columns = ["question", "method", *map(length_name, lengths)]
    lines = []
    for kind in dict.fromkeys(row["kind"] for row in rows):
        for label in dict.fromkeys(row["label"] for row in rows):
            own = [row for row in rows if row["kind"] == kind and row["label"] == label]
            if own:
                cells = [cell([row for row in own if row["length"] == n]) for n in lengths]
                lines.append([kind, label, *cells])
    return f"**{title}**\n\n" + markdown(columns, lines)


def wrong_answers(rows: Sequence[Row], most: int = 20) -> str:
    """The questions that were not answered rightly, at most so many, as a table."""
    wrong = [row for row in rows if not row["correct"]]
    columns = ["length", "depth", "kind", "question", "expected", "answer"]
    lines = [
        [
            length_name(row["length"]),
            "" if row["depth"] is None else f"{row['depth']} %",
            row["kind"],
            _short(row["question"]),
            _short(", ".join(row["expected"]) or "Not found"),
            _short(row["answer"] + (" (refused)" if row["found"] is False else "")),
        ]
        for row in wrong[:most]
    ]
    rest = len(wrong) - len(lines)
    return markdown(columns, lines) + (f"\nand {rest} more\n" if rest else "")


def _short(text: str, most: int = 100) -> str:
    plain = " ".join(text.split())
    return plain if len(plain) <= most else plain[: most - 1] + "…"
