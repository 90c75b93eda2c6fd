"""Platforms that lack what Linux has: calls taken away, and workers that are spawned instead of forked."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

JOB = ("model=mlp", "rounds=1", "partition.samples_per_device=40", "partition.test_samples_per_device=20")

WITHOUT = """
import os, signal, socket, sys
for module, names in (
    (signal, ("SIGHUP", "pthread_sigmask")),
    (os, ("waitid", "sched_getaffinity", "pidfd_open", "killpg")),
    (socket, ("SO_PEERCRED",)),
):
    for name in names:
        vars(module).pop(name, None)
sys.modules.update(resource=None, fcntl=None)
from {module} import {function}
if __name__ == "__main__":
    sys.exit({function}())
"""

# Spawned workers import this file again: without the guard they would start workers themselves.
SPAWN = """
import sys
from engines import inprocess, workers
from experiments.cli import main
if __name__ == "__main__":
    inprocess.FORK = workers.FORK = sys.argv.pop(1) == "fork"
    main()
"""


def _run(folder, code, *arguments):
    script = folder / "script.py"
    script.write_text(code)
    process = subprocess.Popen(
        [sys.executable, str(script), *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return process.returncode, output


def test_a_job_runs_without_calls_that_only_some_platforms_have(tmp_path):
    code, output = _run(
        tmp_path, WITHOUT.format(module="experiments.cli", function="main"),
        *JOB, "fleet.num_devices=2", "engine.workers=1", "hydra.run.dir=out",
    )  # fmt: skip
    assert code == 0, output
    assert '"completed"' in (tmp_path / "out" / "summary.json").read_text()


@pytest.mark.parametrize("command", [("supernode",), ("run", "--nodes", "1")])
def test_a_fleet_says_what_the_platform_lacks(tmp_path, command):
    function, *arguments = command
    code, output = _run(tmp_path, WITHOUT.format(module="deploy.cli", function=function), *arguments)
    assert code == 2
    assert "fleets run on Linux and macOS" in output
    assert "SIGHUP" in output
    assert "Traceback" not in output


@pytest.mark.slow
def test_spawned_workers_give_the_records_of_forked_ones(tmp_path):
    for method in ("spawn", "fork"):
        code, output = _run(
            tmp_path, SPAWN, method,
            *JOB, "fleet.num_devices=4", "engine.workers=2", f"hydra.run.dir={method}",
        )  # fmt: skip
        assert code == 0, output
    for name in ("rounds.csv", "devices.csv"):
        assert (tmp_path / "spawn" / name).read_bytes() == (tmp_path / "fork" / name).read_bytes()
