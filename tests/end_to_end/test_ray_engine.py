"""Flower's Ray simulation, called directly: the same run as with the in-process engine."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest

from engines.ray import run_ray
from server_app.run import RunFailedError
from server_app.settings import compose_settings
from tests.end_to_end.jobs import SMALL, final_weights, records, run_small


def _outcome(address: str) -> str:
    """Return what becomes of somebody who joins a Ray and has a function called there."""
    code = (
        "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False); "
        "print(ray.get(ray.remote(num_cpus=0)(lambda: 'called').remote()))"  # the run has all processors
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    joined = subprocess.run(
        [sys.executable, "-c", code, address],
        env=clean, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    return joined.stdout + joined.stderr


@pytest.mark.slow
def test_ray_gives_the_records_of_the_inprocess_engine_after_a_run_that_failed_and_to_nobody_else(
    tmp_path, monkeypatch
):
    """Two runs in one process, as the jobs of a sweep are: the second finds nothing left of the first.

    Ray listens on every address of the machine, and runs whatever code it is sent: while it is up, a stranger
    tries.
    """
    refused = []

    def knock(_folder):
        import ray

        refused.append(_outcome(ray.get_runtime_context().gcs_address))

    monkeypatch.setattr("server_app.run.draw_run", knock)  # the last thing that a run does
    failing = [*SMALL, "training.global_learning_rate=1e38", "fleet.max_failed_rounds=1"]
    with pytest.raises(RunFailedError, match="no device gave a usable reply"):
        run_ray(compose_settings(failing), tmp_path / "failed", workers=2)
    summary = run_ray(compose_settings([*SMALL, "rounds=2"]), tmp_path / "ray", workers=2)
    assert summary["status"] == "completed"
    run_small(tmp_path / "inprocess", "rounds=2", workers=2)
    assert records(tmp_path / "ray") == records(tmp_path / "inprocess")
    assert np.array_equal(final_weights(tmp_path / "ray"), final_weights(tmp_path / "inprocess"))
    assert refused, "Ray was not up any more when the figure was drawn"
    for text in refused:
        assert "called" not in text.split()
        assert re.search("authentication|unauthenticated", text, re.IGNORECASE), text
