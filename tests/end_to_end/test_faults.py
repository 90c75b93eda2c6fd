"""A fault costs its own device the round, never the run and never another device's data."""

import numpy as np
import pytest
import torch
from flwr.app import Context, RecordDict

from client_app import device
from protocol.arrays import weights_record
from protocol.messages import TrainOrder
from radio import payload
from records.recorder import read_table
from server_app.job import prepare
from server_app.run import RunFailedError
from server_app.settings import compose_settings
from strategies.aggregation.masked_mean import MaskedAverage
from tests.end_to_end.jobs import SMALL, final_weights, run_job, run_small

FAULTS = {
    "die": "exit code 9",
    "raise": "the battery is empty",
    "truncate": "bytes",
    "nan": "finite",
    "short": "num-examples",
    "no-upload": "no upload",
    "float-payload": "dtype float64",
}


def _average_of_survivors(rows, failed):
    """Average in this process what the surviving devices upload on the same orders."""
    job = prepare(compose_settings([*SMALL, "rounds=1"]))
    average = MaskedAverage(job.initial_weights.size)
    weights = weights_record(job.initial_weights)
    for row in rows:
        index = int(row["device"])
        if index == failed:
            continue
        num_pruned = int(np.ceil(float(row["pruning_ratio"]) * job.initial_weights.size - 1e-9))
        order = TrainOrder(1, num_pruned, job.spec.to_json(), weights)
        context = Context(1, index, {"partition-id": index, "num-partitions": 10}, RecordDict(), {})
        report = device.train(order, context)
        upload = payload.decode(report.payload.tobytes(), num_weights=job.initial_weights.size)
        average.add(upload.values, upload.mask)
    return average.result(job.initial_weights).weights


@pytest.mark.parametrize("fault", FAULTS)
def test_survivors_are_averaged_and_the_device_is_named(tmp_path, monkeypatch, fault):
    monkeypatch.setenv("AIRFLOWER_TEST_FAULTS", f"3:{fault}")
    workers = 2 if fault == "die" else 1
    summary = run_small(tmp_path, "rounds=1", app="faulty_app:app", workers=workers)
    assert summary["rounds_with_failures"] == 1
    rows = read_table(tmp_path / "devices.csv")
    assert [row["device"] for row in rows if row["status"] == "failed"] == ["3"]
    assert FAULTS[fault] in rows[3]["reason"]
    assert read_table(tmp_path / "rounds.csv")[0]["failed"] == "3"
    assert "device 3" in (tmp_path / "run.log").read_text()
    torch.set_num_threads(1)
    assert np.array_equal(final_weights(tmp_path), _average_of_survivors(rows, failed=3))


def test_a_killed_device_is_back_in_the_next_round_with_its_personal_part(tmp_path, monkeypatch):
    """Only its process died: the device's state is not the worker's."""
    monkeypatch.setenv("AIRFLOWER_TEST_FAULTS", "3:die,7:raise")
    run_small(tmp_path, "rounds=2", app="faulty_app:app", workers=2)
    rows = read_table(tmp_path / "devices.csv")
    assert [row["device"] for row in rows if row["status"] == "failed"] == ["3", "7", "3", "7"]
    assert all(row["test_accuracy"] for row in rows)


@pytest.mark.slow
def test_a_device_that_hangs_does_not_stall_the_run(tmp_path, monkeypatch):
    """The round closes at its deadline with everybody else."""
    monkeypatch.setenv("AIRFLOWER_TEST_FAULTS", "9:hang")
    run_small(tmp_path, "rounds=1", "fleet.round_timeout_s=15", app="faulty_app:app", workers=2)
    rows = read_table(tmp_path / "devices.csv")
    failed = [(row["round"], row["device"], row["reason"]) for row in rows if row["status"] == "failed"]
    assert failed == [("1", "9", "no reply before the round closed")]


@pytest.mark.slow
def test_a_silent_device_of_a_hundred_is_the_only_one_that_is_lost(tmp_path, monkeypatch):
    """Its worker had been given the next two as well."""
    monkeypatch.setenv("AIRFLOWER_TEST_FAULTS", "3:hang")
    few = ("partition=iid", "partition.samples_per_device=14", "fleet.num_devices=100")
    run_small(tmp_path, "rounds=1", *few, "fleet.round_timeout_s=25", app="faulty_app:app", workers=2)
    assert read_table(tmp_path / "rounds.csv")[0]["failed"] == "3"


@pytest.mark.exhaustive
def test_more_silent_devices_than_workers_are_the_only_ones_that_are_lost(tmp_path, monkeypatch):
    """Those that wait for a worker get another one, and the next round finds two workers again."""
    monkeypatch.setenv("AIRFLOWER_TEST_FAULTS", "0:hang,1:hang,5:hang")
    run_small(tmp_path, "rounds=2", "fleet.round_timeout_s=20", app="faulty_app:app", workers=2)
    assert [row["failed"] for row in read_table(tmp_path / "rounds.csv")] == ["0;1;5", "0;1;5"]


@pytest.mark.exhaustive
def test_a_silent_device_among_those_that_are_trained_together_is_the_only_one_that_is_lost(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("AIRFLOWER_TEST_FAULTS", "3:hang")
    fleet = ("rounds=1", "fleet.num_devices=48", "partition=iid", "engine.batch_devices=4")
    timeout = "fleet.round_timeout_s=40"
    run_job(tmp_path, "model=mlp", *fleet, timeout, app="faulty_app:app", workers=2)
    assert [row["failed"] for row in read_table(tmp_path / "rounds.csv")] == ["3"]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("part", [(), ("fleet.devices_per_round=3",)])  # the others have rows of a test only
def test_a_run_whose_every_device_fails_is_a_failed_run(tmp_path, monkeypatch, workers, part):
    monkeypatch.setenv("AIRFLOWER_TEST_FAULTS", "all:raise")
    with pytest.raises(RunFailedError, match="the battery is empty"):
        run_small(tmp_path, *part, app="faulty_app:app", workers=workers)
    assert '"failed"' in (tmp_path / "summary.json").read_text()


def test_too_few_replies_leave_the_global_part_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setenv("AIRFLOWER_TEST_FAULTS", "3:raise")
    run_small(tmp_path, "rounds=1", "fleet.min_replies=10", app="faulty_app:app")
    initial = prepare(compose_settings([*SMALL, "rounds=1"])).initial_weights
    assert np.array_equal(final_weights(tmp_path), initial)
