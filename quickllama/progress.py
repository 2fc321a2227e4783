"""Progress of what takes long: a callback, or a bar on standard error or in the notebook."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from quickllama.errors import InvalidType

__all__ = ["Progress", "checked_progress", "showing"]

Progress = Callable[[int, int], object]
"""Called with what is done so far and what there is to do in all."""


def checked_progress(progress: object) -> bool | Progress:
    """``progress``, for None False. Raises InvalidType if it is no bool and no function either."""
    if progress is None or isinstance(progress, bool):
        return bool(progress)
    if not callable(progress):
        raise InvalidType(f"progress is True, False or a function, not {progress!r}")
    return progress


@contextmanager
def showing(
    progress: object, what: str, unit: str = "tok", held: Callable[[], int] | None = None
) -> Iterator[Progress | None]:
    """A callback (done, total) for ``progress``: None or False: nothing; True: a bar that says
    ``what``, counts in ``unit``, and shows the rate, the time left and the bytes that ``held``
    tells; a callable: itself. Raises InvalidType for anything else."""
    wanted = checked_progress(progress)
    if not isinstance(wanted, bool):
        yield wanted
        return
    if not wanted:
        yield None
        return
    bar = Bar(what, unit, held)
    try:
        yield bar.show
    finally:
        bar.close()


class Bar:
    """A bar of tqdm, for the terminal or the notebook, drawn when the total is known."""

    def __init__(self, what: str, unit: str, held: Callable[[], int] | None) -> None:
        self._what, self._unit, self._held = what, unit, held
        self._bar: Any = None

    def show(self, done: int, total: int) -> None:
        """``done`` of ``total``, which may have grown."""
        if self._bar is None:
            self._bar = self._drawn(done, total)
        bar = self._bar
        if bar.total != total:
            bar.total = total
            widgets = getattr(bar, "container", None)  # a notebook's bar has its own maximum
            if widgets is not None:
                widgets.children[1].max = total
        if self._held is not None:
            bar.set_postfix_str(f"{self._held() / 2**20:,.0f} MiB", refresh=False)
        bar.update(done - bar.n)

    def close(self) -> None:
        """The bar stays as it is."""
        if self._bar is not None:
            self._bar.refresh()
            self._bar.close()

    def _drawn(self, done: int, total: int) -> Any:
        from tqdm.auto import tqdm

        live = sys.stderr.isatty() or "ipykernel" in sys.modules
        return tqdm(
            initial=done,
            total=total,
            desc=self._what,
            unit=self._unit,
            unit_scale=True,
            file=sys.stderr,
            # Redrawn rarely where each time makes a new line: in files and logs.
            mininterval=0.1 if live else 5.0,
            dynamic_ncols=True,
        )
