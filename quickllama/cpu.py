"""How many processors this process may use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from quickllama import checks

__all__ = ["MOST_THREADS", "physical_cores", "thread_count"]

MOST_THREADS = 64
"""OpenBLAS has buffers for so many callers at once."""


def thread_count(n_threads: object = None) -> int:
    """``n_threads`` if given (1 ... 64), else :func:`physical_cores`, at most 64."""
    if n_threads is None:
        return min(physical_cores(), MOST_THREADS)
    return checks.integer("n_threads", n_threads, 1, MOST_THREADS)


def physical_cores(root: Path = Path("/"), processors: set[int] | None = None) -> int:
    """Physical cores that this process may use, at least 1.

    Counted are the cores behind the processors of its affinity mask (two hyper-threads of a core
    count once), but not more than its control group's quota of CPU time (cgroup v1 or v2).
    ``root`` and ``processors`` stand in for the machine in tests.
    """
    if processors is None:
        processors = _affinity()
    cores = len({_siblings(root, number) for number in processors})
    quotas = [*_quotas_v2(root), *_quotas_v1(root)]
    # Rounded down: a thread that is held back makes all others wait for it.
    return max(1, min([cores, *(int(quota) for quota in quotas)]))


def _affinity() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _siblings(root: Path, number: int) -> str:
    """A name for the core of processor ``number``: the list of its hardware threads."""
    folder = root / f"sys/devices/system/cpu/cpu{number}/topology"
    for name in ("core_cpus_list", "thread_siblings_list"):
        text = _read(folder / name)
        if text:
            return text
    return f"processor {number}"


def _read(path: Path) -> str:
    try:
        return path.read_text("ascii").strip()
    except (OSError, ValueError):
        return ""


def _groups(root: Path, kind: str, controller: str) -> Iterator[Path]:
    """Folders of this process's control group and of its parents, in mounts of file system
    ``kind`` with ``controller`` among its options."""
    paths = {}  # controller -> path inside the hierarchy
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        for name in controllers.split(","):
            paths[name] = path
    own = paths.get(controller)
    for line in _read(root / "proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        fields, kinds = before.split(), after.split()
        if own is None or len(fields) < 5 or len(kinds) < 3 or kinds[0] != kind:
            continue
        if controller and controller not in kinds[2].split(","):
            continue
        mount = root / fields[4].lstrip("/")
        inside = Path(own)
        if inside.is_relative_to(fields[3]):  # a container sees its own group as the root
            inside = inside.relative_to(fields[3])
        inside = Path(str(inside).lstrip("/"))
        for folder in (inside, *inside.parents):
            yield mount / folder


def _quotas_v2(root: Path) -> Iterator[float]:
    """Processors that each group allows: ``cpu.max`` holds quota and period in microseconds."""
    for folder in _groups(root, "cgroup2", ""):
        words = _read(folder / "cpu.max").split()
        if len(words) == 2 and words[0].isdigit() and words[1].isdigit() and int(words[1]):
            yield int(words[0]) / int(words[1])


def _quotas_v1(root: Path) -> Iterator[float]:
    """The same from ``cpu.cfs_quota_us`` (-1: no limit) and ``cpu.cfs_period_us``."""
    for folder in _groups(root, "cgroup", "cpu"):
        quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit() and int(period):
            yield int(quota) / int(period)
