"""Over-the-air averaging that learns through the noise, in whole runs: each switch, and none."""

import numpy as np
import pytest

from engines.flower import run_flower
from records.recorder import read_table
from server_app.settings import compose_settings
from tests.end_to_end.jobs import SMALL, final_weights, records, run_small

AIR = ("air.num_selected=4", "air.snr_db=-10", "fleet.num_devices=6")
OFF = {
    "receive_scaling": "exact", "error_feedback": "false", "shrinkage": "off", "choose_users": "false",
    "norm_exponent": "0", "momentum": "0", "averaging_power": "null",
}  # fmt: skip
ON = {
    "receive_scaling": "regularised", "error_feedback": "true", "shrinkage": "tensors",
    "choose_users": "true", "norm_exponent": "-1", "momentum": "0.5", "averaging_power": "2",
}  # fmt: skip


def _switches(**values):
    """Return the overrides; a key without effect is left out, as the command line wants it."""
    if values["receive_scaling"] == "exact":
        values.pop("error_feedback")
    return [f"adaptive.{name}={value}" for name, value in values.items()]


@pytest.mark.parametrize("payload", ["delta", "model"])
def test_with_every_switch_off_it_is_over_the_air_bit_for_bit(tmp_path, payload):
    common = (*AIR, f"air.payload={payload}", "air.channel_error_variance=0.02", "scheme.weighting=samples")
    run_small(tmp_path / "plain", "scheme=over_the_air", *common)
    run_small(tmp_path / "off", "scheme=over_the_air_adaptive", *common, *_switches(**OFF))
    np.testing.assert_array_equal(final_weights(tmp_path / "plain"), final_weights(tmp_path / "off"))
    for ours, theirs in zip(
        read_table(tmp_path / "off" / "rounds.csv"),
        read_table(tmp_path / "plain" / "rounds.csv"),
        strict=True,
    ):
        assert {name: ours[name] for name in theirs} == theirs


@pytest.fixture(scope="module")
def everything_off(tmp_path_factory):
    folder = tmp_path_factory.mktemp("off")
    run_small(folder, "scheme=over_the_air_adaptive", *AIR, *_switches(**OFF), "rounds=2")
    return final_weights(folder)


@pytest.mark.parametrize("switch", [name for name in ON if name not in ("error_feedback", "choose_users")])
def test_each_switch_alone_changes_the_result(tmp_path, everything_off, switch):
    run_small(
        tmp_path, "scheme=over_the_air_adaptive", *AIR, *_switches(**{**OFF, switch: ON[switch]}), "rounds=2"
    )
    assert not np.array_equal(final_weights(tmp_path), everything_off)


def test_repeatable_and_resumable_with_every_switch_on(tmp_path):
    overrides = ("scheme=over_the_air_adaptive", "server=momentum", *AIR, *_switches(**ON))
    run_small(tmp_path / "whole", *overrides, "rounds=4")
    run_small(tmp_path / "half", *overrides, "rounds=2", workers=2)
    run_small(tmp_path / "rest", *overrides, "rounds=4", f"resume={tmp_path / 'half'}")
    assert records(tmp_path / "whole") == records(tmp_path / "rest")
    np.testing.assert_array_equal(final_weights(tmp_path / "whole"), final_weights(tmp_path / "rest"))


@pytest.mark.exhaustive
def test_flowers_simulation_gives_the_same_records(tmp_path):
    overrides = ("scheme=over_the_air_adaptive", "server=momentum", *AIR, *_switches(**ON))
    run_small(tmp_path / "ours", *overrides)
    run_flower(compose_settings([*SMALL, *overrides, "engine=flower"]), tmp_path / "theirs")
    assert records(tmp_path / "ours") == records(tmp_path / "theirs")


def test_a_faulty_round_leaves_the_average_as_it_was(tmp_path, monkeypatch):
    """One answers too few in the third round: what is kept and tested is the mean after the second."""
    overrides = ("scheme=over_the_air_adaptive", *AIR, "air.num_selected=6", "fleet.min_replies=6")
    run_small(tmp_path / "two", *overrides, "rounds=2")
    monkeypatch.setenv("AIRFLOWER_TEST_FAULTS", "0:raise")
    run_small(tmp_path / "three", *overrides, "rounds=3", f"resume={tmp_path / 'two'}", app="faulty_app:app")
    np.testing.assert_array_equal(final_weights(tmp_path / "two"), final_weights(tmp_path / "three"))
    rows = read_table(tmp_path / "three" / "rounds.csv")
    assert rows[2]["replies"] == "5"
    assert rows[2]["loss_mean"] == rows[1]["loss_mean"]


def test_fewer_users_send_where_the_weak_ones_cost_more_than_they_tell(tmp_path):
    """With users of very unlike path loss the predicted error picks fewer; among equals it picks all."""
    for name, spread, relation in (("unlike", "true", "fewer"), ("alike", "false", "all")):
        overrides = (*AIR, "air.num_selected=6", f"air.path_loss={spread}", "adaptive.choose_users=true")
        exact = ("adaptive.receive_scaling=exact", "air.snr_db=-20", "rounds=1")
        run_small(tmp_path / name, "scheme=over_the_air_adaptive", *overrides, *exact)
        users = len(read_table(tmp_path / name / "rounds.csv")[0]["users"].split(";"))
        assert (users < 6) if relation == "fewer" else (users == 6)
