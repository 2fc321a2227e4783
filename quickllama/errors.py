"""The exceptions of QuickLLaMA, and its warnings.

Every error that the package raises on purpose is an :class:`Error`. Each subclass is also the
built-in exception that a caller would expect, so both ``except quickllama.Error`` and
``except ValueError`` work. ``MemoryError`` and ``KeyboardInterrupt`` pass through as they are.
"""

from __future__ import annotations

import os
import sys
import warnings

__all__ = [
    "Busy",
    "Error",
    "FileProblem",
    "InvalidType",
    "InvalidValue",
    "MissingKey",
    "MissingPackage",
    "warn",
]

_PACKAGE = os.path.join(os.path.dirname(__file__), "")


class Error(Exception):
    """Base of all errors of QuickLLaMA; the text says what was expected, what came, what to do."""


class InvalidValue(Error, ValueError):
    """A value that cannot be used: out of range, of a wrong shape, or in conflict with another."""


class InvalidType(Error, TypeError):
    """An argument of a type or dtype that is not accepted, or an option with an unknown name."""


class MissingKey(Error, KeyError):
    """Something asked for by name that is not there: a weight tensor, a configuration key."""

    def __str__(self) -> str:
        """The sentence itself; plain ``KeyError`` would show it quoted and escaped."""
        return Exception.__str__(self)


class Busy(Error, RuntimeError):
    """A session in use by another thread, or a state in which the call cannot be served."""


class FileProblem(Error, OSError):
    """A file that cannot be read, is truncated, or contradicts itself."""


class MissingPackage(Error, ImportError):
    """An optional package that is not installed; the text names the extra that brings it."""


def warn(text: str) -> None:
    """A UserWarning at the line outside the package that led to it."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, UserWarning, stacklevel=level)
