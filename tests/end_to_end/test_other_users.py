"""Containers and clusters: users without account and home, a tree that cannot be written, a long TMPDIR."""

import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOBODY = 54321  # has no account
JOB = (
    *("model=mlp", "rounds=1", "partition.samples_per_device=40", "partition.test_samples_per_device=20"),
    *("fleet.num_devices=2", "engine.workers=1", "hydra.run.dir=out"),
)


class Place:
    """A source tree that everybody may read and only root write, and a folder of the user without account."""

    def __init__(self, folder):
        folder.chmod(0o755)
        self.tree, self.work = folder / "tree", folder / "work"
        wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"][
            "wheel"
        ]
        for name in wheel["packages"]:
            shutil.copytree(ROOT / name, self.tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        for path in (self.tree, *self.tree.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        self.work.mkdir()
        os.chown(self.work, NOBODY, NOBODY)
        self.python = self._interpreter()

    def _interpreter(self):
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        for python in (sys.executable, f"/usr/bin/{version}"):
            if not Path(python).exists():
                continue
            probe = self.run("-c", "import torch, flwr, hydra", python=python)
            if probe is not None and probe.returncode == 0:
                return python
        pytest.skip("no interpreter here can be read by another user")

    def run(self, *arguments, python=None, **variables):
        installed = [path for path in sys.path if path.endswith("-packages")]
        environment = {
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": os.pathsep.join([str(self.tree), *installed]),
            **variables,
        }
        try:
            return subprocess.run(
                [python or self.python, *arguments],
                cwd=self.work,
                env=environment,
                user=NOBODY,
                group=NOBODY,
                extra_groups=[],
                capture_output=True,
                text=True,
                check=False,
                timeout=300,
            )
        except PermissionError:
            return None


@pytest.fixture
def place():
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("only root may act as another user")
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="other-") as folder:
        yield Place(Path(folder))


def _completed(place, result):
    assert result.returncode == 0, result.stdout + result.stderr
    assert '"completed"' in (place.work / "out" / "summary.json").read_text()
    assert not [path for path in place.tree.rglob("*") if path.stat().st_uid == NOBODY]


def test_a_user_without_account_runs_a_tree_that_it_cannot_write(place):
    _completed(place, place.run("-m", "experiments.cli", *JOB))


@pytest.mark.exhaustive
def test_a_user_without_account_and_a_long_tmpdir_on_ray(place):
    long = place.work / ("x" * 100)
    long.mkdir()
    os.chown(long, NOBODY, NOBODY)
    _completed(place, place.run("-m", "experiments.cli", *JOB, "engine=ray", TMPDIR=str(long)))
    assert not list(long.glob("airflower-*"))
