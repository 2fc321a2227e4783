"""What the commands write to the terminal."""

from __future__ import annotations

import codecs
import json
import re
import shutil
import sys
import textwrap

__all__ = ["print_json", "take_any_bytes", "tolerate_any_character", "wrapped"]

_MARGIN = "    "
_WIDEST = 100  # columns; longer lines are hard to read


def tolerate_any_character() -> None:
    """A terminal that cannot show a character shows another one instead."""
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="replace")


def take_any_bytes() -> None:
    """Bytes from standard input that are no text become signs that no question may hold."""
    reconfigure = getattr(sys.stdin, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="surrogateescape")


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
    """One JSON object, which is UTF-8 or ASCII: all else is escaped where standard output has
    another encoding, or a text has half a surrogate pair, as file names that are not UTF-8 do."""
    words = json.dumps(value, ensure_ascii=False, indent=2)
    encoding = codecs.lookup(sys.stdout.encoding or "utf-8").name  # none: takes any character
    if encoding != "utf-8" or re.search("[\ud800-\udfff]", words):
        words = json.dumps(value, indent=2)
    print(words)
