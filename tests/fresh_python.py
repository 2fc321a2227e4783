"""Programs in a Python of their own, with the modules of tests/ at hand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def environment() -> dict[str, str]:
    """This process's environment, with this Python's search path."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def run_program(program: str, **variables: str) -> str:
    """What a fresh Python prints, which must end well; ``variables`` of its environment."""
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        env={**environment(), **variables},
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout
