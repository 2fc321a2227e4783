"""Builds ``quickllama._core``, the C core with its Python face. All else is in pyproject.toml.

Environment variables:

``QUICKLLAMA_BLAS``
    ``bundled`` (default): the OpenBLAS of the build requirement scipy-openblas32, copied into the
    package; ``system``: the one that ``pkg-config openblas`` finds.
``QUICKLLAMA_SANITIZE``
    Sanitizers for the C code, such as ``address,undefined``.
``QUICKLLAMA_WERROR``
    ``1``: compiler warnings are errors.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).parent
KERNELS = Path("csrc/kernels")
LIBRARIES = "_libs"  # beside the extension, inside the package
JOBS = 2
ABI3 = not sysconfig.get_config_var("Py_GIL_DISABLED")  # free-threaded CPython has no limited API


def sources() -> list[str]:
    """The C files of the extension, in a fixed order."""
    folders = (Path("csrc"), KERNELS, Path("csrc/python"))
    return [str(path) for folder in folders for path in sorted(folder.glob("*.c"))]


def kernel_flags() -> dict[str, list[str]]:
    """Flags by file name without ``.c`` (or ``*``), from ``csrc/kernels/flags.txt``."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    flags = {}
    for line in (ROOT / KERNELS / "flags.txt").read_text("utf-8").splitlines():
        name, colon, words = line.partition(":")
        if colon and not line.startswith("#") and (name == "*" or x86):
            flags[name] = words.split()
    return flags


class BuildExt(build_ext):
    """``build_ext`` with flags per file, two compilers at once, OpenBLAS beside the extension."""

    def build_extension(self, ext: Extension) -> None:
        """Compile and link one extension."""
        compile_files = self.compiler.compile
        flags = kernel_flags()
        self._check_compiler({word for words in flags.values() for word in words})

        def compile_one(source: str, options: dict[str, Any]) -> list[str]:
            path = Path(source)
            extra = [*(options.get("extra_postargs") or [])]
            if path.parent == KERNELS:
                extra += flags.get("*", []) + flags.get(path.stem, [])
            return list(compile_files([source], **{**options, "extra_postargs": extra}))

        def compile_all(sources: list[str], **options: Any) -> list[str]:
            with ThreadPoolExecutor(JOBS) as pool:
                parts = pool.map(lambda source: compile_one(source, options), sources)
                return [name for part in parts for name in part]

        self.compiler.compile = compile_all
        try:
            super().build_extension(ext)
        finally:
            self.compiler.compile = compile_files

    def _check_compiler(self, flags: set[str]) -> None:
        """Say at once, in a sentence, that the compiler is too old, or that headers are missing."""
        with TemporaryDirectory() as folder:
            probe = Path(folder) / "probe.c"
            probe.write_text("#include <Python.h>\n", "utf-8")
            try:
                self.compiler.compile([str(probe)], folder, extra_postargs=sorted(flags))
            except CompileError as problem:
                raise SystemExit(
                    "QuickLLaMA is built by gcc 11 or clang 14, or later ones (CC names another "
                    f"one), with Python's headers (python3-dev): {problem}"
                ) from problem

    def run(self) -> None:
        """Build all extensions, then put OpenBLAS where they look for it."""
        super().run()
        if BLAS.library is None:
            return
        packages = [Path(self.build_lib) / "quickllama"]
        if self.inplace:  # also what an editable install asks for
            packages.append(ROOT / "quickllama")
        for package in packages:
            folder = package / LIBRARIES
            folder.mkdir(parents=True, exist_ok=True)
            for file in (BLAS.library, BLAS.licence):
                shutil.copy2(file, folder / file.name)


class BundledBlas:
    """The OpenBLAS of scipy-openblas32; its symbols start with ``scipy_``."""

    def __init__(self) -> None:
        if sys.platform == "win32":
            raise SystemExit("QuickLLaMA is for POSIX systems: on Windows, install it in WSL")
        if not sys.platform.startswith("linux"):
            raise SystemExit(
                f"QuickLLaMA bundles OpenBLAS on Linux only, and this is {sys.platform}: install "
                "OpenBLAS, and set QUICKLLAMA_BLAS=system"
            )
        import scipy_openblas32 as blas

        self.library: Path = Path(blas.get_lib_dir()) / blas.get_library(fullname=True)
        self.licence = self._licence()
        self.compile_args = ["-DQL_BLAS_PREFIX=scipy_"]
        self.link_args = [
            f"-L{self.library.parent}",
            f"-l{blas.get_library()}",
            f"-Wl,-rpath,$ORIGIN/{LIBRARIES}",
        ]

    def _licence(self) -> Path:
        """The licence text that a copy of the library must carry."""
        for file in metadata.files("scipy-openblas32") or []:
            if file.name.startswith("LICENSE"):
                return Path(str(file.locate()))
        raise SystemExit("scipy-openblas32 came without its licence text; install it again")


class SystemBlas:
    """The OpenBLAS that pkg-config knows."""

    library: Path | None = None

    def __init__(self) -> None:
        self.compile_args = self._ask("--cflags")
        self.link_args = self._ask("--libs")

    def _ask(self, what: str) -> list[str]:
        try:
            answer = subprocess.run(
                ["pkg-config", what, "openblas"], check=True, capture_output=True, text=True
            )
        except (OSError, subprocess.CalledProcessError) as problem:
            raise SystemExit(
                f"QUICKLLAMA_BLAS=system needs pkg-config and OpenBLAS to build with: {problem}"
            ) from problem
        return answer.stdout.split()


def choose_blas() -> BundledBlas | SystemBlas:
    """The OpenBLAS that ``QUICKLLAMA_BLAS`` names."""
    name = os.environ.get("QUICKLLAMA_BLAS", "bundled")
    if name not in ("bundled", "system"):
        raise SystemExit(f"QUICKLLAMA_BLAS is 'bundled' or 'system', not {name!r}")
    return BundledBlas() if name == "bundled" else SystemBlas()


def core() -> Extension:
    """The extension ``quickllama._core``."""
    macros = [
        ("NPY_TARGET_VERSION", "NPY_2_0_API_VERSION"),
        ("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION"),
    ]
    if ABI3:
        macros.append(("Py_LIMITED_API", "0x030B0000"))
    # Python's own flags ask for all that a debugger can use; lines alone compile a third faster.
    compile_args = ["-std=gnu11", "-O3", "-g1", "-fvisibility=hidden", "-pthread"]
    compile_args += ["-Wall", "-Wextra"]
    link_args = ["-pthread", "-lm"]
    if os.environ.get("QUICKLLAMA_WERROR") == "1":
        compile_args.append("-Werror")
    if sanitizers := os.environ.get("QUICKLLAMA_SANITIZE"):
        compile_args += ["-O1", "-fno-omit-frame-pointer", "-fno-sanitize-recover=undefined"]
        compile_args.append(f"-fsanitize={sanitizers}")
        link_args.append(f"-fsanitize={sanitizers}")
    return Extension(
        "quickllama._core",
        sources(),
        include_dirs=["csrc", numpy.get_include()],
        define_macros=macros,
        extra_compile_args=compile_args + BLAS.compile_args,
        extra_link_args=BLAS.link_args + link_args,
        depends=[str(path) for path in sorted(Path("csrc").rglob("*.[hi]*"))],
        py_limited_api=ABI3,
    )


os.chdir(ROOT)
BLAS = choose_blas()
setup(
    ext_modules=[core()],
    cmdclass={"build_ext": BuildExt},
    options={
        # Setuptools would take what an earlier build with other variables or flags left behind.
        "build_ext": {"force": True},
        "bdist_wheel": {"py_limited_api": "cp311"} if ABI3 else {},
    },
)
