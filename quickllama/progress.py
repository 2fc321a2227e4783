"""Progress of what takes long: a callback, or a bar on standard error."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from quickllama.errors import InvalidType
from quickllama.generation import Progress

__all__ = ["showing"]


@contextmanager
def showing(progress: object, what: str, unit: str = "tok") -> Iterator[Progress | None]:
    """A callback (done, total) for ``progress``: None or False: nothing; True: a bar that says
    ``what`` and counts in ``unit``; a callable: itself. Raises InvalidType for anything else."""
    if progress is None or progress is False:
        yield None
        return
    if progress is not True:
        if not callable(progress):
            raise InvalidType(f"progress is True, False or a function, not {progress!r}")
        yield progress
        return
    from tqdm import tqdm

    # Redrawn rarely where each time makes a new line: in files and logs.
    interval = 0.1 if sys.stderr.isatty() else 5.0
    with tqdm(
        total=0,
        desc=what,
        unit=unit,
        unit_scale=True,
        file=sys.stderr,
        mininterval=interval,
        dynamic_ncols=True,
    ) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show
        bar.refresh()
