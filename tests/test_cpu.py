"""Counting processors, on machines made of files."""

from __future__ import annotations

from pathlib import Path

from quickllama.cpu import physical_cores


def machine(root: Path, siblings: list[str], files: dict[str, str]) -> Path:
    """A root folder with processors (lists of hardware threads) and further files."""
    for number, text in enumerate(siblings):
        files[f"sys/devices/system/cpu/cpu{number}/topology/core_cpus_list"] = text
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


def test_hyper_threads_count_once(tmp_path: Path) -> None:
    root = machine(tmp_path, ["0,2", "1,3", "0,2", "1,3"], {})
    assert physical_cores(root, {0, 1, 2, 3}) == 2
    assert physical_cores(root, {0, 2}) == 1
    assert physical_cores(root, {1}) == 1


def test_without_topology_every_processor_counts(tmp_path: Path) -> None:
    assert physical_cores(tmp_path, {0, 5, 7}) == 3


def v2(quota: str, parent: str = "max 100000") -> dict[str, str]:
    return {
        "proc/self/cgroup": "0::/jobs/mine",
        "proc/self/mountinfo": "31 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup rw",
        "sys/fs/cgroup/jobs/mine/cpu.max": quota,
        "sys/fs/cgroup/jobs/cpu.max": parent,
    }


def test_quota_of_control_groups_v2(tmp_path: Path) -> None:
    cores = [str(number) for number in range(8)]
    cases = [
        ("a", v2("300000 100000"), 3),
        ("b", v2("350000 100000"), 3),
        ("c", v2("50000 100000"), 1),
        ("d", v2("max 100000"), 8),
        ("e", v2("max 100000", parent="200000 100000"), 2),
        ("f", v2("rubbish"), 8),
    ]
    for name, files, expected in cases:
        assert physical_cores(machine(tmp_path / name, cores, files), set(range(8))) == expected


def test_quota_of_control_groups_v1(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "4:cpu,cpuacct:/docker/abc\n3:memory:/docker/abc",
        "proc/self/mountinfo": (
            "31 23 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
            "32 23 0:29 /docker/abc /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct"
        ),
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "400000",
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
    }
    cores = [str(number) for number in range(8)]
    assert physical_cores(machine(tmp_path / "a", cores, files), set(range(8))) == 4
    files["sys/fs/cgroup/cpu/cpu.cfs_quota_us"] = "-1"
    assert physical_cores(machine(tmp_path / "b", cores, files), set(range(8))) == 8


def test_this_machine_has_a_core() -> None:
    assert physical_cores() >= 1
