"""Prints a fenced block of README.md: what it promises and what is tested have one home.

    python .ci/readme.py NAME

The block is the one that follows the line ``<!-- ci: NAME -->``. A line of shell may be continued
with a backslash; comments and a leading ``$ `` are left as they are written.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

README = Path(__file__).resolve().parents[1] / "README.md"


def block(text: str, name: str) -> str:
    """The contents of the fenced block after the marker ``name``; SystemExit when there is none."""
    pattern = rf"^<!-- ci: {re.escape(name)} -->\s*\n+```[a-z]*\n(.*?)^```"
    found = re.findall(pattern, text, re.DOTALL | re.MULTILINE)
    if len(found) != 1:
        raise SystemExit(
            f"README.md needs one fenced block after a line '<!-- ci: {name} -->', "
            f"and has {len(found)}"
        )
    return str(found[0])


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    print(block(README.read_text("utf-8"), sys.argv[1]), end="")
