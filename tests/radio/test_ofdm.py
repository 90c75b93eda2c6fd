"""Sums over frequency-selective air, against signals in time: inverse DFT, prefix, taps, antennas, DFT.

Nothing of `radio.air.ofdm` makes the signals: users are delayed, echoed and added sample by sample.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from protocol.streams import generator
from radio.air.ofdm import Ofdm, Offsets
from radio.air.regularised import regularised
from radio.air.transceiver import AirAverage, Link, average, design_link, energy_shares, measure
from radio.air.zero_forcing import zero_forcing
from radio.channel import Cell, ChannelModel
from radio.channel.taps import tap_powers, tapped_cell
from radio.scheduling import schedule
from radio.scheduling.band import BandSchedule, group_beams, schedule_band

Floats = NDArray[np.float64]
Complexes = NDArray[np.complex128]
USERS, ANTENNAS = 4, 3
seeds = st.integers(0, 2**32 - 1)


def draw_taps(seed: int, taps: int, users: int = USERS) -> Complexes:
    rng = np.random.default_rng(seed)
    parts = rng.standard_normal((2, users, taps, ANTENNAS))
    return np.asarray((parts[0] + 1j * parts[1]) * np.sqrt(0.5 / taps))


def draw_updates(seed: int, size: int) -> Floats:
    rng = np.random.default_rng(seed)
    own = rng.standard_normal((USERS, size)) * np.geomspace(0.3, 2, USERS)[:, None]
    return np.asarray(own + rng.standard_normal(size) + np.linspace(-1, 3, USERS)[:, None])


def send(
    ofdm: Ofdm,
    taps: Complexes,
    updates: Floats,
    *,
    offsets: Offsets | None = None,
    noise_power: float = 0.0,
    packing: Any = "iq",
    mode: Any = "per_user",
    seed: int = 0,
    beams: Any = None,
    **more: Any,
) -> tuple[Link, AirAverage]:
    known = ofdm.response(taps)
    true = None if offsets is None else known * ofdm.rotation(offsets)[:, :, np.newaxis]
    beam = group_beams(known, ofdm.group, {} if beams is None else beams)
    link = design_link(
        known, beam, measure(updates, len(updates)), power=1.0, noise_power=noise_power, mode=mode,
        packing=packing, **more,
        energy=partial(energy_shares, updates, subcarriers=ofdm.subcarriers, packing=packing),
    )  # fmt: skip
    return link, average(updates, link, np.random.default_rng(seed), true_channels=true)


def received_in_time(ofdm: Ofdm, taps: Complexes, symbols: Complexes, late: NDArray[np.int_]) -> Complexes:
    """Return what the antennas hear on each subcarrier, (N, uses), of users `late` samples behind the first.

    Args:
        ofdm: subcarriers and prefix.
        taps: (M, L, N).
        symbols: (M, uses) as sent on subcarriers 0, 1, ..., F - 1, 0, ...; whole OFDM symbols.
        late: (M,) samples.
    """
    size, prefix = ofdm.subcarriers, ofdm.prefix
    blocks = symbols.reshape(len(symbols), -1, size)
    # Subcarrier size // 2 is in the middle of the band: frequency 0.
    time = np.fft.ifft(np.fft.ifftshift(blocks, axes=2), axis=2)
    framed = np.concatenate([time[:, :, size - prefix :], time], axis=2).reshape(len(symbols), -1)
    heard = np.zeros((taps.shape[2], framed.shape[1] + int(late.max()) + taps.shape[1] + prefix), complex)
    for user, signal in enumerate(framed):
        for place, coefficients in enumerate(taps[user]):
            begin = int(late[user]) + place
            heard[:, begin : begin + signal.size] += coefficients[:, None] * signal
    found = []
    for number in range(blocks.shape[1]):
        begin = number * (size + prefix) + prefix
        found.append(np.fft.fftshift(np.fft.fft(heard[:, begin : begin + size], axis=1), axes=1))
    return np.concatenate(found, axis=1)


def pack(values: Floats, packing: str, uses: int) -> Complexes:
    if packing == "iq":
        values = np.pad(values, (0, 2 * uses - values.size))
        return np.asarray((values[::2] + 1j * values[1::2]) / np.sqrt(2))
    return np.pad(values, (0, uses - values.size)).astype(complex)


@pytest.mark.parametrize("packing", ["iq", "real"])
@pytest.mark.parametrize("mode", ["per_user", "common"])
@pytest.mark.parametrize(("taps", "late"), [(1, (0, 0, 0, 0)), (4, (0, 0, 0, 0)), (4, (0, 3, 1, 4))])
def test_the_estimate_is_that_of_the_signals_in_time(taps: int, late: Any, packing: Any, mode: Any) -> None:
    ofdm = Ofdm(16, groups=4, prefix=7, taps=taps, delay_spread=4.0)
    h, updates = draw_taps(1, taps), draw_updates(2, 404)
    middle = 2.0 if any(late) else 0.0
    offsets = Offsets(np.array(late) - middle, np.array([0.1, -0.2, 0.0, 0.3]))
    link, result = send(ofdm, h, updates, offsets=offsets, packing=packing, mode=mode)
    uses = ofdm.uses(updates.shape[1], packing)
    carrier = np.arange(uses) % ofdm.subcarriers
    entries = (updates - link.shift[:, None]) / link.divisor[:, None]
    turned = np.exp(1j * offsets.phase)
    sent = np.array([
        turned[k] * link.transmit[k, carrier] * pack(entries[k], packing, uses) for k in range(USERS)
    ])  # fmt: skip
    heard = received_in_time(ofdm, h, sent, np.array(late))
    heard *= np.exp(2j * np.pi * middle * ofdm.frequency[carrier])
    combined = (link.beam[carrier].conj().T * heard).sum(axis=0) / np.sqrt(link.eta)
    if packing == "iq":
        values = (np.stack([combined.real, combined.imag], axis=1) * np.sqrt(2)).ravel()
    else:
        values = combined.real
    np.testing.assert_allclose(values[: updates.shape[1]] + link.offset, result.estimate, rtol=0, atol=1e-9)
    # Every user's power, from its symbols; the last OFDM symbol is padded with nothing.
    power = (np.abs(sent) ** 2).sum(axis=1) / -(-updates.shape[1] // (2 if packing == "iq" else 1))
    np.testing.assert_allclose(power, result.transmit_power, rtol=1e-9)
    assert power.max() == pytest.approx(1.0, rel=1e-9) or mode == "common"
    assert power.max() <= 1 + 1e-9


def test_beyond_the_prefix_symbols_run_into_each_other_and_it_is_refused() -> None:
    """With one sample of prefix less, the same signals in time are no longer a sum."""
    symbols = np.exp(2j * np.pi * np.random.default_rng(0).random((USERS, 48)))
    h = draw_taps(1, 4)
    errors = []
    for prefix in (5, 4):
        frame = Ofdm(16, prefix=prefix)
        heard = received_in_time(frame, h, symbols, np.array([0, 2, 1, 2]))
        ramp = np.exp(-2j * np.pi * np.outer([0, 2, 1, 2], frame.frequency))
        carrier = np.arange(48) % 16
        wanted = np.einsum("kin,ki,ki->ni", frame.response(h)[:, carrier], ramp[:, carrier], symbols)
        errors.append(np.abs(heard - wanted).max())
    assert errors[0] < 1e-9
    assert errors[1] > 0.1
    Ofdm(16, prefix=5, taps=4, delay_spread=2.0)
    with pytest.raises(
        ValueError, match=r"prefix = 4 samples is too short: 4 taps .* 2 samples apart need 5"
    ):
        Ofdm(16, prefix=4, taps=4, delay_spread=2.0)


@pytest.mark.parametrize("packing", ["iq", "real"])
@pytest.mark.parametrize("scaling", [zero_forcing, partial(regularised, correlation=0.3)])
def test_predicted_errors_are_those_of_many_draws(packing: Any, scaling: Any) -> None:
    ofdm = Ofdm(16, groups=2, prefix=8, taps=4, delay_spread=0.4, phase_std=0.1)
    h, updates = draw_taps(3, 4), draw_updates(4, 1600)
    offsets = ofdm.draw_offsets(USERS, np.random.default_rng(5))
    more: Any = {"offsets": offsets, "noise_power": 0.02, "packing": packing, "scaling": scaling}
    results = [send(ofdm, h, updates, seed=seed, **more)[1] for seed in range(40)]
    exact = updates.mean(axis=0)
    found = np.mean([((one.estimate - exact) ** 2).mean() for one in results])
    assert results[0].misalignment_variance > 0.1 * results[0].noise_variance
    assert found == pytest.approx(results[0].predicted_mse, rel=0.02)
    # As at the antennas, where each has noise of its own.
    link = send(ofdm, h, updates, **more)[0]
    true = ofdm.response(h) * ofdm.rotation(offsets)[:, :, None]
    drawn = [
        average(updates, link, np.random.default_rng(seed), true_channels=true, simulation="antennas")
        for seed in range(40)
    ]
    assert np.mean([one.realised_mse for one in drawn]) == pytest.approx(results[0].predicted_mse, rel=0.02)


def test_misalignment_by_unknown_offsets_has_its_closed_form() -> None:
    """Independent symbols of unit power: 2 (1 - exp(-s^2/2) sinc(f T)) of each user's power."""
    ofdm = Ofdm(32, prefix=8, taps=1, delay_spread=0.8, phase_std=0.3)
    offsets = ofdm.draw_offsets(40_000, np.random.default_rng(0))
    found = (np.abs(ofdm.rotation(offsets) - 1.0) ** 2).mean(axis=0)
    wanted = 2 * (1 - np.exp(-(0.3**2) / 2) * np.sinc(ofdm.frequency * 0.8))
    np.testing.assert_allclose(found, wanted, rtol=0.04)


def test_what_the_receiver_knows_of_offsets_costs_nothing() -> None:
    """Offsets that the channel estimate contains turn the coefficients, and no gain."""
    ofdm = Ofdm(16, groups=4, prefix=8, taps=3, delay_spread=3.0, phase_std=1.0)
    h, updates = draw_taps(6, 3), draw_updates(7, 320)
    turned = ofdm.response(h) * ofdm.rotation(ofdm.draw_offsets(USERS, np.random.default_rng(1)))[:, :, None]
    beam = group_beams(ofdm.response(h), ofdm.group, {})
    links = [
        design_link(channels, beam, measure(updates, USERS), power=1.0, noise_power=0.1)
        for channels in (ofdm.response(h), turned)
    ]
    assert links[0].noise_variance == pytest.approx(links[1].noise_variance, rel=1e-12)
    assert average(updates, links[1], np.random.default_rng(0), true_channels=turned).predicted_mse == (
        pytest.approx(links[0].noise_variance, rel=1e-9)
    )


@settings(deadline=None, max_examples=12)
@given(seeds, st.integers(1, 40), st.integers(1, 6), st.sampled_from(["iq", "real"]), st.booleans())
def test_one_tap_and_no_offsets_are_the_flat_link_bit_for_bit(
    seed: int, subcarriers: int, groups: int, packing: Any, common: bool
) -> None:
    ofdm = Ofdm(subcarriers, groups=min(groups, subcarriers))
    h, updates = draw_taps(seed, 1), draw_updates(seed, 301)
    mode: Any = "common" if common else "per_user"
    rng = np.random.default_rng(seed)
    beam = rng.standard_normal(ANTENNAS) + 1j * rng.standard_normal(ANTENNAS)
    stale = h + 0.1 * rng.standard_normal(h.shape)
    flat = design_link(
        h[:, 0], beam, measure(updates, USERS), power=1.0, noise_power=0.1, packing=packing, mode=mode
    )
    beams = dict.fromkeys(range(len(ofdm.group)), beam)
    wide, _ = send(ofdm, h, updates, noise_power=0.1, packing=packing, mode=mode, beams=beams)
    assert wide.eta == flat.eta
    assert wide.noise_variance == flat.noise_variance
    for true in (None, stale):
        one, other = (
            average(updates, link, np.random.default_rng(1), true_channels=passed)
            for link, passed in (
                (flat, None if true is None else true[:, 0]),
                (wide, None if true is None else ofdm.response(true)),
            )
        )
        np.testing.assert_array_equal(one.estimate, other.estimate)
        np.testing.assert_array_equal(one.transmit_power, other.transmit_power)
        assert one.predicted_mse == other.predicted_mse


def scheduled(ofdm: Ofdm, h: Complexes, **how: Any) -> BandSchedule:
    middle = ofdm.response(h, ofdm.centre)
    return schedule_band(middle, lambda users: ofdm.response(h[users]), ofdm.group, partial(schedule, **how))


def test_a_flat_band_is_scheduled_as_one_carrier_bit_for_bit() -> None:
    h = draw_taps(1, 1, users=12)
    ofdm = Ofdm(24, groups=5)
    plain = schedule(h[:, 0], 5)
    found = scheduled(ofdm, h, num_selected=5)
    np.testing.assert_array_equal(found.users, plain.users)
    np.testing.assert_array_equal(found.beam, np.tile(plain.beam, (24, 1)))
    assert found.min_gain == plain.min_gain


def test_a_beam_for_each_group_serves_a_selective_band_better_than_one() -> None:
    gains = {}
    for groups in (1, 3, 9):
        ofdm = Ofdm(27, groups=groups, prefix=8, taps=6)
        gains[groups] = [
            scheduled(ofdm, draw_taps(seed, 6, users=8), num_selected=3, method="policy").min_gain
            for seed in range(3)
        ]
    means = [float(np.mean(1 / np.array(gains[groups]))) for groups in (1, 3, 9)]
    assert means[0] > 1.2 * means[1] > 1.2 * means[2]


def test_of_the_sets_that_the_groups_find_the_best_is_taken() -> None:
    ofdm = Ofdm(18, groups=6, prefix=8, taps=6)
    h = draw_taps(0, 6, users=8)
    choose = partial(schedule, num_selected=3, method="policy")
    sets = {tuple(choose(ofdm.response(h, ofdm.centre)[:, group]).users) for group in range(6)}
    gains = []
    for users in sets:
        known = ofdm.response(h[list(users)])
        seen = np.abs(np.einsum("kfn,fn->kf", known, group_beams(known, ofdm.group, {}).conj())) ** 2
        gains.append(float((1 / (1 / seen).mean(axis=1)).min()))
    assert len(gains) > 2
    assert min(gains) < 0.9 * max(gains)
    assert scheduled(ofdm, h, num_selected=3, method="policy").min_gain >= 0.95 * max(gains)


def test_gain_over_the_band_is_no_less_than_with_a_power_limit_on_each_subcarrier() -> None:
    """One receive scaling and a mean power: noise of max_k mean_f, not of mean_f max_k."""
    ofdm = Ofdm(16, groups=4, prefix=8, taps=4)
    updates = draw_updates(1, 3200)
    link, _ = send(ofdm, draw_taps(2, 4), updates, noise_power=1.0)
    need = (link.amplitude[:, None] / np.abs(link.inverse.projected)) ** 2
    assert link.noise_variance <= need.max(axis=0).mean() * (1 + 1e-2)
    assert link.noise_variance == pytest.approx(need.mean(axis=1).max(), rel=0.1)


# --- channels of several taps ---


def model_of(fading: str = "rayleigh", **options: Any) -> ChannelModel:
    return ChannelModel(40, 4, fading=fading, fading_options=options)


@settings(deadline=None, max_examples=10)
@given(seeds, st.integers(1, 8), st.integers(1, 20))
def test_the_band_has_the_power_of_the_taps(seed: int, taps: int, extra: int) -> None:
    """Parseval: the mean over the subcarriers of |H(f)|^2 is the power of the taps."""
    h = draw_taps(seed, taps)
    ofdm = Ofdm(taps + extra, prefix=taps)
    power = (np.abs(ofdm.response(h)) ** 2).mean(axis=1)
    np.testing.assert_allclose(power, (np.abs(h) ** 2).sum(axis=1), rtol=1e-12)


@pytest.mark.parametrize("fading", ["rayleigh", "rician"])
def test_every_subcarrier_has_the_mean_power_and_the_line_of_sight_of_the_flat_channel(fading: str) -> None:
    ofdm = Ofdm(8, prefix=4, taps=4, tap_decay=2.0)
    cell = tapped_cell(model_of(fading), partial(generator, 3), taps=4, decay=2.0, spread="none")
    drawn = np.array([ofdm.response(cell.draw_vectors(number).true) for number in range(1, 301)])
    power = (np.abs(drawn) ** 2).mean(axis=(0, 1, 3))  # of 300 rounds, 40 devices and 4 antennas
    np.testing.assert_allclose(power, 1.0, rtol=0.02)
    # What stays from round to round is the line of sight: K / (K + 1) of the power, on every subcarrier.
    still = (np.abs(drawn.mean(axis=0)) ** 2).mean(axis=(0, 2))
    np.testing.assert_allclose(still, 0.8 if fading == "rician" else 0.0, atol=0.01)
    # Neighbouring subcarriers fade alike as the power delay profile says: its Fourier transform.
    scattered = drawn - drawn.mean(axis=0)
    found = (scattered[:, :, 1:] * scattered[:, :, :-1].conj()).mean(axis=(0, 1, 3)) / (
        np.abs(scattered) ** 2
    ).mean()
    wanted = (tap_powers(4, 2.0) * np.exp(-2j * np.pi * np.arange(4) / 8)).sum()
    np.testing.assert_allclose(found, wanted, atol=0.03)


def test_taps_are_drawn_in_any_order_and_one_tap_is_the_flat_channel_bit_for_bit() -> None:
    stream = partial(generator, 5)
    more: Any = {"error_variance": 0.1, "delay": 1}
    one = tapped_cell(model_of("gauss_markov"), stream, taps=1, decay=2.0, **more)
    flat = Cell(model_of("gauss_markov"), stream, **more).draw_vectors(4)
    np.testing.assert_array_equal(one.draw_vectors(4).true[:, 0], flat.true)
    np.testing.assert_array_equal(one.draw_vectors(4).known[:, 0], flat.known)
    forth, back = (tapped_cell(model_of("gauss_markov"), stream, taps=3, decay=2.0, **more) for _ in "ab")
    drawn = [forth.draw_vectors(number) for number in (1, 2, 3, 4)]
    for number in (4, 2, 1, 3):
        np.testing.assert_array_equal(back.draw_vectors(number).known, drawn[number - 1].known)


def test_the_estimate_of_a_subcarrier_has_the_error_asked_for() -> None:
    ofdm = Ofdm(8, prefix=4, taps=3)
    cell = tapped_cell(
        model_of(), partial(generator, 3), taps=3, decay=4.0, error_variance=0.2, spread="none"
    )
    drawn = [cell.draw_vectors(number) for number in range(1, 101)]
    error = np.array([np.abs(ofdm.response(one.known) - ofdm.response(one.true)) ** 2 for one in drawn])
    np.testing.assert_allclose(error.mean(axis=(0, 1, 3)), 0.2, rtol=0.04)


@pytest.mark.parametrize("fading", ["none", "trace"])
def test_a_channel_without_waves_has_no_taps(fading: str) -> None:
    with pytest.raises(ValueError, match=f"model = {fading} has no waves"):
        tapped_cell(model_of(fading), partial(generator, 1), taps=2, decay=1.0)
