"""Whole runs: repeatable, independent of the workers, resumable."""

import json

import numpy as np
import pytest

from records.recorder import read_table
from schema import ConfigError
from tests.end_to_end.jobs import final_weights, records, run_small


def test_the_same_seed_gives_identical_records_whatever_the_workers(tmp_path):
    run_small(tmp_path / "one")
    run_small(tmp_path / "again")
    run_small(tmp_path / "two", workers=2)
    assert records(tmp_path / "one") == records(tmp_path / "again") == records(tmp_path / "two")
    assert np.array_equal(final_weights(tmp_path / "one"), final_weights(tmp_path / "two"))


def test_another_seed_gives_other_records(tmp_path):
    run_small(tmp_path / "one")
    run_small(tmp_path / "other", "seed=2")
    assert records(tmp_path / "one") != records(tmp_path / "other")


def test_a_resumed_run_ends_like_an_uninterrupted_one(tmp_path):
    run_small(tmp_path / "whole", "rounds=4")
    run_small(tmp_path / "half", "rounds=2")
    run_small(tmp_path / "rest", "rounds=4", f"resume={tmp_path / 'half'}", workers=2)
    assert records(tmp_path / "rest") == records(tmp_path / "whole")
    assert np.array_equal(final_weights(tmp_path / "rest"), final_weights(tmp_path / "whole"))


def test_a_twice_resumed_run_too(tmp_path):
    """Personal parts of devices that did not train since the last checkpoint travel along."""
    few = "fleet.devices_per_round=3"
    run_small(tmp_path / "whole", "rounds=3", few)
    run_small(tmp_path / "a", "rounds=1", few)
    run_small(tmp_path / "b", "rounds=2", few, f"resume={tmp_path / 'a'}")
    run_small(tmp_path / "c", "rounds=3", few, f"resume={tmp_path / 'b' / 'checkpoint'}")
    assert records(tmp_path / "c") == records(tmp_path / "whole")


def test_resuming_under_another_configuration_is_refused(tmp_path):
    run_small(tmp_path / "a", "rounds=1")
    with pytest.raises(ConfigError, match=r"radio\.latency_threshold_ms is 20\.0 here and 25\.0 there"):
        run_small(tmp_path / "b", f"resume={tmp_path / 'a'}", "radio.latency_threshold_ms=20")
    with pytest.raises(ConfigError, match="set rounds above it"):
        run_small(tmp_path / "c", f"resume={tmp_path / 'a'}", "rounds=1")
    with pytest.raises(ConfigError, match="no usable checkpoint"):
        run_small(tmp_path / "d", f"resume={tmp_path / 'nothing'}")


def test_the_round_latency_never_exceeds_the_threshold(tmp_path):
    for scheme in ("proposed", "equal_bandwidth"):
        run_small(tmp_path / scheme, f"scheme={scheme}", "rounds=5", "radio.latency_threshold_ms=1.5")
        rows = read_table(tmp_path / scheme / "rounds.csv")
        assert all(float(row["latency_s"]) <= 1.5e-3 + 1e-9 for row in rows)


def test_bytes_on_the_wire_agree_with_the_bits_of_the_model(tmp_path):
    run_small(tmp_path)
    for row in read_table(tmp_path / "devices.csv"):
        assert 8 * int(row["wire_bytes"]) == int(row["uplink_bits"])


def test_starved_devices_upload_nothing_and_still_train_their_personal_part(tmp_path):
    overrides = ("radio.bandwidth_hz=1e6", "channel=rayleigh_single", "model=mlp")
    run_small(tmp_path, *overrides, "rounds=2")
    rows = read_table(tmp_path / "devices.csv")
    starved = [row for row in rows if row["allocation"] == "starved"]
    assert starved
    for row in starved:
        assert row["status"] == "ok"
        assert (row["kept_weights"], row["wire_bytes"], row["uplink_bits"]) == ("0", "0", "0")
        assert float(row["personal_loss"]) > 0
        assert row["global_loss"] == ""


@pytest.mark.parametrize(
    "scheme",
    [
        "proposed",
        "equal_bandwidth",
        "equal_bandwidth_joint_rho",
        "personalization_only",
        "pruning_only",
        "fedavg",
        "fixed_ratio",
        "simultaneous",
        "printed_formula",
    ],
)
def test_every_scheme_runs(tmp_path, scheme):
    summary = run_small(tmp_path, f"scheme={scheme}", "rounds=2", figure=scheme == "proposed")
    assert summary["status"] == "completed"
    assert summary["scheme"] == scheme
    stored = json.loads((tmp_path / "summary.json").read_text())
    assert stored["final_accuracy_mean"] == summary["final_accuracy_mean"]
    if scheme == "proposed":
        assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_sampling_devices_leaves_the_others_alone(tmp_path):
    run_small(tmp_path, "fleet.devices_per_round=4", "rounds=2")
    rows = read_table(tmp_path / "devices.csv")
    for server_round in ("1", "2"):
        trained = [row for row in rows if row["round"] == server_round and row["status"]]
        evaluated = [row for row in rows if row["round"] == server_round and row["test_accuracy"]]
        assert (len(trained), len(evaluated)) == (4, 10)
