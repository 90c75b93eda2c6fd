from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from radio.channel.rates import full_band_rate, rate, round_to_resource_blocks


def test_rate_of_a_unit_snr_channel_is_the_bandwidth() -> None:
    assert full_band_rate(1.0, 20e6, 0.5, 0.5) == pytest.approx(20e6)


def test_proportional_noise_agrees_with_fixed_noise_at_the_whole_band() -> None:
    gain = np.array([1e-12, 1e-9])
    np.testing.assert_allclose(
        rate(1.0, gain, 20e6, 0.5, 4e-21), full_band_rate(gain, 20e6, 0.5, 4e-21 * 20e6), rtol=1e-12
    )


def test_proportional_noise_is_concave_and_bounded_by_the_wideband_limit() -> None:
    b = np.linspace(0, 1, 201)
    r = rate(b, 1e-11, 20e6, 0.5, 4e-21)
    assert r[0] == 0
    assert (np.diff(r) > 0).all()
    assert (np.diff(r, 2) < 0).all()
    assert rate(1e-300, 1e-3, 20e6, 0.5, 4e-21) > 0  # no overflow at tiny shares
    limit = 1e-15 * 0.5 / 4e-21 / np.log(2)  # B -> infinity
    assert rate(1.0, 1e-15, 1e15, 0.5, 4e-21) == pytest.approx(limit, rel=1e-3)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.integers(1, 273))
def test_resource_blocks_round_down_to_a_feasible_grid(raw: list[float], blocks: int) -> None:
    b = np.array(raw) / max(1.0, sum(raw))
    rounded = round_to_resource_blocks(b, blocks)
    np.testing.assert_allclose(rounded * blocks, np.rint(rounded * blocks), atol=1e-9)
    assert (rounded <= b + 1e-9).all()
    assert (rounded > b - 1 / blocks - 1e-12).all()
    assert rounded.sum() <= 1 + 1e-12
    np.testing.assert_allclose(round_to_resource_blocks(rounded, blocks), rounded)


def test_bad_inputs_are_named() -> None:
    with pytest.raises(ValueError, match=r"bandwidth_fraction = 1\.5 must lie in \[0, 1\]"):
        rate(1.5, 1.0, 1.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="num_blocks = 0"):
        round_to_resource_blocks([0.5], 0)
    with pytest.raises(ValueError, match=r"channel_gain\[1\] = nan"):
        full_band_rate([1.0, np.nan], 1.0, 1.0, 1.0)
