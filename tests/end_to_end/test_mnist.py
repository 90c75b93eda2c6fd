"""The real MNIST files, both papers' networks, a few rounds."""

import pytest

from records.recorder import read_table
from tests.end_to_end.jobs import run_job


@pytest.mark.slow
def test_the_proposed_scheme_saves_half_the_bits_within_the_threshold(tmp_path, data_root):
    """Calibrated profile, paper's CNN: 45 to 50 % fewer bits than without pruning, bitmaps included."""
    common = ("dataset=mnist", f"dataset.root={data_root}", "dataset.download=false", "rounds=2",
              "partition.samples_per_device=64", "partition.test_samples_per_device=20")  # fmt: skip
    proposed = run_job(tmp_path / "proposed", *common)
    dense = run_job(tmp_path / "dense", *common, "scheme=personalization_only")
    assert 0.45 <= 1 - proposed["total_uplink_bits"] / dense["total_uplink_bits"] <= 0.50
    assert proposed["max_latency_s"] <= 25e-3 < dense["max_latency_s"]


@pytest.mark.parametrize("partition", ["shards", "iid"])
def test_lenet_learns_over_the_air(tmp_path, data_root, partition):
    """A hundred users, ten of them sending at once to eight antennas."""
    summary = run_job(
        tmp_path, "scheme=over_the_air", "dataset=mnist", f"dataset.root={data_root}", "model=lenet5",
        "training=fedavg", f"partition={partition}", "partition.samples_per_device=60",
        "partition.test_samples_per_device=10", "fleet.num_devices=100", "rounds=2", "air.snr_db=0",
    )  # fmt: skip
    assert summary["status"] == "completed"
    for row in read_table(tmp_path / "rounds.csv"):
        assert len(row["users"].split(";")) == 10
        assert float(row["mse_realised"]) == pytest.approx(float(row["mse_predicted"]), rel=0.05)
