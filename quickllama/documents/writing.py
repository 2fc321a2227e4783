"""Where an answer is written to while it comes."""

from __future__ import annotations

import sys
from collections.abc import Callable

from quickllama.errors import InvalidType

__all__ = ["write_safely", "writer"]


def writer(stream: object) -> Callable[[str], object] | None:
    """What to call with each piece of an answer's text, for ``stream``: None or False: nothing;
    True: :func:`write_safely`; a callable: itself. Raises InvalidType for anything else."""
    if stream is None or stream is False:
        return None
    if stream is True:
        return write_safely
    if not callable(stream):
        raise InvalidType(f"stream is True, None or a function of a str, not {stream!r}")
    return stream


def write_safely(text: str) -> None:
    """Show a piece of text at once, without signs that would steer the terminal."""
    sys.stdout.write("".join(sign for sign in text if sign.isprintable() or sign in "\n\t"))
    sys.stdout.flush()
