"""Small runs and sweeps for the tests of trackers, sweeps and reports."""

import subprocess
import sys
from pathlib import Path
from typing import Any

from engines.inprocess import InProcessGrid
from server_app.run import run
from server_app.settings import compose_settings

# A tiny network on real digits: a round takes milliseconds.
TINY = ("model=mlp", "partition.samples_per_device=40", "partition.test_samples_per_device=20", "rounds=2")


def run_tiny(folder: Path, *overrides: str) -> dict[str, Any]:
    """Run a tiny job in `folder` and return its summary."""
    settings = compose_settings([*TINY, *overrides])
    with InProcessGrid("client_app.app:app", settings.fleet.num_devices, 1) as grid:
        return run(settings, grid, folder)


def airflower(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command in `folder` as a user would."""
    with start(folder, *arguments) as process:
        try:
            out, err = process.communicate(timeout=300)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start the command in `folder`."""
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.cli", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
