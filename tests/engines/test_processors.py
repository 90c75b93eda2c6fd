"""A process uses the processors that it was given, not those of the machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import engines.processors
from engines.processors import usable_processors

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Return a function that counts processors under control groups that it writes, on 64 processors."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)

    def count(membership, files):
        for name, text in files.items():
            path = tmp_path / "cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        (tmp_path / "membership").write_text(membership)
        return usable_processors(tmp_path / "cgroup", tmp_path / "membership")

    return count


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        ("0::/", {"cpu.max": "max 100000\n"}, 64),
        ("0::/", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/", {"cpu.max": "150000 100000\n"}, 2),
        ("0::/", {"cpu.max": "10000 100000\n"}, 1),
        ("0::/a/b", {"a/cpu.max": "300000 100000\n", "a/b/cpu.max": "max 100000\n"}, 3),
        ("0::/not/shown/here", {"cpu.max": "400000 100000\n"}, 4),
        (
            "4:cpu,cpuacct:/job\n0::/",
            {"cpu/job/cpu.cfs_quota_us": "500000", "cpu/job/cpu.cfs_period_us": "100000"},
            5,
        ),
        ("4:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 64),
        ("nonsense", {"cpu.max": "nonsense"}, 64),
    ],
)
def test_the_quota_of_a_control_group_counts(machine, membership, files, expected):
    assert machine(membership, files) == expected


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux sets affinities")
def test_a_process_on_one_processor_starts_one_worker():
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from engines.inprocess import open_grid\n"
        "from server_app.settings import compose_settings\n"
        "print(open_grid(compose_settings(['model=mlp']))._num_workers)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "1\n"


def test_other_systems_have_neither_affinity_nor_control_groups(monkeypatch, tmp_path):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 10)
    assert usable_processors(tmp_path, tmp_path / "none") == 10
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_processors(tmp_path, tmp_path / "none") == 1


def test_nobody_counts_the_processors_of_the_machine():
    own = Path(engines.processors.__file__)
    for package in (
        "engines",
        "experiments",
        "server_app",
        "records",
        "client_app",
        "deploy",
        "benchmarks",
        "task",
    ):
        for path in (ROOT / package).rglob("*.py"):
            assert path == own or "cpu_count" not in path.read_text(encoding="utf-8"), path
