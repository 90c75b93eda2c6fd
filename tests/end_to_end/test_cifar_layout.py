"""CIFAR-10's folder layout trains resnet20: batch normalisation of one's own, and shared statistics."""

import csv

import pytest

from server_app.job import prepare
from server_app.links import device_times
from server_app.settings import compose_settings
from tests.end_to_end.jobs import run_job
from tests.task.cifar import write_cifar10

# Nineteen normalisations: seven of 2, six of 4, six of 8 channels; a mean and a variance each, and a count.
STATISTICS = 2 * (7 * 2 + 6 * 4 + 6 * 8) + 19
JOB = (
    "dataset=cifar10", "dataset.download=false", "model=resnet20", "model.options.width=2", "partition=iid",
    "fleet.num_devices=2", "training.batch_size=8", "rounds=1", "scheme=personalization_only",
)  # fmt: skip


def _run(folder, root, *overrides):
    job = [*JOB, f"dataset.root={root}", *overrides]
    run_job(folder, *job)
    with (folder / "devices.csv").open() as file:
        return list(csv.DictReader(file)), prepare(compose_settings(job))


@pytest.mark.slow
def test_it_trains_and_shared_statistics_cost_bits_and_time(tmp_path, monkeypatch):
    write_cifar10(tmp_path / "data", monkeypatch)
    _, mine = _run(tmp_path / "own", tmp_path / "data", 'model.personal=["*bn*"]')
    assert len(mine.split.personal.names) == 2 * 19
    assert len(mine.split.personal_buffers) == 3 * 19
    own, alone = _run(tmp_path / "none", tmp_path / "data", "model.personal=[]")
    shared, job = _run(tmp_path / "shared", tmp_path / "data", "model.personal=[]", "model.buffers=shared")
    assert len(job.split.shared_buffers) == 3 * 19
    fixed, compute = (times[0] for times in device_times(job))
    assert (fixed, compute) == tuple(times[0] for times in device_times(alone))
    assert len(own) == len(shared) == 2
    for a, b in zip(own, shared, strict=True):
        bits = int(a["uplink_bits"])
        assert int(b["uplink_bits"]) - bits == 32 * STATISTICS
        rate = bits / (float(a["latency_s"]) - fixed - compute)
        longer = float(b["latency_s"]) - float(a["latency_s"])
        assert longer == pytest.approx(32 * STATISTICS / rate, rel=1e-6)
        assert int(b["wire_bytes"]) >= int(a["wire_bytes"]) + 4 * STATISTICS
