"""``python -m quickllama`` is the command ``quickllama``."""

from __future__ import annotations

import sys

from quickllama.cli import main

if __name__ == "__main__":
    sys.exit(main())
