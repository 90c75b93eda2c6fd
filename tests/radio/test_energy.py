"""Energy of a round: published vectors, a search without calculus, and what must hold of every optimum."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from radio.allocation.energy_aware import EnergyCurve
from radio.channel import ChannelModel, mean_gain, place_devices
from radio.energy import (
    EnergyTerms,
    Limit,
    band_needed,
    capacity,
    compute_energy,
    largest_kept,
    least_energy,
    transmit_energy,
)
from tests.radio.energy_cases import LN2, draw_terms, largest_kept_scipy

seeds = st.integers(0, 2**32 - 1)


def ring(device: int, budget: object) -> EnergyTerms:
    model = ChannelModel(10, 64)
    gain = 64 * mean_gain(place_devices(model, np.random.default_rng(0)), model)
    return EnergyTerms.of(
        fixed_cycles=40 * 52_096,
        global_cycles=40 * 402_826,
        payload_bits=32 * 402_826,
        gain_over_noise=gain[device] / 1e-14,
        bandwidth=200e6,
        max_power=10**-0.2,
        min_frequency=0.3e9,
        max_frequency=3e9,
        threshold=25e-3,
        budget=np.asarray(budget),
    )


@pytest.mark.parametrize(
    ("device", "kept", "how"),
    [
        (0, [0.63360975, 0.57418445, 0.51426206, 0.43543350, 0.64920825], (2.287583, 0.2029459, 20.04468)),
        (5, [0.48244451, 0.43351551, 0.38497634, 0.32219714, 0.49127668], (2.219229, 0.2645906, 20.91340)),
        (9, [0.44097552, 0.39438246, 0.34838820, 0.28923558, 0.44797247], (2.181974, 0.2830886, 21.13261)),
    ],
)
def test_vectors_of_the_specification(device: int, kept: list[float], how: tuple[float, ...]) -> None:
    terms = ring(device, [0.02, 0.01, 0.005, 0.002, np.inf])
    found = largest_kept(terms, 0.1)
    np.testing.assert_allclose(found, kept, atol=6e-9)
    spent = capacity(terms, found)
    assert spent.frequency[1] / 1e9 == pytest.approx(how[0], rel=1e-6)
    assert spent.power[1] == pytest.approx(how[1], rel=1e-6)
    assert spent.airtime[1] * 1e3 == pytest.approx(how[2], rel=1e-6)
    # The least energy of that share is the budget itself, at the same frequency and power.
    least = least_energy(terms, found, 0.1)
    np.testing.assert_allclose(least.total[:4], terms.budget[:4], rtol=1e-12)
    np.testing.assert_allclose(least.frequency[:4], spent.frequency[:4], rtol=1e-7)


def test_joules_of_cycles_and_of_airtime() -> None:
    # 16.1 million cycles at 3 GHz with the usual capacitance: 14.5 mJ; 0.63 W for 20 ms: 12.6 mJ.
    assert float(compute_energy(40 * 402_826, 3e9)) == pytest.approx(14.5e-3, rel=1e-3)
    assert float(transmit_energy(0.63, 20e-3)) == pytest.approx(12.6e-3)
    with pytest.raises(ValueError, match="cycles"):
        compute_energy(-1.0, 3e9)


@settings(deadline=None, max_examples=25)
@given(seeds, st.floats(0.0, 1.0))
def test_capacity_keeps_to_all_limits_and_spends_what_binds(seed: int, kept: float) -> None:
    terms = draw_terms(seed)
    y = np.full(terms.budget.shape, kept)
    found = capacity(terms, y)
    on = found.limit != Limit.NOTHING
    work = terms.cycles(y)
    seconds = work / found.frequency + found.airtime
    joules = terms.capacitance * work * found.frequency**2 + found.power * found.airtime
    assert (found.frequency[on] >= terms.min_frequency[on] * (1 - 1e-12)).all()
    assert (found.frequency <= terms.max_frequency * (1 + 1e-12)).all()
    assert (found.power <= terms.max_power * (1 + 1e-12)).all()
    np.testing.assert_allclose(seconds[on], terms.threshold[on], rtol=1e-9)
    assert (joules[on] <= terms.budget[on] * (1 + 1e-9)).all()
    bound = on & (found.limit != Limit.TIME)
    np.testing.assert_allclose(joules[bound], terms.budget[bound], rtol=1e-9)


@settings(deadline=None, max_examples=15)
@given(seeds, st.floats(0.0, 0.9))
def test_no_airtime_sends_more(seed: int, kept: float) -> None:
    terms = draw_terms(seed)
    y = np.full(terms.budget.shape, kept)
    found, work = capacity(terms, y), terms.cycles(np.full(terms.budget.shape, kept))
    for part in np.linspace(1e-3, 1 - 1e-3, 97):
        t = part * terms.threshold
        f = np.maximum(work / (terms.threshold - t), terms.min_frequency)
        left = terms.budget - terms.capacitance * work * f**2
        with np.errstate(invalid="ignore"):
            bits = t * np.log1p(terms.gain_over_noise * np.minimum(left / t, terms.max_power)) / LN2
        bits = np.where((left > 0) & (f <= terms.max_frequency), bits, 0.0)
        assert (bits <= found.bits * (1 + 1e-9)).all()


@settings(deadline=None, max_examples=15)
@given(seeds)
def test_derivatives_of_the_capacity_are_its_differences(seed: int) -> None:
    terms = draw_terms(seed, 6)
    y, step = np.linspace(0.05, 0.8, 6), 1e-5
    found, below, above = capacity(terms, y), capacity(terms, y - step), capacity(terms, y + step)
    smooth = (below.limit == above.limit) & (found.limit != Limit.NOTHING)
    scale = np.abs(found.slope[smooth]) + 1e-9
    first = (above.bits - below.bits)[smooth] / (2 * step)
    second = (above.slope - below.slope)[smooth] / (2 * step)
    assert (np.abs(first - found.slope[smooth]) <= 1e-3 * scale).all()
    assert (np.abs(second - found.bend[smooth]) <= 1e-2 * (scale + np.abs(found.bend[smooth]))).all()


@settings(deadline=None, max_examples=25)
@example(726)
@given(seeds)
def test_slopes_at_the_kink_are_those_beside_it(seed: int) -> None:
    """Where f_max and p_max together just spend the budget, one of them gives way, and not the other."""
    terms = draw_terms(seed, 40)
    kink = terms.energy_switch
    some = terms.rows((kink > 1e-3) & (kink < 1) & np.isfinite(band_needed(terms, kink)))
    at = some.energy_switch
    rows = np.arange(at.size)
    curve = EnergyCurve(some, np.zeros(at.size), np.ones(at.size))
    step = 1e-7 * at
    for side, slope in zip((-1, 1), curve.kink_slopes(rows), strict=True):
        _, beside, bend = curve.priced(at + side * step, rows)
        sure = np.isfinite(beside) & np.isfinite(slope)
        apart = 1e-3 + 2 * np.abs(bend * step)  # near the end of what can be paid, b' rises fast
        assert (np.abs(slope - beside) <= apart)[sure].all()


@settings(deadline=None, max_examples=20)
@given(seeds, st.booleans())
def test_the_band_buys_ever_less(seed: int, charge: bool) -> None:
    """b(y) is convex, kinks included: the proof of the concave y(b; E) in the module text."""
    terms = draw_terms(seed, 4, charge=charge)
    for k in range(4):
        one = terms.rows(np.full(60, k))
        y = np.linspace(0, 1, 60)
        needed = band_needed(one, y)
        needed = needed[np.isfinite(needed)]
        if needed.size > 2:
            assert (np.diff(needed, 2) >= -1e-9 * needed[2:]).all()


@settings(deadline=None, max_examples=6)
@given(seeds, st.floats(0.02, 1.0))
def test_largest_share_of_the_weights_is_that_of_a_plain_search(seed: int, share: float) -> None:
    terms = draw_terms(seed, 2, charge=bool(seed % 2))
    found = largest_kept(terms, share)
    for k in range(2):
        sought = largest_kept_scipy(terms, k, share)
        if np.isnan(sought) or np.isnan(found[k]):
            assert np.isnan(found[k]) or found[k] < 1e-6
        else:
            assert found[k] == pytest.approx(sought, abs=1e-7)


@settings(deadline=None, max_examples=20)
@given(seeds, st.floats(1.0, 3.0))
def test_more_of_anything_never_keeps_less(seed: int, factor: float) -> None:
    terms = draw_terms(seed, 5)
    share = 0.2
    before = np.nan_to_num(largest_kept(terms, share))
    fields = {name: getattr(terms, name) for name in terms.__dataclass_fields__}
    for name in ("budget", "gain_over_noise", "threshold", "max_power", "max_frequency"):
        more = EnergyTerms(**{**fields, name: factor * fields[name]})
        assert (np.nan_to_num(largest_kept(more, share)) >= before - 1e-12).all(), name
    assert (np.nan_to_num(largest_kept(terms, share * min(factor, 5.0))) >= before - 1e-12).all()


@settings(deadline=None, max_examples=20)
@given(seeds, st.floats(0.02, 1.0), st.floats(0.05, 0.6))
def test_least_energy_is_stationary_and_keeps_to_time(seed: int, share: float, kept: float) -> None:
    terms = draw_terms(seed, 5)
    found = least_energy(terms, kept, share)
    fits = np.isfinite(found.total)
    seconds = terms.cycles(np.full(5, kept)) / found.frequency + found.airtime
    assert (seconds[fits] <= terms.threshold[fits] * (1 + 1e-9)).all()
    for change in (0.98, 1.02):  # a longer or shorter upload, computing in the rest, is no cheaper
        t = found.airtime * change
        work = terms.cycles(np.full(5, kept))
        with np.errstate(all="ignore"):
            f = np.maximum(work / (terms.threshold - t), terms.min_frequency)
            bits = kept * terms.payload_bits / (share * terms.bandwidth * t)
            power = np.expm1(LN2 * bits) / terms.gain_over_noise
            able = fits & (t < terms.threshold) & (f <= terms.max_frequency) & (power <= terms.max_power)
            other = terms.capacitance * work * f**2 + power * t
        assert (found.total[able] <= other[able] * (1 + 1e-9)).all()
    # The slope in the share is a difference.
    near = least_energy(terms, kept, share * (1 - 1e-6))
    both = fits & np.isfinite(near.total)
    numeric = (found.total - near.total)[both] / (1e-6 * share)
    np.testing.assert_allclose(numeric, found.slope[both], rtol=2e-3, atol=1e-7)


def test_who_cannot_pay_for_the_fixed_part() -> None:
    terms = ring(0, [0.0, 1e-6, 1e-3])
    # 2.08 million cycles in 25 ms need at least 0.3 GHz: 18.75 uJ.
    np.testing.assert_allclose(terms.standby_energy, 40 * 52_096 * 1e-28 * 0.3e9**2)
    assert np.isnan(largest_kept(terms, 1.0)[:2]).all()
    assert largest_kept(terms, 1.0)[2] > 0


@pytest.mark.parametrize(
    ("name", "value"),
    [("payload_bits", 0.0), ("max_power", -1.0), ("budget", np.nan), ("min_frequency", 4e9)],
)
def test_wrong_terms_are_refused_by_name(name: str, value: float) -> None:
    good = {
        "fixed_cycles": 1e6, "global_cycles": 1e6, "payload_bits": 1e6, "gain_over_noise": 1e3,
        "bandwidth": 1e6, "max_power": 1.0, "max_frequency": 3e9, "threshold": 0.1, "budget": 1.0,
        "min_frequency": 1e8,
    }  # fmt: skip
    EnergyTerms.of(**good)
    with pytest.raises(ValueError, match=name):
        EnergyTerms.of(**{**good, name: value})
