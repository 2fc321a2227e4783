"""The machine that is measured, and an environment without settings that change its speed."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

# Settings of BLAS libraries, peers and threads that a user does not have.
_TUNING = re.compile(r"(OPENBLAS|GOTO|GOMP|OMP|MKL|BLIS|KMP|ONEDNN|DNNL|ATEN|GGML|LLAMA)_")
_VERSIONS = ("quickllama", "numpy", "torch", "transformers", "llama-cpp-python")
# A CPU variant stands for a machine: BLAS libraries get the kernels that they would have there.
_KERNELS = {
    "avx2": {
        "OPENBLAS_CORETYPE": "Haswell",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",
    },
    "avx512": {"OPENBLAS_CORETYPE": "SkylakeX", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
}


def environment(
    variant: str | None = None, core_type: str | None = None
) -> tuple[dict[str, str], dict[str, str]]:
    """Variables for a process to be measured, and those of this process that it does not get.

    * ``variant``: a CPU variant; the kernels of OpenBLAS and oneDNN are then those of such a CPU.
    * ``core_type``: the kernels of OpenBLAS by name, whatever the variant.
    """
    removed = {name: value for name, value in os.environ.items() if _TUNING.match(name)}
    kept = {name: value for name, value in os.environ.items() if name not in removed}
    kept |= _KERNELS.get(variant or "", {})
    if core_type:
        kept["OPENBLAS_CORETYPE"] = core_type
    return kept, removed


def removed_note(removed: Mapping[str, str]) -> str:
    """A sentence about variables that were set and do not count; empty if there are none."""
    if not removed:
        return ""
    pairs = ", ".join(f"{name}={value}" for name, value in sorted(removed.items()))
    return f"measured without {pairs}, which this shell sets"


def describe() -> dict[str, Any]:
    """The processor, its memory, how busy it is, and versions."""
    from quickllama.cpu import physical_cores

    versions = {"python": platform.python_version()}
    for name in _VERSIONS:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "cpu": _field(Path("/proc/cpuinfo"), "model name") or platform.processor(),
        "cores": physical_cores(),
        "threads": os.cpu_count(),
        "caches": _caches(),
        "memory": _field(Path("/proc/meminfo"), "MemTotal"),
        "system": platform.platform(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "versions": versions,
        "commit": _commit(),
    }


def _field(path: Path, name: str) -> str:
    """The first value of a file of ``name: value`` lines; empty if there is none."""
    try:
        text = path.read_text("utf-8")
    except OSError:
        return ""
    found = re.search(rf"^{name}\s*:\s*(.*)$", text, re.MULTILINE)
    return found.group(1).strip() if found else ""


def _caches() -> dict[str, str]:
    """Sizes of the first processor's caches, by level and kind."""
    caches = {}
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            level, kind, size = (
                (folder / name).read_text("ascii").strip() for name in ("level", "type", "size")
            )
        except OSError:
            continue
        if kind != "Instruction":
            caches[f"L{level}"] = size
    return caches


def _commit() -> str:
    """The commit of this source tree, ``-dirty`` if files differ from it that are no results; empty
    where there is none."""
    commit = _git("rev-parse", "--short", "HEAD")
    but_results = ":(exclude,top)benchmarks/quality"
    changed = ("status", "--porcelain", "--untracked-files=no", "--", ":/", but_results)
    return f"{commit}-dirty" if commit and _git(*changed) else commit


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return result.stdout.strip()
