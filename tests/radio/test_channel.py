from __future__ import annotations

import numpy as np
import pytest

from radio.channel import ChannelModel, draw_gain, draw_vectors, mean_gain, place_devices
from radio.units import linear_to_db


def test_rings_put_devices_where_the_paper_profile_has_them() -> None:
    model = ChannelModel(num_devices=10, antennas=64)
    places = place_devices(model, np.random.default_rng(0))
    assert places[0] == pytest.approx(136, abs=1)
    assert places[-1] == pytest.approx(488, abs=1)
    ring_area = np.diff(places**2)
    np.testing.assert_allclose(ring_area, (500**2 - 80**2) / 10)
    np.testing.assert_array_equal(places, place_devices(model, np.random.default_rng(1)))


def test_random_places_are_uniform_over_the_annulus() -> None:
    model = ChannelModel(num_devices=20_000, antennas=1, placement="random")
    places = place_devices(model, np.random.default_rng(0))
    assert places.min() >= 80
    assert places.max() <= 500
    share = (places**2 - 80**2) / (500**2 - 80**2)
    assert share.mean() == pytest.approx(0.5, abs=0.01)
    assert share.var() == pytest.approx(1 / 12, abs=0.002)


def test_path_loss_follows_its_law() -> None:
    model = ChannelModel(num_devices=2, antennas=1)
    loss = -np.asarray(linear_to_db(mean_gain([1000.0, 100.0], model)))
    np.testing.assert_allclose(loss, [128.1, 128.1 - 37.6])


def test_shadowing_is_normal_in_decibels_and_needs_a_generator() -> None:
    model = ChannelModel(num_devices=50_000, antennas=1, shadowing_std_db=8.0)
    distances = np.full(50_000, 300.0)
    with pytest.raises(ValueError, match=r"shadowing_std_db = 8\.0"):
        mean_gain(distances, model)
    plain = mean_gain(distances, ChannelModel(num_devices=50_000, antennas=1))
    ratio = np.asarray(linear_to_db(mean_gain(distances, model, np.random.default_rng(0)) / plain))
    assert ratio.mean() == pytest.approx(0, abs=0.15)
    assert ratio.std() == pytest.approx(8, abs=0.1)


@pytest.mark.parametrize("antennas", [1, 4, 64])
def test_combined_gain_has_the_gamma_moments_and_hardens(antennas: int) -> None:
    model = ChannelModel(num_devices=3, antennas=antennas)
    mean = np.array([1e-10, 1e-11, 1e-12])
    gain = draw_gain(model, mean, np.random.default_rng(0), 40_000) / mean
    np.testing.assert_allclose(gain.mean(axis=0), antennas, rtol=0.03)
    np.testing.assert_allclose(gain.var(axis=0), antennas, rtol=0.06)
    assert gain.shape == (40_000, 3)


def test_vectors_have_the_same_gain_law_and_are_circular() -> None:
    model = ChannelModel(num_devices=3, antennas=4)
    mean = np.array([4.0, 1.0, 0.25])
    h = draw_vectors(model, mean, np.random.default_rng(0), (20_000,))
    assert h.shape == (20_000, 3, 4)
    power = (np.abs(h) ** 2).sum(axis=-1)
    np.testing.assert_allclose(power.mean(axis=0), 4 * mean, rtol=0.03)
    np.testing.assert_allclose(power.var(axis=0), 4 * mean**2, rtol=0.06)
    assert np.abs((h**2).mean()) < 0.02  # E h^2 = 0: no preferred phase


def test_without_fading_both_draws_are_their_mean() -> None:
    model = ChannelModel(num_devices=2, antennas=8, fading="none")
    mean, rng = np.array([1.0, 2.0]), np.random.default_rng(0)
    np.testing.assert_allclose(draw_gain(model, mean, rng, 3), np.broadcast_to(8 * mean, (3, 2)))
    np.testing.assert_allclose((np.abs(draw_vectors(model, mean, rng)) ** 2).sum(axis=-1), 8 * mean)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"num_devices": 0}, "num_devices = 0"),
        ({"antennas": 0}, "antennas = 0"),
        ({"min_distance": 600.0}, r"min_distance = 600\.0 m must not exceed cell_radius"),
        ({"shadowing_std_db": -1.0}, r"shadowing_std_db = -1\.0"),
        ({"placement": "grid"}, "placement = 'grid'"),
        ({"shadowing_distance": 0.0}, r"shadowing_distance = 0\.0"),
        ({"step": 0.0}, r"step = 0\.0"),
    ],
)
def test_bad_models_are_refused_by_name(change: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        ChannelModel(**({"num_devices": 2, "antennas": 1} | change))  # type: ignore[arg-type]
