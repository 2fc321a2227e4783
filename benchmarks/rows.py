"""From measured rounds to rows and curves: medians, limits, and how much of a limit was reached.

A ratio is taken within a round, against the limits measured in that round; the median of ratios is
what counts on a machine that is not always equally fast.
"""

from __future__ import annotations

import dataclasses
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
ORDER = ("read", "skim", "memory", "prompt", "decode", "deep", "import", "load")


@dataclass(frozen=True)
class Setting:
    """What was measured: models by name, memory, threads, and which rows to show."""

    configs: Mapping[str, ModelConfig]
    memory: MemoryConfig
    threads: int
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
    """Tokens a second of reading (or skimming) in the steady state, by the peak rates; QuickLLaMA
    only."""
    if result["engine"] != "quickllama":
        return None
    config = setting.configs[result["model"]]
    flops = costs.flops_of_reading(config, costs.keys_while_reading(setting.memory))
    if result["job"] == "skim":
        flops = costs.flops_of_skimming(config, MemoryConfig.skim(), result["layers"])
    return limits.tokens_per_second(rates, flops, result["dtype"], variant_of(result))


def prompt_limit(setting: Setting, result: Result, rates: Rates) -> float | None:
    """Tokens a second of a prompt within the window; QuickLLaMA only."""
    if result["engine"] != "quickllama":
        return None
    n_keys = (result["prompt_tokens"] + 1) / 2
    flops = costs.flops_of_reading(setting.configs[result["model"]], n_keys)
    return limits.tokens_per_second(rates, flops, result["dtype"], variant_of(result))


def decoding_limit(setting: Setting, depth: int, result: Result, rates: Rates) -> float | None:
    """Tokens a second if memory were read at its full rate; QuickLLaMA only."""
    if result["engine"] != "quickllama" or "memory" not in rates:
        return None
    config, held = setting.configs[result["model"]], result["bytes"]["weights"]
    memory = dataclasses.replace(setting.memory, **result["memory"])
    return rates["memory"] / costs.bytes_of_decoding(config, memory, depth, held, "bfloat16")


def _rest(result: Result) -> float:
    held = result["bytes"]
    return float(held["peak"] - held.get("weights", 0) - held.get("session", 0)) / MIB


def _part(part: str) -> Callable[[Result], float]:
    return lambda r: r["bytes"][part] / MIB


def _rate(segments: Sequence[Result]) -> float:
    return float(sum(s["tokens"] for s in segments) / sum(s["seconds"] for s in segments))


def kinds(setting: Setting, job: str, result: Result) -> list[Kind]:
    """The rows that a job's results fill."""
    if job == "read" and result["memory"]:  # reading is the same, writing is not
        return _decoding(setting, result)
    if job == "read":
        read = _reading(setting, result, "read") if "read" in setting.what else []
        decoded = _decoding(setting, result) if "decode" in setting.what else []
        return [*read, *(_memory(result) if "memory" in setting.what else []), *decoded]
    if job == "skim":
        more = Kind("skim: memory for it", "MiB", lambda r: _part("peak")(r) - _part("loaded")(r))
        return [*_reading(setting, result, "skim"), more]
    if job == "deep":
        layers = setting.configs[result["model"]].num_hidden_layers
        return _decoding(setting, result, f"deep, {layers} layers: ")
    if job == "decode":
        return _decoding(setting, result)
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


def _reading(setting: Setting, result: Result, verb: str) -> list[Kind]:
    segments = result["segments"]
    size, end = f"{segments[0]['tokens']:,}", f"{segments[-1]['end']:,}"
    last = f"{verb}: last {size}, to {end}"

    def bound(r: Result, rates: Rates) -> float | None:
        return reading_limit(setting, r, rates)

    def seconds(r: Result) -> float:
        return float(r["warm"]["seconds"] + sum(s["seconds"] for s in r["segments"]))

    return [
        Kind(f"{verb}: first {size}", "tokens/s", lambda r: _rate(r["segments"][:1]), bound),
        Kind(last, "tokens/s", lambda r: _rate(r["segments"][-1:]), bound),
        Kind(f"{verb}: all {end}", "tokens/s", lambda r: _rate(r["segments"]), bound),
        Kind(f"{verb}: all {end}, time", "s", seconds),
        Kind(
            f"{verb}: rate of the last, as part of the first",
            "",
            lambda r: _rate(r["segments"][-1:]) / _rate(r["segments"][:1]),
        ),
    ]


def _memory(result: Result) -> list[Kind]:
    parts = [part for part in ("weights", "session") if part in result["bytes"]]
    return [
        Kind("memory: peak", "MiB", _part("peak")),
        *(Kind(f"memory: {part}", "MiB", _part(part)) for part in parts),
        Kind("memory: the rest", "MiB", _rest),
    ]


def _decoding(setting: Setting, result: Result, before: str = "") -> list[Kind]:
    """A row for each depth; for depths in one process also the last ones beside the first."""
    depths = sorted(result["rates"], key=int)

    def rate(depth: str) -> Kind:
        return Kind(
            f"{before}decode after {int(depth):,}",
            "tokens/s",
            lambda r: r["rates"].get(depth),
            lambda r, rates: decoding_limit(setting, int(depth), r, rates),
        )

    def part(depth: str) -> Kind:
        return Kind(
            f"{before}decode after {int(depth):,}, as part of {int(depths[0]):,}",
            "",
            lambda r: r["rates"][depth] / r["rates"][depths[0]],
        )

    compared = depths[1:] if "segments" in result else []
    return [*map(rate, depths), *map(part, compared)]


def rows_of(
    setting: Setting, rounds: Sequence[limits.Limits], results: Sequence[Result]
) -> list[dict[str, Any]]:
    """One row for each number of each engine and dtype; a note instead where there is none."""
    rows = []
    names = ("job", "engine", "label", "model")
    for group in dict.fromkeys(tuple(r[name] for name in names) for r in results):
        same = [r for r in results if tuple(r[name] for name in names) == group]
        good = [r for r in same if "details" in r]
        empty = {"engine": group[1], "dtype": group[2], "unit": "", "values": [], "median": None}
        empty |= {"limit": None, "ratio": None, "beside": None}
        for result in same:
            notes = {"missing": "not installed", "failed": "failed"}
            for key in notes.keys() & result.keys():
                note = f"{notes[key]}: {result[key]}"
                rows.append({**empty, "what": group[0], "note": note})
        if not good:
            continue
        for kind in kinds(setting, group[0], good[0]):
            rows.append({**empty, **_row(kind, setting, rounds, good)})
    _compare(rows)
    return _sorted(rows)


def _compare(rows: list[dict[str, Any]]) -> None:
    """Sets ``beside`` of our rates: the median over rounds of ours divided by the best peer's."""
    for row in rows:
        if row["engine"] != "quickllama" or row["unit"] != "tokens/s":
            continue
        same = [r for r in rows if r["what"] == row["what"] and r["engine"] != "quickllama"]
        peers = [r["values"] for r in same if len(r["values"]) == len(row["values"])]
        if peers:
            best = [max(values) for values in zip(*peers, strict=True)]
            pairs = zip(row["values"], best, strict=True)
            row["beside"] = median(ours / theirs for ours, theirs in pairs)


def _sorted(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By kind, and what is the same of several engines together."""
    first = {what: index for index, what in reversed(list(enumerate(r["what"] for r in rows)))}

    def key(row: dict[str, Any]) -> tuple[int, int]:
        word = row["what"].replace(",", ":").partition(":")[0].partition(" ")[0]
        return ORDER.index(word), first[row["what"]]

    return sorted(rows, key=key)


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


def strangers(results: Sequence[Result]) -> list[str]:
    """Sentences about engines whose best token after the prompt is not among QuickLLaMA's five
    best: they have read other tokens, or have other weights."""
    prompts = [r for r in results if r["job"] == "prompt" and "best" in r]
    ours = {token for r in prompts if r["engine"] == "quickllama" for token, _ in r["best"]}
    return [
        f"{r['engine']} {r['label']}: after the prompt its best token is {r['best'][0][0]}, "
        f"which is none of QuickLLaMA's best ({', '.join(map(str, sorted(ours)))})"
        for r in prompts
        if ours and r["best"][0][0] not in ours
    ]


def curves_of(
    setting: Setting, rounds: Sequence[limits.Limits], results: Sequence[Result]
) -> list[dict[str, Any]]:
    """Tokens a second of each segment, medians over rounds, by engine and label."""
    curves = []
    plain = [r for r in results if r["job"] in ("read", "skim") and not r["memory"]]
    reads = [r for r in plain if r.get("segments")]
    for engine, label in dict.fromkeys((r["engine"], r["label"]) for r in reads):
        good = [r for r in reads if (r["engine"], r["label"]) == (engine, label)]
        count = min(len(r["segments"]) for r in good)
        bounds = [reading_limit(setting, r, rounds[r["round"]][str(setting.threads)]) for r in good]
        known = [bound for bound in bounds if bound]
        segments = range(count)
        curves.append(
            {
                "engine": engine,
                "dtype": label,
                "tokens": [good[0]["segments"][i]["end"] for i in segments],
                "tokens_per_second": [
                    median(_rate(r["segments"][i : i + 1]) for r in good) for i in segments
                ],
                "limit": median(known) if known else None,
            }
        )
    return curves
