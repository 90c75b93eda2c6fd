"""Over-the-air schemes as whole runs."""

import numpy as np
import pytest

from records.recorder import read_table
from schema import ConfigError
from server_app.job import prepare
from server_app.run import RunFailedError
from server_app.settings import compose_settings
from server_app.strategy import build_strategy
from strategies.base import DivergedError
from tests.end_to_end.jobs import final_weights, records, run_small

AIR = ("air.num_selected=4", "air.snr_db=20")


@pytest.mark.parametrize("count_mode", ["bitmap", "common_mask", "count_free"])
def test_pruned_over_the_air_fits_the_threshold_and_records_every_part(tmp_path, count_mode):
    threshold = 0.7e-3  # the MLP's dense round takes 0.76 ms
    run_small(
        tmp_path, "scheme=aircomp_pruned", *AIR, f"air.count_mode={count_mode}",
        f"radio.latency_threshold_ms={1e3 * threshold}",
    )  # fmt: skip
    for row in read_table(tmp_path / "rounds.csv"):
        parts = float(row["compute_s"]) + float(row["airtime_s"]) + float(row["mask_s"])
        assert float(row["latency_s"]) == pytest.approx(parts)
        assert parts <= threshold + 1e-9
        assert float(row["pruning_ratio_mean"]) > 0
        users = row["users"].split(";")
        assert len(users) == 4
        sent = [r for r in read_table(tmp_path / "devices.csv") if r["round"] == row["round"] and r["status"]]
        assert [r["device"] for r in sent] == users
        if count_mode == "bitmap":
            assert int(row["mask_bits"]) % 19625 == 0
            assert int(row["mask_bits"]) > 0
        else:
            assert float(row["mask_bits"]) == 0


@pytest.mark.parametrize("scheme", ["over_the_air", "aircomp_pruned"])
def test_repeatable_and_resumable(tmp_path, scheme):
    overrides = [f"scheme={scheme}", *AIR]
    if scheme == "aircomp_pruned":
        overrides.append("radio.latency_threshold_ms=0.7")
    run_small(tmp_path / "whole", *overrides, "rounds=3")
    run_small(tmp_path / "half", *overrides, "rounds=1", workers=2)
    run_small(tmp_path / "rest", *overrides, "rounds=3", f"resume={tmp_path / 'half'}")
    assert records(tmp_path / "whole") == records(tmp_path / "rest")
    assert np.array_equal(final_weights(tmp_path / "whole"), final_weights(tmp_path / "rest"))


def test_predicted_and_realised_mse_agree(tmp_path):
    """20 thousand noisy entries: the mean squared error is within a few percent of its expectation."""
    run_small(tmp_path, "scheme=over_the_air", *AIR)
    for row in read_table(tmp_path / "rounds.csv"):
        assert float(row["mse_realised"]) == pytest.approx(float(row["mse_predicted"]), rel=0.05)
        assert float(row["normalised_mse"]) == pytest.approx(1 / float(row["min_gain"]))


def test_less_noise_comes_closer_to_the_error_free_run(tmp_path):
    run_small(tmp_path / "exact", "scheme=error_free", "air.num_selected=4", "rounds=1")
    exact = final_weights(tmp_path / "exact")
    distances = []
    for snr in (-20, 0, 20):
        run_small(tmp_path / str(snr), "scheme=over_the_air", *AIR, f"air.snr_db={snr}", "rounds=1")
        distances.append(np.linalg.norm(final_weights(tmp_path / str(snr)) - exact))
    assert distances[0] > distances[1] > distances[2] > 0


def test_with_hardly_any_noise_updates_and_models_give_the_same_average(tmp_path):
    for payload in ("delta", "model"):
        overrides = ("scheme=over_the_air", "air.num_selected=4", "air.snr_db=150", f"air.payload={payload}")
        run_small(tmp_path / payload, *overrides)
    np.testing.assert_allclose(
        final_weights(tmp_path / "model"), final_weights(tmp_path / "delta"), atol=1e-5
    )


def test_a_failed_user_is_left_out_of_the_superposition(tmp_path, monkeypatch):
    monkeypatch.setenv("AIRFLOWER_TEST_FAULTS", "2:truncate")
    run_small(tmp_path, "scheme=error_free", "air.num_selected=10", "rounds=1", app="faulty_app:app")
    assert read_table(tmp_path / "rounds.csv")[0]["failed"] == "2"
    assert np.isfinite(final_weights(tmp_path)).all()


def test_noise_that_makes_training_diverge_is_reported_not_written(tmp_path):
    with pytest.raises((DivergedError, RunFailedError)):
        run_small(tmp_path, "scheme=over_the_air", "air.snr_db=-150", "rounds=5")
    assert "nan" not in (tmp_path / "rounds.csv").read_text().lower()
    assert '"failed"' in (tmp_path / "summary.json").read_text()
    assert "diverge" in (tmp_path / "summary.json").read_text().lower()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["air.num_selected=11"], "air.num_selected = 11 is above the 10 devices"),
        (["air.num_selected=0"], "air.num_selected = 0 is below its least value 1"),
        (["air.antennas=0"], "air.antennas = 0 is below its least value 1"),
        (["air.count_mode=guess"], "air.count_mode = 'guess' is not one of"),
        (["scheduler.method=oracle"], "scheduler.method = oracle.*multistart"),
        (["scheduler=oracle"], r"(?s)Could not find 'scheduler/oracle'.*multistart"),
        (["scheduler.beamformer=psychic"], "psychic.*fast"),
        (["+scheduler.options.speed=9"], "scheduler.method = 'multistart' has no option 'speed'; "),
    ],
)
def test_bad_settings_stop_before_training(overrides, message):
    with pytest.raises(ConfigError, match=message):
        build_strategy(prepare(compose_settings(["model=mlp", "scheme=over_the_air", *overrides])))
