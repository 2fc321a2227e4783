"""Facts of our own: a sentence that goes into a text, and the questions about it."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path

from quickllama.errors import FileProblem, InvalidValue

__all__ = ["FACTS", "Fact", "load_facts"]

FACTS = Path(__file__).parent / "tasks" / "needle" / "facts.toml"


@dataclasses.dataclass(frozen=True)
class Fact:
    """One fact of a file such as ``tasks/needle/facts.toml``, which explains the fields."""

    sentence: str
    lexical: str
    paraphrase: str
    absent: str
    answers: tuple[str, ...]


def load_facts(path: Path | None = None) -> list[Fact]:
    """The facts of ``path`` (None: the package's own).

    Raises FileProblem for a file that is no TOML, or whose facts lack a field.
    """
    path = FACTS if path is None else path
    try:
        rows = tomllib.loads(path.read_text("utf-8"))["fact"]
        facts = [Fact(**{**row, "answers": tuple(row["answers"])}) for row in rows]
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, KeyError, TypeError) as problem:
        raise FileProblem(
            f"{path} is no file of facts, which has [[fact]] tables with sentence, lexical, "
            f"paraphrase, absent and answers: {problem!r}"
        ) from None
    for fact in facts:
        if not fact.answers or not all(isinstance(x, str) and x for x in fact.answers):
            raise InvalidValue(f"{path}: the fact {fact.sentence!r} has no answers")
    return facts
