"""Flower's Ray simulation, called directly: the same run as with the in-process engine."""

import os
import re
import subprocess
import sys
import time

import numpy as np
import pytest

from engines.process_table import command_of, started_by
from engines.ray import run_ray
from server_app.run import RunFailedError
from server_app.settings import compose_settings
from tests.end_to_end.jobs import SMALL, final_weights, records, run_small


@pytest.mark.slow
def test_ray_and_the_inprocess_engine_give_the_same_records_after_a_run_that_failed(tmp_path):
    """Two runs in one process, as the jobs of a sweep are: the second finds nothing left of the first."""
    failing = [*SMALL, "training.global_learning_rate=1e38", "fleet.max_failed_rounds=1"]
    with pytest.raises(RunFailedError, match="no device gave a usable reply"):
        run_ray(compose_settings(failing), tmp_path / "failed", workers=2)
    summary = run_ray(compose_settings([*SMALL, "rounds=2"]), tmp_path / "ray", workers=2)
    assert summary["status"] == "completed"
    run_small(tmp_path / "inprocess", "rounds=2", workers=2)
    assert records(tmp_path / "ray") == records(tmp_path / "inprocess")
    assert np.array_equal(final_weights(tmp_path / "ray"), final_weights(tmp_path / "inprocess"))


def _outcome(address: str) -> str:
    """Return what becomes of somebody who joins a Ray and has a function called there."""
    code = (
        "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False); "
        "print(ray.get(ray.remote(lambda: 'called').remote()))"
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    joined = subprocess.run(
        [sys.executable, "-c", code, address],
        env=clean, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    return joined.stdout + joined.stderr


@pytest.mark.slow
def test_nobody_else_can_use_its_ray(tmp_path):
    """Ray listens on every address of the machine, and runs whatever code it is sent."""
    with (tmp_path / "log").open("wb") as log:
        run = subprocess.Popen(
            [
                *(sys.executable, "-m", "experiments.cli", *SMALL, "rounds=10000"),
                *("engine=ray", "hydra.run.dir=out"),
            ],
            cwd=tmp_path, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 300
        while not (tmp_path / "out" / "devices.csv").is_file() and run.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        commands = [command_of(process) for process in started_by(run.pid)]
        found = [re.search(r"--gcs-address=(\S+)", command) for command in commands]
        (address,) = {match[1] for match in found if match}
        refused = _outcome(address)
        assert "called" not in refused.split()
        assert re.search("authentication|unauthenticated", refused, re.IGNORECASE), refused
    finally:
        run.terminate()
        run.wait()
