"""The package as it is installed: what it brings along, and what importing it costs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

from fresh_python import run_program

import quickllama
from quickllama import _core

FOLDER = Path(quickllama.__file__).parent


def test_one_extension_for_all_versions_of_python() -> None:
    free_threaded = sysconfig.get_config_var("Py_GIL_DISABLED")
    assert _core.__file__ is not None
    assert Path(_core.__file__).name.endswith(".abi3.so") == (not free_threaded)


def test_openblas_comes_along_with_its_licence() -> None:
    if os.environ.get("QUICKLLAMA_BLAS") == "system":
        assert not (FOLDER / "_libs").exists()
        return
    names = {path.name for path in (FOLDER / "_libs").iterdir()}
    assert "LICENSE.txt" in names
    assert any(name.startswith("libscipy_openblas") for name in names)
    mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text("utf-8").splitlines()}
    assert any(name.startswith(str(FOLDER.resolve() / "_libs")) for name in mapped)


def test_an_unbuilt_source_tree_says_so(tmp_path: Path) -> None:
    unbuilt = shutil.ignore_patterns("_core*.so", "_libs", "__pycache__")
    shutil.copytree(FOLDER, tmp_path / "quickllama", ignore=unbuilt)
    result = subprocess.run(
        # Without the site's import hooks: an editable install's would supply its own core.
        [sys.executable, "-S", "-c", "import quickllama"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 1 and "pip install -e ." in result.stderr


def test_types_are_shipped() -> None:
    assert (FOLDER / "py.typed").is_file()
    assert (FOLDER / "_core.pyi").is_file()


def test_version_and_command() -> None:
    assert metadata.version("quickllama") == quickllama.__version__
    (command,) = (
        entry
        for entry in metadata.entry_points(group="console_scripts")
        if entry.name == "quickllama"
    )
    assert callable(command.load())


def test_import_leaves_the_heavy_libraries_for_later() -> None:
    program = "import quickllama, sys; print(*sys.modules)"
    loaded = run_program(program).split()
    assert not {"tokenizers", "jinja2", "tqdm", "argparse"} & set(loaded)
