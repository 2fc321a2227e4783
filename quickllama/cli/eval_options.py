"""The options of ``quickllama eval``: light, since every command's start reads them."""

from __future__ import annotations

import argparse
from functools import partial

from quickllama.cli.converters import checked, count
from quickllama.config import WINDOWS
from quickllama.cpu import MOST_THREADS
from quickllama.dtypes import held_dtype, kv_dtype_name
from quickllama.hub import EMBEDDED

__all__ = ["add_eval"]


def add_eval(command: argparse.ArgumentParser) -> None:
    """Add them."""
    command.description = (
        "Makes texts with questions, answers them by one or several methods, and scores the "
        "answers. Results are kept as they come: the same command goes on where it stopped. "
        "'quickllama eval report FOLDER' prints the tables of results that were kept."
    )
    add = command.add_argument
    add(
        "what",
        nargs="+",
        metavar="TASK",
        help="passkey, needle, key_value, ... (a wrong name lists all); or: report FOLDER",
    )
    add("--methods", default="heads", help="such as heads,skim,qllm,full,given (default: heads)")
    add("--lengths", default="4k", help="tokens, such as 4k,16k,1m (default: 4k)")
    add("--depths", default="10,50,90", help="where answers lie, in percent (default: 10,50,90)")
    add("--n", type=count(1), default=5, help="questions for each length and depth (default: 5)")
    add("--kinds", help="kinds of question; the task's README.md lists them")
    add("--out", metavar="FOLDER", help="where results are kept, with tables and pictures")
    data = command.add_argument_group("data")
    data.add_argument(
        "--texts",
        default="pydoc",
        help="ordinary text: pydoc (Python's documentation, the default), kjv (the Bible), or a "
        "folder of .txt files",
    )
    data.add_argument("--facts", metavar="FILE", help="facts to hide, as in needle/facts.toml")
    data.add_argument("--data", metavar="FILE", help="a file of LongBench, ∞-Bench, ...")
    data.add_argument("--seed", type=count(0), default=0, metavar="N", help="default: 0")
    model = command.add_argument_group("model and memory")
    model.add_argument("--model", default=EMBEDDED, help=f"default: {EMBEDDED}")
    model.add_argument(
        "--dtype",
        type=checked(partial(held_dtype, name="it")),
        help="how weights are held, as in quickllama ask",
    )
    model.add_argument(
        "--kv-dtype",
        type=checked(partial(kv_dtype_name, name="it")),
        help="of keys and values: bfloat16 (default), float32 or int8",
    )
    model.add_argument("--threads", type=count(1, MOST_THREADS), metavar="N")
    model.add_argument("--window", choices=tuple(WINDOWS), default="1k", help="default: 1k")
    model.add_argument("--question-weight", type=float, metavar="W", help="default: the model's")
    model.add_argument(
        "--keep-query-tokens",
        action="store_true",
        help="for qllm: attend to the question's tokens wherever they lie",
    )
    model.add_argument("--mask", choices=("exact", "authors"), default="exact")
    model.add_argument(
        "--question-position",
        choices=("both", "after"),
        default="both",
        help="for qllm, infllm, stream, infinite and full: before and after the text, which is "
        "read anew for each question (default), or after it",
    )
    model.add_argument("--prompt", help="other words, with {text} and {question} in them")
    command.add_argument("--json", action="store_true", help="print results as one JSON array")
    command.add_argument("--quiet", action="store_true", help="no progress bar")
