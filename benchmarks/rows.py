"""From measured rounds to rows and curves: medians, limits, and how much of a limit was reached.

A ratio is taken within a round, against the limits measured in that round; the median of ratios is
what counts on a machine that is not always equally fast.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import costs
import limits

from quickllama import MemoryConfig, ModelConfig

Result = Mapping[str, Any]
Rates = Mapping[str, float]
MIB = 1 << 20


@dataclass(frozen=True)
class Setting:
    """What was measured: model, memory, threads, tokens of a segment, and which rows to show."""

    config: ModelConfig
    memory: MemoryConfig
    threads: int
    segment: int
    what: tuple[str, ...]


@dataclass(frozen=True)
class Kind:
    """One row of an engine and dtype.

    * ``value``: the number in a worker's result, None if it has none.
    * ``limit``: the same number if the machine were used fully, given a round's rates.
    """

    what: str
    unit: str
    value: Callable[[Result], float | None]
    limit: Callable[[Result, Rates], float | None] = lambda _result, _rates: None


def median_limits(rounds: Sequence[limits.Limits]) -> limits.Limits:
    """The median of each limit over rounds."""
    first = rounds[0]
    return {
        count: {name: median(found[count][name] for found in rounds) for name in rates}
        for count, rates in first.items()
    }


def details(results: Iterable[Result]) -> dict[str, dict[str, str]]:
    """What each engine says of itself."""
    return {result["engine"]: result["details"] for result in results if result.get("details")}


def variant_of(result: Result) -> str:
    """The CPU variant that a worker ran."""
    return str(result["details"].get("variant", ""))


def reading_limit(setting: Setting, result: Result, rates: Rates) -> float | None:
    """Tokens a second of reading in the steady state, by the peak rate; QuickLLaMA only."""
    return _bound(setting, result, rates, costs.keys_while_reading(setting.memory))


def prompt_limit(setting: Setting, result: Result, rates: Rates) -> float | None:
    """Tokens a second of a prompt within the window."""
    return _bound(setting, result, rates, (result["prompt_tokens"] + 1) / 2)


def _bound(setting: Setting, result: Result, rates: Rates, n_keys: float) -> float | None:
    if result["engine"] != "quickllama":
        return None
    rate = limits.peak(rates, result["dtype"], variant_of(result))
    return rate and rate / costs.flops_of_reading(setting.config, n_keys)


def decoding_limit(setting: Setting, depth: int, result: Result, rates: Rates) -> float | None:
    """Tokens a second if memory were read at its full rate; QuickLLaMA only."""
    if result["engine"] != "quickllama" or "memory" not in rates:
        return None
    n_bytes = costs.bytes_of_decoding(
        setting.config, setting.memory, depth, result["dtype"], "bfloat16"
    )
    return rates["memory"] / n_bytes


def _rest(result: Result) -> float:
    held = result["bytes"]
    return float(held["peak"] - held.get("weights", 0) - held.get("session", 0)) / MIB


def kinds(setting: Setting, job: str, result: Result) -> list[Kind]:
    """The rows that a job's results fill."""
    size = f"{setting.segment:,}"

    def reading(seconds: Callable[[Sequence[float]], float]) -> Callable[[Result], float]:
        return lambda r: setting.segment / seconds([s["seconds"] for s in r["segments"]])

    def bound(r: Result, rates: Rates) -> float | None:
        return reading_limit(setting, r, rates)

    if job == "read":
        found = []
        if "read" in setting.what:
            total = f"{setting.segment * len(result['segments']):,}"
            found += [
                Kind(f"read: first {size}", "tokens/s", reading(lambda s: s[0]), bound),
                Kind(f"read: last {size}", "tokens/s", reading(lambda s: s[-1]), bound),
                Kind(f"read: all {total}", "tokens/s", reading(lambda s: sum(s) / len(s)), bound),
                Kind(
                    "read: rate of the last, as part of the first",
                    "",
                    lambda r: r["segments"][0]["seconds"] / r["segments"][-1]["seconds"],
                ),
            ]
        if "memory" in setting.what:
            found.append(Kind("memory: peak", "MiB", lambda r: r["bytes"]["peak"] / MIB))
            for part in ("weights", "session"):
                if part in result["bytes"]:
                    found.append(Kind(f"memory: {part}", "MiB", _part(part)))
            found.append(Kind("memory: the rest", "MiB", _rest))
        return found
    if job == "decode":
        return [_decoding(setting, depth) for depth in result["rates"]]
    if job == "prompt":
        return [
            Kind(
                f"prompt of {result['prompt_tokens']}",
                "tokens/s",
                lambda r: r["rate"],
                lambda r, rates: prompt_limit(setting, r, rates),
            )
        ]
    return [
        Kind("import", "s", lambda r: r["import_seconds"]),
        Kind("load", "s", lambda r: r["load_seconds"]),
    ]


def _part(part: str) -> Callable[[Result], float]:
    return lambda r: r["bytes"][part] / MIB


def _decoding(setting: Setting, depth: str) -> Kind:
    return Kind(
        f"decode after {int(depth):,}",
        "tokens/s",
        lambda r: r["rates"][depth],
        lambda r, rates: decoding_limit(setting, int(depth), r, rates),
    )


def rows_of(
    setting: Setting, rounds: Sequence[limits.Limits], results: Sequence[Result]
) -> list[dict[str, Any]]:
    """One row for each number of each engine and dtype; a note instead where there is none."""
    rows = []
    groups = dict.fromkeys((r["job"], r["engine"], r["dtype"]) for r in results)
    for job, engine, dtype in groups:
        same = [r for r in results if (r["job"], r["engine"], r["dtype"]) == (job, engine, dtype)]
        good = [r for r in same if "details" in r]
        empty = {"engine": engine, "dtype": dtype, "unit": "", "values": [], "median": None}
        empty |= {"limit": None, "ratio": None}
        for result in same:
            if "missing" in result:
                rows.append({**empty, "what": job, "note": f"not installed: {result['missing']}"})
            elif "failed" in result:
                rows.append({**empty, "what": job, "note": f"failed: {result['failed']}"})
        if not good:
            continue
        for kind in kinds(setting, job, good[0]):
            rows.append({**empty, **_row(kind, setting, rounds, good)})
    return sorted(rows, key=lambda row: row["what"].partition(":")[0].partition(" ")[0])


def _row(
    kind: Kind, setting: Setting, rounds: Sequence[limits.Limits], results: Sequence[Result]
) -> dict[str, Any]:
    values, bounds, ratios = [], [], []
    for result in results:
        value = kind.value(result)
        if value is None:
            continue
        values.append(value)
        bound = kind.limit(result, rounds[result["round"]][str(setting.threads)])
        if bound:
            bounds.append(bound)
            ratios.append(value / bound)
    return {
        "what": kind.what,
        "unit": kind.unit,
        "values": values,
        "median": median(values) if values else None,
        "limit": median(bounds) if bounds else None,
        "ratio": median(ratios) if ratios else None,
        "note": "",
    }


def curves_of(
    setting: Setting, rounds: Sequence[limits.Limits], results: Sequence[Result]
) -> list[dict[str, Any]]:
    """Tokens a second of each segment, medians over rounds, by engine and dtype."""
    curves = []
    for engine, dtype in dict.fromkeys((r["engine"], r["dtype"]) for r in results):
        good = [
            r for r in results if (r["engine"], r["dtype"]) == (engine, dtype) and r.get("segments")
        ]
        if not good:
            continue
        count = min(len(r["segments"]) for r in good)
        bounds = [reading_limit(setting, r, rounds[r["round"]][str(setting.threads)]) for r in good]
        known = [bound for bound in bounds if bound]
        curves.append(
            {
                "engine": engine,
                "dtype": dtype,
                "tokens": [good[0]["segments"][i]["end"] for i in range(count)],
                "tokens_per_second": [
                    median(setting.segment / r["segments"][i]["seconds"] for r in good)
                    for i in range(count)
                ],
                "limit": median(known) if known else None,
            }
        )
    return curves
