"""One cell for planning, accounting, studies and examples: any round alone, and one physics for all."""

from functools import partial
from typing import Any

import numpy as np
import pytest

from protocol.streams import generator
from radio.channel import Cell, ChannelModel, Uplink
from radio.channel.cell import Spread

MODEL = ChannelModel(num_devices=6, antennas=4, placement="random", shadowing_std_db=8.0)


def cell_of(noise_model: Any = "fixed", **changes: Any) -> Cell:
    return Cell(MODEL, partial(generator, 7), Uplink(20e6, 0.63, 1e-14, noise_model), **changes)


def test_any_round_can_be_drawn_alone_and_in_any_order() -> None:
    forward, backward = cell_of(), cell_of()
    rounds = {g: forward.draw(g).gain for g in (1, 2, 3)}
    for g in (3, 1, 2):
        np.testing.assert_array_equal(backward.draw(g).gain, rounds[g])
    assert not np.array_equal(rounds[1], rounds[2])
    np.testing.assert_array_equal(forward.distances, backward.distances)


@pytest.mark.parametrize("noise_model", ["fixed", "proportional"])
def test_rates_are_those_of_the_gains_under_the_noise_of_the_cell(noise_model: Any) -> None:
    state = cell_of(noise_model).draw(1)
    b = np.linspace(0.05, 0.9, 6)
    noise = 1e-14 * (b if noise_model == "proportional" else 1)
    np.testing.assert_allclose(
        state.rates.rate(b), b * 20e6 * np.log2(1 + state.gain * 0.63 / noise), rtol=1e-12
    )
    some = np.array([4, 1])
    np.testing.assert_array_equal(state.of(some).gain, state.gain[some])
    np.testing.assert_array_equal(state.of(some).rates.rate(b[some]), state.rates.rate(b)[some])


@pytest.mark.parametrize("spread", ["absolute", "relative", "none"])
def test_vectors_have_the_mean_power_that_the_spread_says(spread: Spread) -> None:
    cell = cell_of(spread=spread)
    power = np.mean([np.linalg.norm(cell.draw_vectors(g).true, axis=1) ** 2 for g in range(3000)], axis=0) / 4
    expected = cell_of().mean_gain
    expected = {"absolute": expected, "relative": expected / expected.mean(), "none": np.ones(6)}[spread]
    np.testing.assert_allclose(power, expected, rtol=5 / np.sqrt(3000 * 4))


def test_an_estimate_is_off_by_the_error_variance_and_the_truth_is_untouched() -> None:
    exact, noisy = cell_of(spread="none"), cell_of(spread="none", error_variance=0.3)
    assert exact.draw_vectors(1).perfect
    assert exact.draw_vectors(1).of(np.array([2])).perfect
    drawn = [noisy.draw_vectors(g) for g in range(2000)]
    assert not drawn[0].perfect
    np.testing.assert_array_equal(drawn[1].true, exact.draw_vectors(1).true)
    error = np.array([one.known - one.true for one in drawn])
    assert np.mean(np.abs(error) ** 2) == pytest.approx(0.3, rel=0.02)


def test_a_cell_without_uplink_has_no_rates_and_a_wrong_word_is_named() -> None:
    with pytest.raises(ValueError, match="no uplink"):
        Cell(MODEL, partial(generator, 7)).draw(1)
    with pytest.raises(ValueError, match="noise_model = 'pink'"):
        cell_of("pink")
    with pytest.raises(ValueError, match="spread = 'wide'"):
        cell_of(spread="wide")
    with pytest.raises(ValueError, match="error_variance"):
        cell_of(error_variance=-1.0)


def test_devices_stand_where_they_are_put() -> None:
    model = ChannelModel(num_devices=3, antennas=2, distances=(100.0, 250.0, 40.0))
    cell = Cell(model, partial(generator, 1))
    np.testing.assert_array_equal(cell.distances, [100.0, 250.0, 40.0])
    # 37.6 dB per decade.
    assert 10 * np.log10(cell.mean_gain[0] / cell.mean_gain[1]) == pytest.approx(37.6 * np.log10(2.5))
    with pytest.raises(ValueError, match="2 numbers for 3 devices"):
        ChannelModel(num_devices=3, antennas=2, distances=(1.0, 2.0))
