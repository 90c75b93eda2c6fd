"""One hostile device of ten costs itself its rounds, and the others next to nothing."""

import json

import pytest

from records.recorder import read_table
from tests.end_to_end.jobs import run_job, run_small

HOSTILE = "9"


def _honest_accuracy(folder):
    rows = read_table(folder / "devices.csv")
    last = rows[-1]["round"]
    values = [float(r["test_accuracy"]) for r in rows if r["round"] == last and r["device"] != HOSTILE]
    return sum(values) / len(values)


def _attack(monkeypatch, **attack):
    monkeypatch.setenv("AIRFLOWER_TEST_ATTACK", json.dumps(attack))


def _failed(folder):
    return {row["device"] for row in read_table(folder / "devices.csv") if row["status"] == "failed"}


@pytest.mark.parametrize("scheme", ["proposed", "fedavg", "over_the_air", "aircomp_pruned"])
def test_a_large_update_is_rejected_from_the_first_round_on(tmp_path, monkeypatch, scheme):
    """Twenty times the norm of the others, whatever the uplink: by name, in every round in which it sends."""
    _attack(monkeypatch, norm=1.0)
    air = ["air.num_selected=9"] if scheme in ("over_the_air", "aircomp_pruned") else []
    run_small(tmp_path, f"scheme={scheme}", *air, app="hostile_app:app")
    rows = read_table(tmp_path / "devices.csv")
    mine = [row for row in rows if row["device"] == HOSTILE and row["update_norm"]]
    assert mine
    assert all(float(row["update_norm"]) == pytest.approx(1.0, rel=1e-3) for row in mine)
    assert all("times the median" in row["reason"] for row in mine)
    assert _failed(tmp_path) == {HOSTILE}


def test_huge_claims_move_nothing(tmp_path, monkeypatch):
    """Losses, sizes and speeds of one device: the run, and all that is learned, is that without them."""
    overrides = ("scheme.weighting=samples", "scheme=fedavg", "radio.bits_per_weight=8")
    run_small(tmp_path / "honest", *overrides, app="hostile_app:app")
    number = 2**62
    _attack(
        monkeypatch,
        metrics={
            "num-examples": number, "global-loss": 1e300, "personal-loss": -1e300,
            "measured-train-seconds": 1e300, "stated-uplink-bps": 1e-300,
        },
        evaluation={"loss": 1e5, "num-examples": number},
    )  # fmt: skip
    run_small(tmp_path / "attacked", *overrides, app="hostile_app:app")
    honest, attacked = (read_table(tmp_path / name / "rounds.csv") for name in ("honest", "attacked"))
    moved = {"loss_mean", "diverged", "loss_median"}
    for row, other in zip(honest, attacked, strict=True):
        assert {n: v for n, v in row.items() if n not in moved} == {
            n: v for n, v in other.items() if n not in moved
        }
        assert other["diverged"] == "1"
    assert all(row["num_examples"] == "40" for row in read_table(tmp_path / "attacked" / "devices.csv"))


FEDAVG, PROPOSED = ("model=mlp", "scheme=fedavg"), ("model=mlp",)
ATTACKS = [
    pytest.param(norm, job, marks=pytest.mark.slow if quick else pytest.mark.exhaustive)
    for norm in (9999.0, 60.0, 10.0, 1.0)
    for job in (FEDAVG, PROPOSED)
    for quick in [(norm, job) in ((9999.0, PROPOSED),)]
]


@pytest.mark.parametrize(("norm", "overrides"), ATTACKS)
def test_honest_accuracy_stays_near_that_without_the_attack(tmp_path, monkeypatch, norm, overrides):
    """It turns its updates round. Nine devices learn a little less than ten: 5 points are allowed."""
    job = (*overrides, "rounds=30")
    run_job(tmp_path / "honest", *job, app="hostile_app:app")
    _attack(monkeypatch, norm=norm)
    run_job(tmp_path / "attacked", *job, app="hostile_app:app")
    assert _honest_accuracy(tmp_path / "attacked") > _honest_accuracy(tmp_path / "honest") - 0.05
    assert _failed(tmp_path / "attacked") == {HOSTILE}


HONEST = {
    "adam": ("model=mlp",),
    "unequal sizes, sgd": (
        "model=mlp", "partition=dirichlet", "partition.options.alpha=0.1", "training=fedavg",
    ),
    "converged, sgd": ("model=mlp", "training=fedavg", "rounds=15"),
    "pruned": ("model=mlp", "radio.bandwidth_hz=1.2e7", "radio.latency_threshold_ms=10", "training=fedavg"),
    "coded in 8 bits": ("model=mlp", "radio.bits_per_weight=8"),
    "three a round": ("model=mlp", "training=fedavg", "fleet.devices_per_round=3", "rounds=15"),
    "over the air": ("model=mlp", "scheme=over_the_air", "training=fedavg"),
}  # fmt: skip


OFTEN = ("adam", "pruned", "coded in 8 bits", "over the air")


CASES = [
    pytest.param(case, marks=pytest.mark.slow if case in OFTEN else pytest.mark.exhaustive) for case in HONEST
]


@pytest.mark.parametrize("case", CASES)
def test_no_honest_device_is_ever_rejected(tmp_path, case):
    run_job(tmp_path, "rounds=10", *HONEST[case])
    assert _failed(tmp_path) == set()
