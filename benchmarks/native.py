"""Builds the C programs of this folder, alone or with the core."""

from __future__ import annotations

import importlib
import os
import platform
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
CSRC = HERE.parent / "csrc"
_FLAGS = ("-std=gnu11", "-fvisibility=hidden", "-pthread", "-Wall", "-Wextra")


def build(name: str, folder: Path, *, core: bool = False, optimise: str = "-O3") -> Path:
    """Compile ``name``.c into a program in ``folder``, with the core and OpenBLAS if ``core``.

    The compiler is ``$CC`` or cc. Raises RuntimeError with the compiler's words, or if there is
    none.
    """
    compiler = os.environ.get("CC", "cc").split()
    program = folder / name
    flags = [*compiler, *_FLAGS, optimise]
    if not core:
        _run([*flags, str(HERE / f"{name}.c"), "-o", str(program), "-lm"])
        return program
    blas = importlib.import_module("scipy_openblas32")
    library = blas.get_lib_dir()
    flags += [f"-I{CSRC}", "-DQL_BLAS_PREFIX=scipy_"]
    sources = [*sorted(CSRC.glob("*.c")), *sorted((CSRC / "kernels").glob("*.c"))]

    def compile_one(source: Path) -> str:
        target = folder / f"{source.parent.name}-{source.stem}.o"
        _run([*flags, *_kernel_flags(source), "-c", str(source), "-o", str(target)])
        return str(target)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, [HERE / f"{name}.c", *sources]))
    link = [f"-L{library}", f"-Wl,-rpath,{library}", f"-l{blas.get_library()}", "-lm"]
    _run([*flags, *objects, "-o", str(program), *link])
    return program


def _kernel_flags(source: Path) -> list[str]:
    """Flags of a file of csrc/kernels, as its flags.txt has them."""
    if source.parent.name != "kernels":
        return []
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    flags = []
    for line in (CSRC / "kernels" / "flags.txt").read_text("utf-8").splitlines():
        name, _, words = line.partition(":")
        if name == "*" or (x86 and name == source.stem):
            flags += words.split()
    return flags


def _run(command: list[str]) -> None:
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise RuntimeError(
            f"there is no C compiler {command[0]!r} here: install one, or name it in CC; limits.c "
            "can also be built elsewhere (cc -O3 -std=gnu11 -pthread -static limits.c -o limits) "
            "and given with --limits"
        ) from None
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{result.stderr.strip()}")
