"""Text from a file or from standard input, as UTF-8."""

from __future__ import annotations

import codecs
import sys
from pathlib import Path

from quickllama.errors import FileProblem

__all__ = ["read_text"]

_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_UTF32 = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)


def read_text(path: str) -> str:
    """The text of the file ``path``, or of standard input for ``-``, exactly as it stands there.

    UTF-8, with or without a byte order mark. Raises FileProblem for a file that cannot be read, for
    another encoding, for binary data, and for a file without text.
    """
    name = "standard input" if path == "-" else repr(path)
    try:
        data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    except AttributeError:  # None, or what was put into its place
        raise FileProblem(f"{name} is closed, or has no bytes to read; give a text file") from None
    except IsADirectoryError:
        raise FileProblem(f"{name} is a folder; give a text file") from None
    except (OSError, ValueError) as problem:
        reason = getattr(problem, "strerror", None) or problem
        raise FileProblem(f"{name} cannot be read: {reason}") from None
    for marks, encoding in ((_UTF32, "UTF-32"), (_UTF16, "UTF-16")):
        if data.startswith(marks):
            raise FileProblem(
                f"{name} is {encoding}, and UTF-8 is expected; convert it, for instance with: "
                f"iconv -f {encoding} -t UTF-8"
            )
    if (zero := data.find(0)) >= 0:
        raise FileProblem(
            f"{name} is no text: byte {zero} is zero, as in binary files and UTF-16; give a text "
            "file in UTF-8"
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise FileProblem(
            f"{name} is not UTF-8 (byte 0x{problem.object[problem.start]:02x} at {problem.start}); "
            "convert it, for instance with: iconv -f LATIN1 -t UTF-8"
        ) from None
    if not text.strip():
        raise FileProblem(f"{name} is empty; there is nothing to read")
    return text
