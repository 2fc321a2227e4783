"""The rules of the house: sizes, directions of includes, and what may not be in the source.

The tables below are the rules' one home; docs/architecture.md explains the layers.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CSRC = ROOT / "csrc"
MOST_LINES_OF_FILE = 500
MOST_LINES_OF_FUNCTION = 80
MOST_COLUMNS = 100

# Bottom first. A file includes its own header and headers of lower layers, nothing beside it.
LAYERS = (
    ("sizes",),
    ("ql",),
    ("error",),
    ("volume",),
    ("threads", "kernels", "store", "rope", "quant", "trace"),
    ("blas", "strips", "rows"),
    ("product", "kv", "held"),
    ("linear", "window", "lookup", "attention", "keys"),
    ("memory", "pieces", "tiles"),
    ("chunk",),
    ("retrieval", "state"),
    ("weights",),
    ("ql_internal",),
    ("model",),
    ("forward",),
    ("timeline",),
    ("session",),
)
# The core answers through ql_error alone: process, streams and environment are the caller's.
FORBIDDEN_CALLS = ("exit", "_exit", "abort", "assert", "printf", "fprintf", "puts", "perror")
FORBIDDEN_CALLS += ("getenv", "setenv", "putenv", "signal", "sigaction", "raise", "rand", "srand")
FORBIDDEN_NAMES = ("errno", "stderr", "stdout", "environ")
ALLOWED_CALLS: dict[tuple[str, str], str] = {  # (file, name): reason
    ("csrc/volume.c", "sigaction"): "a mapped file that is shortened ends the process otherwise",
    ("csrc/volume.c", "raise"): "a signal that is not ours goes to the handler before",
}
# What memory.[ch] and the layers below it must not know: they see heads and tokens, not a Llama.
MODEL_WORDS = ("ql_model", "ql_config", "llama", "mlp", "lm_head", "rmsnorm", "swiglu", "vocab")
# Written in two parts, so that this file does not hold them itself.
FORBIDDEN_TEXT = ("no" + "qa", "type: " + "ignore", "TO" + "DO", "FIX" + "ME", "x" + "fail")
FORBIDDEN_TEXT += ("pragma: no " + "cover",)
FORBIDDEN_FLAGS = ("-march" + "=native", "-ffast" + "-math", "-O" + "fast", "-mtune" + "=native")


def c_files() -> list[Path]:
    """All C files of the core, the extension and their tests."""
    folders = (CSRC, ROOT / "tests" / "c")
    found = (path for folder in folders for path in folder.rglob("*"))
    return sorted(path for path in found if path.suffix in (".c", ".h", ".inc"))


def python_files() -> list[Path]:
    """All Python files and stubs that the repository holds."""
    folders = ("quickllama", "tests", "benchmarks", "examples")
    found = [path for folder in folders for path in (ROOT / folder).rglob("*.py*")]
    alone = (ROOT / "setup.py", ROOT / "pytest_quickllama.py")
    return sorted([*alone, *(path for path in found if path.suffix in (".py", ".pyi"))])


def name(path: Path) -> str:
    """A path as the tables and messages write it."""
    return path.relative_to(ROOT).as_posix()


def blank(text: str) -> str:
    """The same number of lines, all empty."""
    return "\n" * text.count("\n")


def code_of(text: str) -> str:
    """C source with comments, texts, characters and macro definitions blanked, line by line."""
    pattern = re.compile(
        r"/\*.*?\*/|//[^\n]*|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])+'|^[ \t]*#(?:\\\n|[^\n])*",
        re.DOTALL | re.MULTILINE,
    )
    return pattern.sub(lambda found: blank(found.group()), text)


def c_functions(text: str) -> Iterator[tuple[str, int, int]]:
    """(name, first line, number of lines) of every function that a C source defines."""
    code = code_of(text)
    depth = start = 0
    title = ""
    for found in re.finditer(r"[{};]", code):
        sign, at = found.group(), found.start()
        if sign == "{":
            if depth == 0:
                title = code[start:at]
            depth += 1
            continue
        if sign == "}":
            depth -= 1
            assert depth >= 0, "a brace closes that never opened"
            called = re.search(r"(\w+)\s*\(.*\)\s*$", title, re.DOTALL)
            if depth == 0 and called and "=" not in title:
                # The title's first word follows the blank lines that comments left.
                begin = start + len(title) - len(title.lstrip())
                first = code.count("\n", 0, begin) + 1
                function = re.search(r"(\w+)\s*\(", title)
                assert function is not None
                yield function.group(1), first, code.count("\n", begin, at) + 1
        if depth == 0:
            start = at + 1
    assert depth == 0, "a brace opens that never closes"


def python_functions(text: str) -> Iterator[tuple[str, int, int]]:
    """(name, first line, number of lines) of every function that a Python source defines."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield node.name, node.lineno, node.end_lineno - node.lineno + 1


def undocumented(tree: ast.AST, prefix: str) -> Iterator[str]:
    """Public functions, classes and methods without a docstring."""
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        decorators = {ast.unparse(decorator) for decorator in node.decorator_list}
        if node.name.startswith("_") or decorators & {"overload", "typing.overload"}:
            continue
        if ast.get_docstring(node) is None:
            yield f"{prefix}.{node.name}"
        if isinstance(node, ast.ClassDef):
            yield from undocumented(node, f"{prefix}.{node.name}")


def includes(path: Path, quote: str) -> list[str]:
    """What a C file includes: with quote '"' the project's own headers, with '<' the others."""
    close = {'"': '"', "<": ">"}[quote]
    pattern = rf"^[ \t]*#[ \t]*include[ \t]*{quote}([^{close}]+){close}"
    return re.findall(pattern, path.read_text("utf-8"), re.MULTILINE)


def layer(stem: str) -> int:
    """Height of a file of csrc/: by its whole name, or by the part before the first underscore."""
    for part in (stem, stem.partition("_")[0]):
        for height, names in enumerate(LAYERS):
            if part in names:
                return height
    raise AssertionError(f"csrc/{stem} has no layer yet: give it a place in LAYERS")


def test_c_functions_are_found_with_their_lengths() -> None:
    text = """
    /* int no(void) { */
    #define TWICE(x) { \\
        x; x; }
    static const int table[] = {1, 2};
    struct s { int a; };
    enum { A = 1 };
    /* long
     * comment */
    static int
    add(int a, char *b) { /* } */
        if (a) { return '{'; }
        return b == "}";
    }
    void none(void) {}
    struct s make(int (*f)(int)) {
        return (struct s){f(1)};
    }
    """
    found = list(c_functions(text))
    assert found == [("add", 10, 5), ("none", 15, 1), ("make", 16, 3)]
    with pytest.raises(AssertionError, match="opens"):
        list(c_functions("int f(void) { {}"))


def test_files_are_short_and_narrow() -> None:
    wrong = []
    for path in [*c_files(), *python_files()]:
        lines = path.read_text("utf-8").split("\n")
        if len(lines) - 1 > MOST_LINES_OF_FILE:
            wrong.append(f"{name(path)}: {len(lines) - 1} lines, at most {MOST_LINES_OF_FILE}")
        for number, line in enumerate(lines, 1):
            if len(line) > MOST_COLUMNS:
                wrong.append(f"{name(path)}:{number}: {len(line)} columns, at most {MOST_COLUMNS}")
    assert not wrong, "\n".join(wrong)


def test_functions_are_short() -> None:
    wrong = []
    for paths, functions in ((c_files(), c_functions), (python_files(), python_functions)):
        for path in paths:
            for function, line, length in functions(path.read_text("utf-8")):
                if length > MOST_LINES_OF_FUNCTION:
                    wrong.append(f"{name(path)}:{line}: {function} has {length} lines")
    assert not wrong, "\n".join(wrong)


def test_includes_point_down() -> None:
    wrong = []
    for path in sorted(CSRC.glob("*.[ch]")):
        for header in includes(path, '"'):
            # kernels.c alone chooses among the tables of kernels/.
            own = path.suffix == ".c" and header.split("/")[0] in (f"{path.stem}.h", path.stem)
            if not own and layer(Path(header).stem) >= layer(path.stem):
                wrong.append(f"{name(path)} includes {header}, which is not below it")
    for path in sorted((CSRC / "kernels").iterdir()):
        for header in includes(path, '"'):
            beside = (CSRC / "kernels" / header).is_file()
            if not beside and header != "../kernels.h":
                wrong.append(f"{name(path)} includes {header}; kernels know their table alone")
    assert not wrong, "\n".join(wrong)


def test_only_the_extension_knows_python() -> None:
    wrong = [
        f"{name(path)} includes {header}"
        for path in c_files()
        for header in includes(path, "<") + includes(path, '"')
        if re.search(r"Python\.h|numpy/", header) and path.parent != CSRC / "python"
    ]
    assert not wrong, "\n".join(wrong)


def test_only_one_file_knows_blas() -> None:
    knowing = {
        name(path) for path in c_files() if re.search(r"cblas|openblas", code_and_macros(path))
    }
    assert knowing == {"csrc/blas.c"}


def code_and_macros(path: Path) -> str:
    """C source without comments, texts and the headers of others, but with its macros."""
    pattern = re.compile(
        r"/\*.*?\*/|//[^\n]*|\"(?:\\.|[^\"\\\n])*\"|^#include <(?!cblas)[^\n]*",
        re.DOTALL | re.MULTILINE,
    )
    return pattern.sub(lambda found: blank(found.group()), path.read_text("utf-8"))


def test_memory_knows_heads_not_models() -> None:
    files = sorted([*CSRC.glob("memory*.[ch]"), *CSRC.glob("chunk*.[ch]")])
    assert files
    wrong = [
        f"{name(path)} names {word}"
        for path in files
        for word in MODEL_WORDS
        if re.search(rf"\b{word}", code_and_macros(path), re.IGNORECASE)
    ]
    assert not wrong, "\n".join(wrong)


def test_the_core_leaves_the_process_alone() -> None:
    wrong = []
    used = set()
    for path in c_files():
        if path.parent not in (CSRC, CSRC / "kernels"):
            continue
        code = code_and_macros(path)
        found = [call for call in FORBIDDEN_CALLS if re.search(rf"\b{call}\s*\(", code)]
        found += [word for word in FORBIDDEN_NAMES if re.search(rf"\b{word}\b", code)]
        used |= {(name(path), word) for word in found}
        wrong += [f"{name(path)} uses {w}" for w in found if (name(path), w) not in ALLOWED_CALLS]
    assert not wrong, "\n".join(wrong)
    assert used == set(ALLOWED_CALLS), "exceptions that nobody needs any more"


def test_no_flags_that_change_results_or_machines() -> None:
    builders = [
        "setup.py",
        "pyproject.toml",
        "csrc/kernels/flags.txt",
        "tests/c/Makefile",
        ".ci/run",
    ]
    for path in [*(ROOT / builder for builder in builders), *c_files()]:
        text = path.read_text("utf-8")
        for flag in FORBIDDEN_FLAGS:
            assert flag not in text, f"{name(path)} has {flag}"


def test_no_unfinished_or_silenced_code() -> None:
    wrong = []
    for path in [*c_files(), *python_files()]:
        text = path.read_text("utf-8")
        wrong += [f"{name(path)} has {words!r}" for words in FORBIDDEN_TEXT if words in text]
    assert not wrong, "\n".join(wrong)


def test_public_python_is_documented() -> None:
    wrong = []
    public = (ROOT / "quickllama").rglob("*.py")
    for path in sorted([ROOT / "pytest_quickllama.py", *public]):
        tree = ast.parse(path.read_text("utf-8"))
        if ast.get_docstring(tree) is None:
            wrong.append(name(path))
        wrong += undocumented(tree, name(path))
    assert not wrong, "without a docstring: " + ", ".join(wrong)


def test_tests_are_no_package() -> None:
    # With tests/__init__.py pytest would put the source tree before the installed package.
    assert not (ROOT / "tests" / "__init__.py").exists()
