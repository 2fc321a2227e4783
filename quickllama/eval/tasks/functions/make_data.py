"""A reference of functions, and questions about them by their names."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
import warnings
from collections.abc import Iterator
from functools import cache

from quickllama.eval.case import Case, Draft, Question

__all__ = ["DATA_FORMAT", "KINDS", "NEW_TOKENS", "PER_TEXT", "make"]

KINDS = ("does",)
NEW_TOKENS = 48
DATA_FORMAT = 1000 + sys.version_info.minor  # of the Python whose library it is
PER_TEXT = 10

MODULES = (
    *("argparse", "ast", "asyncio", "bz2", "calendar", "cmd", "configparser", "csv", "datetime"),
    *("decimal", "difflib", "dis", "email", "fractions", "ftplib", "gettext", "heapq", "imaplib"),
    *("inspect", "json", "locale", "logging", "mailbox", "math", "operator", "os", "pathlib"),
    *("pickle", "queue", "random", "re", "sched", "shelve", "shutil", "smtplib", "socket"),
    *("sqlite3", "statistics", "string", "subprocess", "tarfile", "tempfile", "textwrap"),
    *("threading", "tokenize", "uuid", "zipfile"),
)

MOST_CHARACTERS = 500  # of a function's documentation

_NAME = re.compile(r"[a-z]\w{3,}")
_SENTENCE = re.compile(r".*?\.(?=\s|$)|.+", re.DOTALL)


def _members(module: object) -> Iterator[tuple[str, object]]:
    for name, value in inspect.getmembers(module):
        if inspect.isclass(value) and value.__module__ == getattr(module, "__name__", None):
            yield from inspect.getmembers(value, callable)
        elif callable(value):
            yield name, value


def _functions() -> dict[str, tuple[str, str]]:
    found: dict[str, tuple[str, str]] = {}
    for module in map(importlib.import_module, MODULES):
        for name, value in _members(module):
            words = inspect.getdoc(value)
            if name in found or not words or not _NAME.fullmatch(name):
                continue
            said = " ".join(words.split())[:MOST_CHARACTERS]
            sentence = _SENTENCE.match(said)
            assert sentence is not None, "it matches any text"
            found[name] = f"{name}(...)\n    {said}\n", sentence[0]
    return found


@cache
def functions() -> tuple[tuple[str, str, str], ...]:
    """Name, documentation and its first sentence of the library's functions and methods; of those
    that share a name, the first one."""
    with warnings.catch_warnings():  # some tell that they will go when they are looked at
        warnings.simplefilter("ignore", DeprecationWarning)
        found = _functions()
    return tuple((name, *rest) for name, rest in found.items())


def make(draft: Draft) -> list[Case]:
    """One text: functions in a row from a random one on, and after the last one the first again."""
    known = functions()
    start = int(draft.rng.integers(len(known)))

    def build(count: int) -> tuple[str, list[Question]]:
        chosen = [known[(start + i) % len(known)] for i in range(max(count, len(draft.depths)))]
        begins = [0]
        for _, words, _ in chosen:
            begins.append(begins[-1] + len(words) + 1)
        questions: list[Question] = []
        free = set(range(min(len(chosen), len(known))))
        for depth in draft.depths:
            index = min(free, key=lambda i: (abs(begins[i] - depth / 100 * begins[-1]), i))
            free.remove(index)
            name, words, sentence = chosen[index]
            places = tuple(
                (begins[i], begins[i] + len(words)) for i in range(index, len(chosen), len(known))
            )
            questions.append(Question("does", f"What does {name} do?", (sentence,), places, depth))
        return "\n".join(words for _, words, _ in chosen), questions

    return [draft.case(build, draft.length // 60)]
