"""The hybrid receiver against digital masked averaging."""

import dataclasses

import numpy as np
import pytest

from protocol.messages import TrainReport
from radio import payload
from server_app.job import prepare
from server_app.settings import compose_settings
from server_app.strategy import build_strategy
from strategies.aggregation.masked_mean import MaskedAverage


def _strategy(*overrides):
    """Air and masks cost next to nothing here; computing makes each device prune about half."""
    settings = compose_settings(
        [
            "model=mlp",
            "scheme=aircomp_pruned",
            "radio.bandwidth_hz=1e10",
            "radio.latency_threshold_ms=0.14",
            "air.count_mode=bitmap",
            *overrides,
        ]
    )
    return build_strategy(prepare(settings))


def _round(strategy, seed=0):
    """Plan round 1 and let every scheduled user send a random update of as many weights as planned."""
    rng = np.random.default_rng(seed)
    size = strategy.num_weights
    weights = rng.standard_normal(size).astype(np.float32)
    plan = strategy.plan(1, range(10))
    receiver = strategy.receive(1, plan, weights)
    digital = MaskedAverage(size)
    for assignment in plan.assignments:
        mask = np.ones(size, bool)
        mask[rng.choice(size, assignment.num_pruned, replace=False)] = False
        update = (0.01 * rng.standard_normal(size)).astype(np.float32)
        encoded = np.frombuffer(payload.encode(update, mask), np.uint8) if mask.any() else None
        report = TrainReport(encoded, 10)
        upload = receiver.open(assignment, report)
        receiver.add(assignment, report, upload, scale=1.0, num_examples=10)
        if mask.any():
            digital.add((weights + update)[mask], mask)
    return weights, digital.result(weights), receiver.finish()


def test_exact_counts_no_shrinkage_no_noise_equal_digital_masked_averaging():
    """To float32 rounding of weights of size 1 to 4: a few units of 2^-22."""
    strategy = _strategy("air.noise=false")
    _, digital, (moved, columns, *_) = _round(strategy)
    np.testing.assert_allclose(moved, digital.weights, rtol=0, atol=2**-21)
    assert columns["mse_predicted"] == 0.0


def test_a_weight_that_nobody_kept_keeps_its_value_through_the_noise():
    strategy = _strategy("air.num_selected=2", "air.snr_db=0")
    weights, digital, (moved, *_) = _round(strategy)
    alone = digital.counts == 0
    assert alone.sum() > 100
    np.testing.assert_array_equal(moved[alone], weights[alone])
    assert (moved[~alone] != weights[~alone]).mean() > 0.99


@pytest.mark.parametrize("snr_db", [0, 10])
def test_the_error_matches_the_analytic_variance(snr_db):
    strategy = _strategy(f"air.snr_db={snr_db}", "air.shrinkage=off")
    _, digital, (moved, columns, *_) = _round(strategy)
    error = moved.astype(np.float64) - digital.weights
    covered = digital.counts > 0
    assert (error[covered] ** 2).mean() == pytest.approx(columns["mse_predicted"], rel=0.05)
    # The variance of a weight goes with 1 / count^2, not with the number of users.
    by_count = {
        c: (error[digital.counts == c] ** 2).mean() * c**2 for c in np.unique(digital.counts[covered])
    }
    populous = [value for c, value in by_count.items() if (digital.counts == c).sum() > 1000]
    assert len(populous) > 1
    assert max(populous) / min(populous) < 1.2


def test_shrinkage_lowers_the_error_under_strong_noise():
    errors = {}
    for shrinkage in ("off", "moment"):
        _, digital, (moved, *_) = _round(_strategy("air.snr_db=-20", f"air.shrinkage={shrinkage}"))
        errors[shrinkage] = np.square(moved - digital.weights).mean()
    assert errors["moment"] < 0.5 * errors["off"]


@pytest.mark.parametrize("mode", ["common_mask", "bitmap", "count_free"])
def test_no_pruned_round_over_the_air_exceeds_its_threshold(mode):
    """At a few hundred thousand channel uses per second half a pair of entries is microseconds."""
    strategy = _strategy(f"air.count_mode={mode}", "scheduler.method=random_beamforming")
    air = strategy.air
    for seed in range(12):
        rng = np.random.default_rng(seed)
        strategy.air = dataclasses.replace(
            air,
            packing=("iq", "real")[seed % 2],
            latency_threshold=25e-3,
            bandwidth=10 ** rng.uniform(5.5, 7.5),
            fixed_time=rng.uniform(0, 10e-3, 10),
            compute_time=rng.uniform(0, 30e-3, 10),
        )
        plan = strategy.plan(1, range(10))
        assert plan.columns["latency_s"] <= 25e-3 * (1 + 1e-9)


def test_a_user_without_time_takes_none_from_the_others():
    """Its slack is negative: it keeps nothing, nobody waits for it, and the common mask is theirs."""
    strategy = _strategy("air.count_mode=common_mask", "radio.latency_threshold_ms=1")
    everyone = strategy.plan(1, range(10))
    slow = everyone.assignments[3].device
    strategy.air.fixed_time[slow] = 2e-3
    plan = strategy.plan(1, range(10))
    kept = {a.device: strategy.num_weights - a.num_pruned for a in plan.assignments}
    assert kept.pop(slow) == 0
    assert set(kept.values()) == {int(plan.mask.sum())}
    assert min(kept.values()) > 0
    assert plan.columns["latency_s"] <= 1e-3 * (1 + 1e-9)
