"""Pruned updates over the air: exactness without noise, variance with it, and what each count mode costs."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radio.air.sparse import (
    choose_common_mask,
    common_pruning_for_budget,
    common_scale,
    design_sparse_link,
    divisors,
    noise_variance_per_weight,
    pruning_for_budget,
    receive,
    second_moment,
    shrinkage_factors,
    sparse_airtime,
    superpose,
)
from radio.beamforming import beamform


def round_of(
    seed: int, users: int, size: int, keep: float = 0.5
) -> tuple[np.ndarray[Any, np.dtype[np.float32]], list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]]:
    """Return the broadcast weights, and per user its trained weights and mask."""
    rng = np.random.default_rng(seed)
    current = rng.standard_normal(size).astype(np.float32)
    trained = []
    for _ in range(users):
        mask = rng.random(size) < keep
        trained.append(((current + 0.1 * rng.standard_normal(size).astype(np.float32)) * mask, mask))
    return current, trained


def updates(current: Any, trained: Any) -> list[tuple[Any, Any]]:
    return [((values - current) * mask, mask) for values, mask in trained]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 8), st.integers(1, 60), st.floats(0.05, 1.0))
def test_exact_counts_without_noise_equal_digital_averaging(
    seed: int, users: int, size: int, keep: float
) -> None:
    """u_j = mean over its contributors, to float32 rounding; a weight without any keeps its bits."""
    current, trained = round_of(seed, users, size, keep)
    found = receive(
        current,
        superpose(updates(current, trained), size),
        mode="bitmap",
        scale=0.1,
        noise_variance=0.0,
        rng=np.random.default_rng(0),
    )
    for j in range(size):
        held = [values[j] for values, mask in trained if mask[j]]
        if held:
            assert found.weights[j] == pytest.approx(np.mean(held, dtype=np.float64), rel=3e-7, abs=3e-7)
        else:
            assert found.weights[j] == current[j]
            assert not found.updated[j]
    assert not found.noise_variance.any()


@pytest.mark.parametrize("packing", ["iq", "real"])
@pytest.mark.parametrize("shrinkage", ["off", 0.004])
def test_noise_matches_the_analytic_variance_of_every_weight(packing: Any, shrinkage: Any) -> None:
    """Over many draws, weight by weight and by count of contributors; 4.5 standard errors per weight."""
    size, users, draws = 60, 5, 4000
    current, trained = round_of(0, users, size, 0.4)
    rng = np.random.default_rng(1)
    h = rng.standard_normal((users, 3)) + 1j * rng.standard_normal((users, 3))
    link = design_sparse_link(h, beamform(h).beam, power=1.0, noise_power=2.0, packing=packing)
    air = superpose(updates(current, trained), size, link=link)
    options: dict[str, Any] = {"mode": "bitmap", "scale": 0.1, "rng": rng, "shrinkage": shrinkage}
    clean = receive(current, air, noise_variance=0.0, **options)
    drawn = [receive(current, air, noise_variance=link.noise_variance, **options) for _ in range(draws)]
    errors = np.array([one.shrinkage * one.raw_update for one in drawn])
    expected = drawn[0].noise_variance
    measured = errors.var(axis=0)
    held = air.counts > 0
    np.testing.assert_allclose(measured[held], expected[held], rtol=4.5 * np.sqrt(2 / draws))
    np.testing.assert_allclose(
        errors.mean(axis=0)[held],
        (drawn[0].shrinkage * clean.raw_update)[held],
        atol=4.5 * np.sqrt(expected.max() / draws),
    )
    assert (errors[:, ~held] == 0).all()
    if shrinkage == "off":
        by_formula = (0.1 / air.counts[held]) ** 2 * link.noise_variance
        np.testing.assert_allclose(expected[held], by_formula, rtol=1e-12)


def test_shrinkage_lowers_the_error_and_is_best_at_the_true_moment() -> None:
    """E(alpha x - u)^2 is least at alpha = V / (V + noise); the moment estimate comes close."""
    rng = np.random.default_rng(0)
    size, moment, noise = 200_000, 0.02, 0.05
    truth = np.sqrt(moment) * rng.standard_normal(size)
    seen = truth + np.sqrt(noise) * rng.standard_normal(size)
    alpha = shrinkage_factors(moment, np.full(size, noise))
    best = np.mean((alpha * seen - truth) ** 2)
    assert best == pytest.approx(moment * noise / (moment + noise), rel=0.02)
    assert best < np.mean((seen - truth) ** 2)
    assert second_moment(seen, np.full(size, noise), np.ones(size, dtype=bool)) == pytest.approx(
        moment, rel=0.05
    )
    for other in (0.9, 1.1):
        assert best < np.mean((np.clip(other * alpha, 0, 1) * seen - truth) ** 2)
    np.testing.assert_array_equal(shrinkage_factors(0.0, np.zeros(3)), 1.0)


def test_moment_shrinkage_in_a_round() -> None:
    """Under heavy noise the shrunken round is nearer to the clean one; without noise nothing is shrunk."""
    current, trained = round_of(0, 6, 50_000)
    air = superpose(updates(current, trained), 50_000)

    def gone(noise: float, shrinkage: Any) -> Any:
        rng = np.random.default_rng(0)
        return receive(
            current, air, mode="bitmap", scale=0.1, noise_variance=noise, rng=rng, shrinkage=shrinkage
        )

    clean = gone(0.0, "moment")
    np.testing.assert_array_equal(clean.weights, gone(0.0, "off").weights)
    far, near = (np.mean((gone(50.0, s).weights - clean.weights) ** 2) for s in ("off", "moment"))
    assert near < 0.3 * far


def test_count_modes() -> None:
    """Exact counts; users on the common mask and silence elsewhere; users everywhere."""
    current, trained = round_of(0, 4, 40)
    common = np.zeros(40, dtype=bool)
    common[:25] = True
    contributions = updates(current, trained)
    plain, masked = superpose(contributions, 40), superpose(contributions, 40, common=common)
    exact = np.sum([mask for _, mask in trained], axis=0)
    np.testing.assert_array_equal(divisors(plain, "bitmap"), exact)
    np.testing.assert_array_equal(divisors(plain, "count_free"), 4)
    np.testing.assert_array_equal(divisors(masked, "common_mask"), np.where(common, 4, 0))
    assert masked.slots == 25
    assert not masked.total[~common].any()
    rng = np.random.default_rng(0)
    found = receive(current, masked, mode="common_mask", scale=0.1, noise_variance=1.0, rng=rng)
    np.testing.assert_array_equal(found.weights[~common], current[~common])
    free = receive(current, plain, mode="count_free", scale=0.1, noise_variance=0.0, rng=rng)
    right = receive(current, plain, mode="bitmap", scale=0.1, noise_variance=0.0, rng=rng)
    step, full = free.weights - current, right.weights - current
    assert (np.abs(step) <= np.abs(full) + 1e-6).all()  # biased towards the broadcast value
    with pytest.raises(ValueError, match="common_mask"):
        divisors(plain, "common_mask")


def test_min_count_leaves_weights_with_few_contributors() -> None:
    """They would carry the most noise."""
    current, trained = round_of(0, 5, 200, 0.3)
    air = superpose(updates(current, trained), 200)
    rng = np.random.default_rng(0)
    found = receive(current, air, mode="bitmap", scale=0.1, noise_variance=1.0, rng=rng, min_count=3)
    few = air.counts < 3
    assert few.any()
    np.testing.assert_array_equal(found.weights[few], current[few])
    assert not found.noise_variance[few].any()


def test_common_scale_keeps_every_user_within_its_power() -> None:
    """|b_k|^2 mean |s|^2 <= P0 for the pruned payload; a pruned entry is silence and saves energy."""
    current, trained = round_of(0, 5, 1000)
    rng = np.random.default_rng(1)
    h = rng.standard_normal((5, 3)) + 1j * rng.standard_normal((5, 3))
    link = design_sparse_link(h, beamform(h).beam, power=2.0, noise_power=1.0)
    assert (np.abs(link.transmit) ** 2).max() == pytest.approx(2.0)
    air = superpose(updates(current, trained), 1000, link=link)
    scale = common_scale(np.sqrt(air.mean_square))
    power = np.abs(link.transmit) ** 2 * air.mean_square / scale**2
    assert power.max() <= 2.0 * (1 + 1e-9)
    assert common_scale([0.0]) == 1e-12
    with pytest.raises(ValueError, match="root_mean_squares"):
        common_scale([np.nan])


@pytest.mark.parametrize("packing", ["iq", "real"])
@pytest.mark.parametrize("masked", [False, True])
def test_imperfect_channels_turn_the_symbols(packing: Any, masked: bool) -> None:
    """a_k times each packed symbol, checked with explicit complex symbols; a_k = 1 changes nothing."""
    current, trained = round_of(0, 3, 21)
    common = np.random.default_rng(2).random(21) < 0.6 if masked else np.ones(21, dtype=bool)
    rng = np.random.default_rng(1)
    h = rng.standard_normal((3, 2)) + 1j * rng.standard_normal((3, 2))
    true = h + 0.1 * rng.standard_normal((3, 2))
    beam = beamform(h).beam
    link = design_sparse_link(h, beam, power=1.0, noise_power=1.0, packing=packing, true_channels=true)
    contributions = updates(current, trained)
    air = superpose(contributions, 21, link=link, common=common if masked else None)
    entries = int(common.sum())
    expected = np.zeros(entries)
    for a, (delta, _) in zip(link.arrival, contributions, strict=True):
        values = np.append(delta[common].astype(float), np.zeros(entries % 2))
        if packing == "iq":
            symbol = (values[0::2] + 1j * values[1::2]) * a
            expected += np.column_stack([symbol.real, symbol.imag]).ravel()[:entries]
        else:
            expected += values[:entries] * a.real
    np.testing.assert_allclose(air.total[common], expected, rtol=1e-12, atol=1e-15)
    same = design_sparse_link(h, beam, power=1.0, noise_power=1.0, packing=packing, true_channels=h)
    np.testing.assert_allclose(same.arrival, 1.0, rtol=1e-12)


def test_order_of_users_does_not_matter() -> None:
    """Superposition commutes."""
    current, trained = round_of(0, 6, 50)
    contributions = updates(current, trained)
    one, other = superpose(contributions, 50), superpose(contributions[::-1], 50)
    np.testing.assert_allclose(one.total, other.total, rtol=1e-12, atol=1e-15)
    np.testing.assert_array_equal(one.counts, other.counts)


def test_entries_outside_the_mask_are_not_read() -> None:
    """A NaN that was pruned away never reaches the air; one inside is refused."""
    mask = np.array([True, False])
    assert superpose([(np.array([1.0, np.nan]), mask)], 2).total.tolist() == [1.0, 0.0]
    with pytest.raises(ValueError, match="user 0 is not finite"):
        superpose([(np.array([np.nan, 1.0]), mask)], 2)


def test_airtime_of_the_modes() -> None:
    """402 826 weights at 20 MHz: 10.07 ms analog; ten bitmaps at 15.5 bit/s/Hz cost about 13 ms more."""
    size, band = 402_826, 20e6
    free = sparse_airtime("count_free", size, band)
    assert free.total_s == pytest.approx(10.07e-3, rel=1e-3)
    assert free.mask_bits == 0
    exact = sparse_airtime("bitmap", size, band, mask_rates_bps=np.full(10, 15.5 * band))
    assert exact.analog_s == free.analog_s
    assert exact.mask_bits == 10 * size
    assert exact.mask_s == pytest.approx(13e-3, rel=0.01)
    half = sparse_airtime("common_mask", size, band, common_entries=size // 2)
    assert half.total_s == pytest.approx(free.total_s / 2, rel=1e-4)
    assert sparse_airtime("count_free", size, band, packing="real").symbols == size
    for arguments in ({"mode": "common_mask"}, {"mode": "bitmap"}, {"mode": "nothing"}):
        with pytest.raises(ValueError, match=r"common_entries|mask_rates_bps|count_mode"):
            sparse_airtime(size=size, bandwidth_hz=band, **arguments)  # type: ignore[arg-type]


def test_common_mask_holds_the_largest_changes_and_some_random_ones() -> None:
    """Ranked by |u^g - u^{g-1}|; the random share lets new weights in."""
    change = np.linspace(-1, 1, 101)
    rng = np.random.default_rng(0)
    mask = choose_common_mask(change, 40, rng, explore=0.0)
    assert mask.sum() == 40
    assert np.abs(change[mask]).min() >= np.abs(change[~mask]).max()
    mixed = choose_common_mask(change, 40, rng, explore=0.25)
    assert mixed.sum() == 40
    ranked = np.argsort(-np.abs(change))[:29]
    assert mixed[ranked].all()
    assert choose_common_mask(np.zeros(10), 10, rng).all()
    assert not choose_common_mask(np.zeros(10), 0, rng).any()
    with pytest.raises(ValueError, match="keep = 11"):
        choose_common_mask(np.zeros(10), 11, rng)


def test_budget() -> None:
    """The least ratio that meets the deadline, and a device without room prunes everything."""
    slack, compute = np.array([0.02, 0.012, 0.011, 0.005]), np.array([0.005, 0.004, 0.004, 0.004])
    ratio = pruning_for_budget(slack, 0.010, compute)
    np.testing.assert_allclose(ratio, [0.0, 0.5, 0.75, 1.0])
    assert ((1 - ratio) * compute + 0.010 <= slack + 1e-12)[:3].all()
    common = common_pruning_for_budget(slack, compute, 0.010)
    assert ((1 - common) * (compute + 0.010) <= slack + 1e-12).all()
    assert ((1 - common + 1e-6) * (compute + 0.010) > slack).any()


def test_noise_formula_at_zero_counts() -> None:
    """0 / 0 is no variance: that weight does not move."""
    np.testing.assert_array_equal(noise_variance_per_weight([0, 1, 2], 2.0, 3.0), [0.0, 12.0, 3.0])


def test_bad_input() -> None:
    """Errors name the parameter."""
    air = superpose([(np.ones(3), np.ones(3, dtype=bool))], 3)
    good: dict[str, Any] = {
        "mode": "bitmap",
        "scale": 1.0,
        "noise_variance": 0.0,
        "rng": np.random.default_rng(0),
    }
    for change in (
        {"mode": "x"},
        {"scale": 0.0},
        {"noise_variance": -1.0},
        {"min_count": 0},
        {"shrinkage": "x"},
    ):
        with pytest.raises(ValueError, match=next(iter(change))):
            receive(np.zeros(3), air, **(good | change))
    with pytest.raises(ValueError, match="current has shape"):
        receive(np.zeros(4), air, **good)
    with pytest.raises(ValueError, match="want"):
        superpose([(np.ones(2), np.ones(3, dtype=bool))], 3)
    with pytest.raises(ValueError, match="orthogonal"):
        design_sparse_link(np.eye(2), np.array([1.0, 0.0]), power=1.0, noise_power=1.0)
