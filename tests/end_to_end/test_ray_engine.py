"""Flower's Ray simulation, called directly: the same run as with the in-process engine."""

import numpy as np
import pytest

from engines.ray import run_ray
from server_app.run import RunFailedError
from server_app.settings import compose_settings
from tests.end_to_end.jobs import SMALL, final_weights, records, run_small


@pytest.mark.slow
def test_ray_and_the_inprocess_engine_give_the_same_records(tmp_path):
    summary = run_ray(compose_settings([*SMALL, "rounds=2"]), tmp_path / "ray", workers=2)
    assert summary["status"] == "completed"
    run_small(tmp_path / "inprocess", "rounds=2", workers=2)
    assert records(tmp_path / "ray") == records(tmp_path / "inprocess")
    assert np.array_equal(final_weights(tmp_path / "ray"), final_weights(tmp_path / "inprocess"))


@pytest.mark.slow
def test_a_run_that_fails_on_ray_fails_here(tmp_path):
    overrides = [*SMALL, "training.global_learning_rate=1e38", "fleet.max_failed_rounds=1"]
    with pytest.raises(RunFailedError, match="no device gave a usable reply"):
        run_ray(compose_settings(overrides), tmp_path, workers=2)
