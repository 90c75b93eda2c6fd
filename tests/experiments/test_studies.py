"""Studies look at the radio of the same rounds that a run would have, and train nothing."""

import csv
import json

import numpy as np
import pytest

from experiments.studies import resolve, run_study
from records.recorder import read_table
from schema import ConfigError
from server_app.job import prepare
from server_app.run import record_run
from server_app.settings import compose_settings
from server_app.strategy import build_strategy

SMALL = ("model=mlp", "study.draws=8")


def column(folder, name, table="draws.csv"):
    return np.array([float(row[name]) for row in read_table(folder / table)])


def study(folder, *overrides):
    settings = compose_settings([*SMALL, *overrides])
    return record_run(settings, folder, lambda: run_study(settings, folder))


def test_planned_rounds_are_those_of_a_run(tmp_path):
    study(tmp_path, "study.name=planning", "radio.latency_threshold_ms=2")
    strategy = build_strategy(prepare(compose_settings(["model=mlp", "radio.latency_threshold_ms=2"])))
    ratios = [strategy.plan(r, range(10)).columns["pruning_ratio_mean"] for r in range(1, 9)]
    assert column(tmp_path, "pruning_ratio_mean").tolist() == ratios
    assert (column(tmp_path, "latency_s") <= 2e-3 + 1e-12).all()


def test_the_published_latency_table_is_reproduced(tmp_path):
    """Liu et al. 2024, Table I: 25, 38, 55 and 45 ms in the calibrated profile."""
    printed = {
        "proposed": (25.00, 1e-3, 0.0),
        "equal_bandwidth_joint_rho": (38.15, 0.1, 0.28),
        "personalization_only": (55.07, 0.15, 0.62),
        "pruning_only": (45.00, 1e-3, 0.0),
    }
    for scheme, (milliseconds, tolerance, deviation) in printed.items():
        study(
            tmp_path / scheme,
            "study.name=planning",
            f"scheme={scheme}",
            "radio.charge_mask_bits=false",
            "model=cnn",
            "study.draws=300",
        )
        latency = 1e3 * column(tmp_path / scheme, "latency_s")
        assert latency.mean() == pytest.approx(milliseconds, abs=tolerance)
        assert latency.std() == pytest.approx(deviation, abs=0.08)
    kept = [column(tmp_path / scheme, "pruning_ratio_mean").mean() for scheme in ("proposed", "pruning_only")]
    assert kept == pytest.approx([0.475, 0.152], abs=0.003)


def test_equal_bandwidth_prunes_more_than_the_optimum_on_every_channel(tmp_path):
    for scheme in ("proposed", "equal_bandwidth"):
        study(tmp_path / scheme, "study.name=planning", f"scheme={scheme}", "radio.latency_threshold_ms=1.5")
    best, equal = (
        column(tmp_path / scheme, "pruning_ratio_mean") for scheme in ("proposed", "equal_bandwidth")
    )
    assert (best <= equal + 1e-12).all()
    assert best.mean() < equal.mean()


def test_the_printed_formula_leaves_its_constraints_where_little_is_computed(tmp_path):
    study(tmp_path, "study.name=printed_formula", "model=cnn", "radio.cycles_per_weight=5")
    assert column(tmp_path, "negative_bandwidth").mean() > 0.9


def test_schedulers_meet_the_same_channels_and_the_bound_holds(tmp_path):
    for method in ("multistart", "policy"):
        study(
            tmp_path / method,
            "study.name=scheduling",
            f"scheduler={method}",
            "fleet.num_devices=15",
            "air.num_selected=4",
            "air.antennas=3",
            "air.certificate=true",
        )
    bounds = [column(tmp_path / method, "gain_upper_bound") for method in ("multistart", "policy")]
    gains = [column(tmp_path / method, "min_gain") for method in ("multistart", "policy")]
    assert (gains[0] >= gains[1] * (1 - 1e-6)).all()
    for gain in gains:
        assert (gain <= np.minimum(*bounds) * (1 + 1e-6)).all()
    assert (column(tmp_path / "policy", "measured_schedule_seconds", "timing.csv") > 0).all()


def test_the_distance_to_the_optimum_is_that_of_all_sets(tmp_path):
    """Branch and bound against every set of users, on the channels that both studies draw."""
    small = ("fleet.num_devices=9", "air.num_selected=3", "air.antennas=2")
    study(tmp_path / "all", "study.name=scheduling", "scheduler.method=brute_force", *small)
    study(tmp_path / "greedy", "study.name=scheduling", "scheduler=policy_greedy", *small)
    study(tmp_path / "distance", "study.name=optimality", "scheduler=policy_greedy", *small)
    best, found = (column(tmp_path / name, "min_gain") for name in ("all", "greedy"))
    loss = column(tmp_path / "distance", "loss_db")
    assert loss == pytest.approx(10 * np.log10(best / found), abs=2e-3)
    assert loss.max() > 0.1  # the draws can tell
    assert (column(tmp_path / "distance", "optimal") == (loss < 5e-3)).all()
    assert not column(tmp_path / "distance", "unproved").any()
    assert column(tmp_path / "distance", "gap_db").max() <= 1e-3 * (1 + 1e-6)


def test_random_beams_have_the_mse_of_order_statistics(tmp_path):
    """Gains of a random beam are i.i.d. Exp(1): E of the M-th largest of K is a sum of reciprocals."""
    settings = compose_settings(
        [
            "study.name=scheduling",
            "study.draws=400",
            "scheduler=random_beamforming",
            "fleet.num_devices=100",
            "air.num_selected=10",
        ]
    )
    run_study(settings, tmp_path)
    expected = np.sum(1.0 / np.arange(10, 101))
    assert column(tmp_path, "min_gain").mean() == pytest.approx(expected, rel=0.04)


def test_a_study_repeats_bit_for_bit_and_its_summary_holds_nothing_measured(tmp_path):
    for name in ("a", "b"):
        study(tmp_path / name, "study.name=scheduling", "scheduler=enhanced")
    assert (tmp_path / "a" / "draws.csv").read_bytes() == (tmp_path / "b" / "draws.csv").read_bytes()
    assert (tmp_path / "a" / "summary.json").read_bytes() == (tmp_path / "b" / "summary.json").read_bytes()
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())
    assert summary["status"] == "completed"
    assert summary["mean_normalised_mse"] == pytest.approx(column(tmp_path / "a", "normalised_mse").mean())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["study.name=schedulling"], "study.name = 'schedulling' is unknown; did you mean scheduling"),
        (["study.name=nowhere.at_all:study"], "study.name = 'nowhere.at_all:study' cannot be imported"),
        (["study.name=planning", "scheme=over_the_air"], "scheme.uplink = over_the_air"),
        (["study.name=scheduling", "air.num_selected=11"], "num_selected = 11 exceeds"),
    ],
)
def test_a_study_that_cannot_be_done_says_why(tmp_path, overrides, message):
    with pytest.raises(ConfigError, match=message):
        study(tmp_path, *overrides)


def test_a_study_can_be_named_by_its_path():
    assert resolve("experiments.studies.scheduling:scheduling").__name__ == "scheduling"


def test_tables_have_one_row_per_draw(tmp_path):
    study(tmp_path, "study.name=planning")
    for name in ("draws.csv", "timing.csv"):
        with (tmp_path / name).open() as file:
            assert [row["draw"] for row in csv.DictReader(file)] == [str(i) for i in range(1, 9)]
