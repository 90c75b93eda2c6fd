"""The hybrid receiver against digital masked averaging."""

import dataclasses

import numpy as np
import pytest

from protocol.messages import TrainReport
from radio import payload
from schema import ConfigError
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


@pytest.mark.parametrize("weighting", ["uniform", "samples"])
def test_users_count_equally_or_by_their_samples(weighting):
    """Without noise the mean arrives; device k has 10 (k + 1) images and moves every weight by k + 1."""
    settings = compose_settings(
        ["model=mlp", "scheme=over_the_air", "air.noise=false", f"scheme.weighting={weighting}"]
    )
    strategy = build_strategy(prepare(settings))
    weights = np.zeros(strategy.num_weights, np.float32)
    plan = strategy.plan(1, range(10))
    receiver = strategy.receive(1, plan, weights)
    moves = np.array([assignment.device + 1.0 for assignment in plan.assignments])
    assert np.unique(moves).size > 1
    sent = 0
    for assignment, move in zip(plan.assignments, moves, strict=True):
        update = np.full(weights.size, move, np.float32)
        report = TrainReport(np.frombuffer(payload.encode(update, update > 0), np.uint8), int(10 * move))
        upload = receiver.open(assignment, report)
        row = receiver.add(assignment, report, upload, scale=1.0, num_examples=int(10 * move))
        sent += int(row["wire_bytes"])
    moved, columns, *_ = receiver.finish()
    mean = moves.mean() if weighting == "uniform" else (moves**2).sum() / moves.sum()
    np.testing.assert_allclose(moved, mean, rtol=1e-5)
    assert columns["wire_bytes"] == sent > 10 * 4 * weights.size  # what really travels: float32 and headers


def test_who_keeps_nothing_sends_no_signal():
    """An upload without a single weight is well-formed; as a vector of zeros it would count in the mean."""
    strategy = _strategy()
    plan = strategy.plan(1, range(10))
    weights = np.zeros(strategy.num_weights, np.float32)
    nothing = payload.encode(weights, np.zeros(weights.size, bool))
    pruned = dataclasses.replace(plan.assignments[0], num_pruned=weights.size)
    report = TrainReport(np.frombuffer(nothing, np.uint8), 10)
    assert strategy.receive(1, plan, weights).open(pruned, report) is None


def _dense_round(*overrides):
    """Plan round 2 and let every scheduled user send a random update; adaptive schemes send twice."""
    settings = compose_settings(["model=mlp", "air.snr_db=0", *overrides])
    strategy = build_strategy(prepare(settings))
    rng = np.random.default_rng(0)
    weights = rng.standard_normal(strategy.num_weights).astype(np.float32)
    everything = np.ones(weights.size, bool)
    for server_round in (1, 2):
        plan = strategy.plan(server_round, range(10))
        receiver = strategy.receive(server_round, plan, weights)
        for assignment in plan.assignments:
            update = (0.01 * rng.standard_normal(weights.size)).astype(np.float32)
            report = TrainReport(np.frombuffer(payload.encode(update, everything), np.uint8), 10)
            upload = receiver.open(assignment, report)
            receiver.add(assignment, report, upload, scale=1.0, num_examples=10)
        found = receiver.finish()
    return plan, found


@pytest.mark.parametrize(
    "overrides",
    [
        ["scheme=over_the_air", "air.channel_error_variance=0.1", "air.num_selected=4"],
        ["scheme=over_the_air", "air.recompute_beam=true", "air.path_loss=true", "air.num_selected=4"],
        ["scheme=over_the_air_adaptive", "adaptive.receive_scaling=regularised", "air.packing=real"],
    ],
)
def test_flat_subcarriers_and_users_in_time_are_the_single_carrier_bit_for_bit(overrides):
    plain, (weights, columns, *_) = _dense_round(*overrides)
    plan, found = _dense_round(*overrides, "air.subcarriers=24", "air.cyclic_prefix=6")
    np.testing.assert_array_equal(found.weights, weights)
    assert {**found.columns, "wire_bytes": 0} == {**columns, "wire_bytes": 0}
    assert [a.columns for a in plan.assignments] == [a.columns for a in plain.assignments]
    longer = {"symbols", "airtime_s", "latency_s"}  # whole OFDM symbols with their prefix
    assert {name for name in plan.columns if plan.columns[name] != plain.columns[name]} == longer
    uses = 24 * -(-plain.columns["symbols"] // 24)
    assert plan.columns["symbols"] == uses
    assert plan.columns["airtime_s"] == pytest.approx(uses * 30 / 24 / 200e6)


def test_selective_air_and_late_users_cost_what_is_predicted():
    """Flat and in time; over six taps; and with users that are late: the columns say what it costs."""
    flat = ["scheme=over_the_air", "air.num_selected=4", "air.antennas=4"]
    taps = ["air.subcarriers=32", "air.subcarrier_groups=4", "air.taps=6", "air.cyclic_prefix=8"]
    late = ["air.timing_spread=1.0", "air.phase_error_deg=20"]
    gains, errors = [], []
    for overrides in (flat, [*flat, *taps], [*flat, *taps, *late]):
        plan, found = _dense_round(*overrides)
        gains.append(plan.columns["min_gain"])
        errors.append(found.columns["mse_predicted"])
        assert found.columns["mse_realised"] == pytest.approx(errors[-1], rel=0.05)
        assert plan.columns["normalised_mse"] == pytest.approx(1 / gains[-1])
    assert gains[1] == gains[2]
    assert errors[2] > errors[1]


def test_pilots_and_coefficients_of_a_selective_band_are_charged():
    charged = ["scheme=over_the_air", "air.num_selected=4", "air.charge_side_information=true"]
    flat = _dense_round(*charged)[0].columns
    taps = ["air.subcarriers=32", "air.subcarrier_groups=4", "air.taps=6", "air.cyclic_prefix=8"]
    plan = _dense_round(*charged, *taps)[0]
    assert flat["side_information_bits"] == 32 * (4 * 2 + 1 + 2 * 4)
    # One statistic more; of each group of eight subcarriers six projected taps.
    assert plan.columns["side_information_bits"] == 32 * (4 * 3 + 1 + 2 * 4 * 4 * 6)
    assert plan.columns["side_information_s"] > flat["side_information_s"] + 10 * 5 / 200e6


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["air.taps=9"], "set air.cyclic_prefix to 8 or more"),
        (["air.taps=3", "air.cyclic_prefix=2", "air.timing_spread=0.5"], "air.cyclic_prefix to 3"),
        (["air.cyclic_prefix=17"], "air.cyclic_prefix = 17 is above air.subcarriers = 16"),
        (["air.subcarrier_groups=17", "air.taps=2", "air.cyclic_prefix=1"], "air.subcarrier_groups = 17"),
        (["air.taps=2", "air.cyclic_prefix=1", "channel.model=none"], "channel.model = none"),
        (["air.taps=2", "air.cyclic_prefix=1", "air.certificate=true"], "air.certificate = true"),
        (["scheme=aircomp_pruned"], "air.subcarriers = 16 has no effect here: .* by scheme=over_the_air,"),
    ],
)
def test_what_subcarriers_cannot_do_is_said_before_training(overrides, message):
    with pytest.raises(ConfigError, match=message):
        compose_settings(["scheme=over_the_air", "air.subcarriers=16", *overrides])
