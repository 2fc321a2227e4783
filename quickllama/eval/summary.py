"""What an evaluation gives back."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quickllama import checks
from quickllama.errors import InvalidType, InvalidValue
from quickllama.eval import tables
from quickllama.eval.results import load_results

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Results"]


@dataclasses.dataclass(frozen=True)
class Results:
    """The answered questions of an evaluation, shown as tables in a notebook.

    ``rows``: one dict for each question and method: ``task``, ``method``, ``length``, ``tokens``,
    ``depth``, ``kind``, ``question``, ``expected``, ``answer``, ``correct``, ``score`` (0 to 1) and
    ``right_words`` (both of the words alone, even if the method would have refused), ``found``,
    ``confidence``, ``ranks`` (of the answer's passages, from 1), ``seconds``,
    ``first_token_seconds``, ``reading_seconds`` and ``settings``. ``headers``: what each of these
    settings is.
    """

    rows: Sequence[Mapping[str, Any]]
    headers: Mapping[str, Mapping[str, Any]]

    @classmethod
    def load(cls, *paths: str | Path) -> Results:
        """Results that were kept: files, or folders of them. Raises FileProblem."""
        return cls(*load_results(map(Path, paths)))

    def where(self, **values: Any) -> Results:
        """Only the rows with these values, such as ``method="heads", length=4096``; a list of
        values: any of them. Raises InvalidType for a column that there is not."""
        known = sorted({name for row in self.rows for name in row})
        for name in values:
            if self.rows and name not in known:
                raise InvalidType(
                    f"results have no column {name!r}"
                    f"{checks.nearest(name, known) or '; they have ' + ', '.join(known)}"
                )
        chosen = [
            row
            for row in self.rows
            if all(row[name] in _values(value) for name, value in values.items())
        ]
        return Results(chosen, self.headers)

    @property
    def accuracy(self) -> float:
        """The share of questions that were answered rightly, 0 to 1. Raises InvalidValue if there
        are none."""
        if not self.rows:
            raise InvalidValue("there are no results of which to give a share")
        return sum(bool(row["correct"]) for row in self.rows) / len(self.rows)

    @property
    def lengths(self) -> list[int]:
        """The lengths of texts, ascending."""
        return sorted({row["length"] for row in self.rows})

    def markdown(self) -> str:
        """All tables."""
        return tables.tables(self.rows, self.headers)

    def wrong_answers(self, most: int = 20) -> str:
        """A table of at most so many questions that were not answered rightly."""
        return tables.wrong_answers(self.rows, most)

    def heat_map(self, task: str | None = None, method: str | None = None) -> Figure:
        """The share of right answers by length and depth as a picture; of the only task and method
        if None. Raises InvalidValue, and MissingPackage where matplotlib is not installed."""
        from quickllama.eval.plot import heat_map

        return heat_map(self.rows, self.headers, task, method)

    def __len__(self) -> int:
        return len(self.rows)

    def _repr_markdown_(self) -> str:
        return self.markdown()


def _values(value: Any) -> Iterable[Any]:
    return value if isinstance(value, list | tuple | set) else (value,)
