"""Devices trained as one set of tensors: the same run up to rounding, and faults stay with their device."""

import numpy as np
import pytest

from engines.inprocess import InProcessGrid
from records.recorder import read_table
from schema import ConfigError
from server_app.settings import compose_settings
from tests.end_to_end.jobs import SMALL, final_weights, run_job, run_small

TOGETHER = "engine.batch_devices=4"


@pytest.mark.parametrize("workers", [1, 2])
def test_the_run_is_that_of_devices_trained_one_after_the_other(tmp_path, workers):
    run_small(tmp_path / "one")
    run_small(tmp_path / "many", TOGETHER, workers=workers)
    one, many = (read_table(tmp_path / name / "devices.csv") for name in ("one", "many"))
    for name in ("status", "kept_weights", "uplink_bits", "latency_s", "num_examples"):
        assert [row[name] for row in one] == [row[name] for row in many]
    # A weight whose importance is the threshold's, up to rounding, may be kept in one and not the other.
    difference = np.abs(final_weights(tmp_path / "one") - final_weights(tmp_path / "many"))
    assert np.quantile(difference, 0.99) < 1e-5


def test_it_repeats_bit_for_bit(tmp_path):
    run_small(tmp_path / "a", TOGETHER, workers=2)
    run_small(tmp_path / "b", TOGETHER, workers=2)
    assert np.array_equal(final_weights(tmp_path / "a"), final_weights(tmp_path / "b"))


@pytest.mark.parametrize("devices", [10, 48])  # in tasks of one and of three, two at a time for a worker
def test_a_device_that_kills_the_process_of_its_chunk_is_the_only_one_to_fail(tmp_path, monkeypatch, devices):
    monkeypatch.setenv("AIRFLOWER_TEST_FAULTS", "3:die")
    fleet = (f"fleet.num_devices={devices}", "partition=iid", "rounds=2")
    run_job(tmp_path, "model=mlp", TOGETHER, *fleet, app="faulty_app:app", workers=2)
    for server_round in ("1", "2"):
        rows = [row for row in read_table(tmp_path / "devices.csv") if row["round"] == server_round]
        assert [row["device"] for row in rows if row["status"] != "ok"] == ["3"]
        assert "exit code 9" in rows[3]["reason"]


def test_what_cannot_train_together_is_refused():
    with pytest.raises(ConfigError, match=r"engine\.batch_devices = 4.*only engine=inprocess"):
        compose_settings([*SMALL, TOGETHER, "engine=ray"])
    with pytest.raises(ValueError, match=r"engine\.batch_devices = 4.*no function train_many"):
        InProcessGrid("flwr.app:nothing", 3, batch_devices=4)
