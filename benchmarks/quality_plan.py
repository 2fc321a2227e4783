"""What is on the results page: which questions are asked of which model, by which methods."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import quickllama as ql
from quickllama.eval import METHODS, Settings
from quickllama.eval.settings import tokens_of
from quickllama.eval.tasks import find_task

__all__ = ["PLAN", "QWEN", "RESULTS", "Part", "Run"]

RESULTS = Path(__file__).parent / "quality" / "results"
HELD_OUT = Path(ql.__file__).parent / "eval" / "tasks" / "needle" / "facts_held_out.toml"
SMOLLM2 = "SmolLM2-135M-Instruct"
QWEN = "Qwen2.5-Coder-0.5B-Instruct"


@dataclasses.dataclass(frozen=True)
class Part:
    """Questions of one task about texts of one length, by methods that share a reading.

    ``tokens`` to be read and ``answers`` to be written, about; skimmed tokens count a third.
    """

    run: Run
    task: str
    settings: dict[str, Any]
    tokens: int
    answers: int


@dataclasses.dataclass(frozen=True)
class Run:
    """Evaluations that share a table; ``about`` is what the page says of them, ``settings`` those
    of each. Texts and questions are the same where n, depths, kinds and length are."""

    name: str
    about: str
    tasks: tuple[str, ...]
    settings: tuple[dict[str, Any], ...]
    model: str = SMOLLM2
    results: Path = RESULTS

    @property
    def folder(self) -> Path:
        """Where its results are."""
        return self.results / self.name

    def parts(self) -> Iterator[Part]:
        """All of it, in pieces that may be done in any order."""
        for task in self.tasks:
            for given in self.settings:
                for length in given["lengths"]:
                    readings: dict[str, list[str]] = {}
                    for name in given["methods"]:
                        readings.setdefault(METHODS[name].reading, []).append(name)
                    for methods in readings.values():
                        settings = {**given, "lengths": [length], "methods": methods}
                        yield Part(self, task, settings, *_size(task, settings))


def _size(name: str, given: dict[str, Any]) -> tuple[int, int]:
    """Tokens and answers of a :class:`Part`."""
    task, settings = find_task(name), Settings(**given)
    method = METHODS[settings.methods[0]]
    kinds = settings.kinds or task.usual
    slots = len(settings.depths) * settings.n
    texts = -(-slots // task.per_text)
    if name == "babi":
        texts *= len(kinds)
    elif "distractors" in kinds and len(kinds) > 1:
        texts *= 2
    times = slots * len(kinds) if method.anew else texts
    tokens = round(times * method.cost * tokens_of(settings.lengths[0]))
    return tokens, slots * len(kinds) * len(settings.methods)


DEPTHS = ([10], [50], [90])
ANEW = ("qllm", "infllm", "stream")
MANUALS: dict[str, Any] = {
    "facts": HELD_OUT,
    "texts": Path("heldout"),
    "depths": [10, 30, 50, 70, 90],
    "n": 4,
    "methods": ["heads", "given", "bm25"],
    "kinds": ["lexical", "paraphrase"],
}
UNTOLD: dict[str, Any] = {**MANUALS, "methods": ["heads"], "kinds": ["absent", "elsewhere"]}
FEW: dict[str, Any] = {**MANUALS, "kinds": ["lexical"], "n": 5}
RULER = (
    *("multi_key", "multi_value", "multi_query", "variable_tracking"),
    *("common_words", "frequent_words", "fact_qa"),
)

PLAN = (
    Run(
        "passkey",
        "A pass key in repeated filler. qllm and the other modes read it with the question before "
        "it, window 1k. The model was trained on texts of up to 8,192 tokens.",
        ("passkey",),
        (
            {"methods": ["heads", "skim"], "lengths": ["4k", "16k"], "n": 1},
            {"methods": [*ANEW, "infinite", "full"], "lengths": ["4k", "16k"], "n": 1},
            {"methods": ["qllm"], "lengths": ["8k"], "n": 1},
            {"methods": ["qllm"], "lengths": ["8k", "16k"], "n": 1, "kv_dtype": "int8"},
            {"methods": ["heads", "skim", "qllm"], "lengths": ["64k"], "depths": [50], "n": 1},
            {"methods": ["qllm", "infllm"], "lengths": ["128k"], "depths": [50], "n": 1},
            {
                "methods": ["heads", "skim", "qllm", "infllm"],
                "lengths": ["256k"],
                "depths": [50],
                "n": 1,
            },
            {"methods": ["heads", "skim"], "lengths": ["1m"], "depths": [50], "n": 1},
        ),
    ),
    Run(
        "needle-manuals",
        "Facts that were kept back, in two manuals (`python benchmarks/texts.py heldout --names "
        "securing installation`; texts of more than about 180,000 tokens repeat them), ten to a "
        "text, which is read once.",
        ("needle",),
        (
            {**MANUALS, "lengths": ["4k", "16k", "64k"]},
            {**UNTOLD, "lengths": ["4k", "16k", "64k"]},
            {**MANUALS, "lengths": ["16k"], "kinds": ["two", "distractors"]},
            {**MANUALS, "lengths": ["16k"], "methods": ["heads"], "kv_dtype": "int8"},
            {**MANUALS, "lengths": ["16k"], "methods": ["heads-infllm"]},
            {
                **MANUALS,
                "lengths": ["16k"],
                "methods": ["heads-infllm"],
                "kinds": ["two", "distractors"],
            },
            {**MANUALS, "lengths": ["64k"], "methods": ["skim"]},
            {**MANUALS, "lengths": ["128k"], "methods": ["heads", "skim", "given", "bm25"], "n": 2},
            {**MANUALS, "lengths": ["256k"], "methods": ["heads", "skim", "given", "bm25"], "n": 2},
        ),
    ),
    Run(
        "needle-anew",
        "The same facts and manuals, fewer questions: the paper's modes read the text anew for "
        "each.",
        ("needle",),
        tuple(
            {**FEW, "depths": depth, **one}
            for depth in DEPTHS
            for one in (
                {"methods": ["heads", "given", *ANEW], "lengths": ["4k", "16k", "32k"]},
                {"methods": ["full"], "lengths": ["4k"]},
                {"methods": ["qllm"], "lengths": ["4k", "16k"], "mask": "authors"},
                {"methods": ["qllm"], "lengths": ["4k", "16k"], "question_weight": 4.0},
                {"methods": ["qllm"], "lengths": ["4k", "16k"], "window": "512"},
                {"methods": ["qllm"], "lengths": ["4k", "16k"], "window": "2k"},
            )
        ),
    ),
    Run(
        "qwen-passkey",
        f"The same with another model, {QWEN} (its publisher's q4_k_m GGUF file, held as "
        "bfloat16), calibrated as any user would.",
        ("passkey",),
        ({"methods": ["heads", "qllm", "stream"], "lengths": ["4k"], "n": 1},),
        QWEN,
    ),
    Run(
        "qwen-needle",
        f"The facts and manuals of needle-manuals, {QWEN}.",
        ("needle",),
        (
            {**MANUALS, "methods": ["heads", "given"], "lengths": ["4k"]},
            {**MANUALS, "methods": ["heads", "given"], "lengths": ["16k"], "n": 2},
        ),
        QWEN,
    ),
    Run(
        "number-string",
        "A sequence of digits in repeated filler.",
        ("number_string",),
        ({"methods": ["heads", "skim", "qllm", "infllm"], "lengths": ["4k", "16k"], "n": 1},),
    ),
    Run(
        "key-value",
        "One line of a JSON object.",
        ("key_value",),
        (
            {"methods": ["heads", "skim", "given"], "lengths": ["4k", "16k"]},
            {"methods": ["qllm", "full"], "lengths": ["4k"]},
            {"methods": ["qllm"], "lengths": ["16k"]},
        ),
    ),
    Run(
        "babi",
        "What people did in a simulation, spread over ordinary text.",
        ("babi",),
        tuple(
            {"methods": ["heads", "given", *methods], "lengths": [length], "kinds": [kind]}
            for kind in find_task("babi").kinds
            for length, methods in (("4k", ["qllm", "stream", "full"]), ("16k", ["qllm"]))
        ),
    ),
    Run(
        "ruler",
        "RULER's families.",
        RULER,
        (
            {"methods": ["heads", "qllm", "full"], "lengths": ["4k"]},
            {"methods": ["heads", "qllm"], "lengths": ["16k"], "n": 2},
        ),
    ),
    Run(
        "verses",
        "Verses of the Bible, by label and by words.",
        ("verses",),
        ({"methods": ["heads", "skim", "given", "bm25"], "lengths": ["4k", "16k", "64k"]},),
    ),
)
