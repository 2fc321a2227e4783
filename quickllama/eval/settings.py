"""What is evaluated, and how: the wall for everything that a caller says about it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypedDict

from quickllama import checks
from quickllama.config import WINDOWS, MemoryConfig
from quickllama.errors import FileProblem, InvalidType, InvalidValue
from quickllama.prompt import PromptForm

__all__ = ["MOST_TOKENS", "POSITIONS", "Options", "Settings", "tokens_of"]

MOST_TOKENS = 1 << 24
POSITIONS = ("both", "after")
"""Where the question stands for methods that read with a memory's own lookups: before and after the
text, which is then read anew for each question; or only after it."""

_LENGTH = re.compile(r"(\d+)([km]?)", re.IGNORECASE)


def tokens_of(length: object) -> int:
    """``4096``, ``"4096"``, ``"4k"`` (4,096) or ``"1m"`` (1,048,576) as a number of tokens.

    Raises InvalidType or InvalidValue.
    """
    if isinstance(length, str):
        found = _LENGTH.fullmatch(length.strip())
        if found is None:
            raise InvalidValue(f"a length is a number of tokens such as 4096 or 4k, not {length!r}")
        unit = {"": 1, "k": 1 << 10, "m": 1 << 20}[found[2].lower()]
        length = int(found[1]) * unit
    return checks.integer("a length", length, 256, MOST_TOKENS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What :func:`quickllama.eval.evaluate` is asked for.

    * ``lengths``: tokens of the texts, whole numbers or such as ``"16k"``; ``depths``: percent of
      the text at which answers lie.
    * ``n``: questions of each kind at each length and depth; tasks whose questions have no place
      ask as many in all at each length as ``n`` times the number of depths.
    * ``kinds``: of the task's kinds of question; None: those that it asks by default.
    * ``methods``: see :mod:`quickllama.eval.methods`.
    * ``texts``: ordinary text, for tasks that hide something in it: ``"pydoc"``, ``"kjv"`` or a
      folder of ``.txt`` files; ``facts``: a file of facts, for the tasks ``needle`` and
      ``fact_qa``; ``data``: the file of a benchmark that is read, not made.
    * ``seed``: what is drawn comes from it, the length and the task.
    * ``window``, ``question_weight`` (None: the model's), ``keep_query_tokens``, ``mask``: of the
      methods that read with a memory's own lookups; ``question_position``: see :data:`POSITIONS`.
    * ``prompt``: other words around text and question; ``kv_dtype``: of keys and values.

    Raises InvalidType, InvalidValue or FileProblem.
    """

    lengths: Sequence[int | str] = (4096,)
    depths: Sequence[int] = (10, 50, 90)
    n: int = 5
    kinds: Sequence[str] | None = None
    methods: Sequence[str] = ("heads",)
    texts: str = "pydoc"
    facts: Path | str | None = None
    data: Path | str | None = None
    seed: int = 0
    window: str = "1k"
    question_weight: float | None = None
    keep_query_tokens: bool = False
    mask: str = "exact"
    question_position: str = "both"
    prompt: str | None = None
    kv_dtype: str | None = None

    def __post_init__(self) -> None:
        put = object.__setattr__
        lengths = sorted({tokens_of(item) for item in _several("lengths", self.lengths)})
        put(self, "lengths", tuple(lengths))
        depths = _several("depths", self.depths)
        checked = {checks.integer("a depth in percent", item, 0, 100) for item in depths}
        put(self, "depths", tuple(sorted(checked)))
        put(self, "n", checks.integer("n", self.n, 1, 10_000))
        put(self, "seed", checks.integer("seed", self.seed, 0, 2**63 - 1))
        for name in ("kinds", "methods"):
            if getattr(self, name) is not None:
                words = tuple(dict.fromkeys(_several(name, getattr(self, name))))
                put(self, name, tuple(_word(name, word) for word in words))
        for name in ("facts", "data"):
            put(self, name, _file(name, getattr(self, name)))
        if not isinstance(self.texts, str | Path):
            raise InvalidType(f"texts is 'pydoc', 'kjv' or a folder's path, not {self.texts!r}")
        put(self, "texts", str(self.texts))
        if self.prompt is not None:
            PromptForm.of(self.prompt)
        checks.choice("window", self.window, tuple(WINDOWS))
        checks.choice("question_position", self.question_position, POSITIONS)
        self.memory("qllm")  # checks weight and mask

    def memory(self, mode: str, **settings: Any) -> MemoryConfig:
        """The memory of a method that reads in ``mode``."""
        if mode == "qllm":
            own = ("question_weight", "keep_query_tokens")
            settings = {**{name: getattr(self, name) for name in own}, **settings}
        if mode in ("qllm", "infllm"):
            settings = {"mask": self.mask, **settings}
        return MemoryConfig.window(self.window, mode=mode, **settings)


def _several(name: str, value: object) -> list[Any]:
    """``value`` as a list of at least one; a single one or a string stands for itself."""
    if isinstance(value, str | int):
        return [value]
    if isinstance(value, bytes) or not isinstance(value, Iterable):
        raise InvalidType(f"{name} must be a list, not {value!r}")
    items = list(value)
    if not items:
        raise InvalidValue(f"{name} must hold at least one")
    return items


def _file(name: str, value: object) -> Path | None:
    if value is None:
        return None
    if not isinstance(value, str | Path):
        raise InvalidType(f"{name} must be the path of a file, not {value!r}")
    path = Path(value)
    if not path.is_file():
        raise FileProblem(f"{name}: there is no file {str(path)!r}")
    return path


def _word(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise InvalidType(f"{name} must be names, not {value!r}")
    return value


class Options(TypedDict, total=False):
    """The fields of :class:`Settings` as keyword arguments."""

    lengths: Sequence[int | str]
    depths: Sequence[int]
    n: int
    kinds: Sequence[str] | None
    methods: Sequence[str]
    texts: str
    facts: Path | str | None
    data: Path | str | None
    seed: int
    window: str
    question_weight: float | None
    keep_query_tokens: bool
    mask: str
    question_position: str
    prompt: str | None
    kv_dtype: str | None
