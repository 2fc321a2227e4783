"""What the commands write to the terminal."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap

__all__ = ["print_json", "tolerate_any_character", "wrapped"]

_MARGIN = "    "
_WIDEST = 100  # columns; longer lines are hard to read


def tolerate_any_character() -> None:
    """A terminal that cannot show a character shows another one instead."""
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="replace")


def wrapped(text: str) -> str:
    """A passage in lines that fit the terminal, set in from the left."""
    return textwrap.fill(
        " ".join(text.split()),
        width=min(shutil.get_terminal_size().columns, _WIDEST),
        initial_indent=_MARGIN,
        subsequent_indent=_MARGIN,
        break_on_hyphens=False,
    )


def print_json(value: object) -> None:
    """One JSON object; if standard output cannot show one of its characters, such as those of a
    file's name that is not UTF-8, they are escaped, so that nothing gets lost."""
    words = json.dumps(value, ensure_ascii=False, indent=2)
    try:
        words.encode(sys.stdout.encoding or "utf-8")  # none: what takes any character
    except UnicodeEncodeError:
        words = json.dumps(value, indent=2)
    print(words)
