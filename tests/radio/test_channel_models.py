"""Each channel model against its closed form; any round alone, in any order; today's channel as the limit."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import j0

from protocol.streams import generator
from radio.channel import Cell, ChannelModel, Uplink
from radio.channel.memory import Process
from radio.channel.path_loss import PATH_LOSSES
from radio.channel.small_scale import clarke, steering

UPLINK = Uplink(20e6, 0.63, 1e-14)


def cell(
    seed: int = 3, uplink: Uplink | None = UPLINK, knows: dict[str, Any] | None = None, **law: Any
) -> Cell:
    model = ChannelModel(**({"num_devices": 5, "antennas": 4} | law))
    return Cell(model, partial(generator, seed), uplink, **(knows or {}))


def vectors(one: Cell, rounds: int) -> np.ndarray[Any, Any]:
    return np.array([one.draw_vectors(g).true for g in range(1, rounds + 1)])


LAWS: dict[str, dict[str, Any]] = {
    "rician": {"fading": "rician", "fading_options": {"k_factor": 3.0}},
    "correlated": {"fading": "correlated", "fading_options": {"spatial_correlation": 0.8}},
    "remembers": {"fading": "gauss_markov", "fading_options": {"speed_kmh": 30.0}},
    "all": {
        "fading": "multipath",
        "fading_options": {
            "k_factor": 1.0,
            "spatial_correlation": 0.5,
            "speed_kmh": [0.0, 3.0, 9.0, 30.0, 90.0],
        },
        "step": 5e-3,
    },
    "walks": {"mobility": "random_waypoint", "mobility_options": {"speed_kmh": 60.0}, "step": 2.0},
    "drives": {
        "mobility": "straight",
        "mobility_options": {"speed_kmh": 90.0},
        "step": 5.0,
        "shadowing_std_db": 8.0,
        "placement": "random",
    },
    "umi": {"path_loss": "umi", "placement": "random"},
    "uma moving": {
        "path_loss": "uma",
        "mobility": "random_waypoint",
        "mobility_options": {"speed_kmh": 30.0},
        "step": 10.0,
    },
}


@pytest.mark.parametrize("law", LAWS)
def test_any_round_can_be_drawn_alone_and_in_any_order(law: str) -> None:
    forward, backward = cell(**LAWS[law]), cell(**LAWS[law])
    gains = {g: forward.draw(g).gain for g in (1, 2, 3, 7)}
    assert len({g.tobytes() for g in gains.values()}) == 4
    for g in (7, 2, 3, 1, 7):
        np.testing.assert_array_equal(backward.draw(g).gain, gains[g])
    one, other = cell(4, **LAWS[law]), cell(**LAWS[law])
    assert not np.array_equal(one.draw(2).gain, other.draw(2).gain)
    power = (np.abs(backward.draw_vectors(7).true) ** 2).sum(axis=1)
    assert power.shape == (5,)


@pytest.mark.parametrize("name", ["rician", "multipath", "correlated", "gauss_markov"])
def test_without_line_of_sight_correlation_and_memory_it_is_rayleigh_bit_for_bit(name: str) -> None:
    options = {"k_factor": 0.0, "spatial_correlation": 0.0, "speed_kmh": None}
    plain, limit = cell(), cell(fading=name, fading_options=options)
    for g in (1, 5):
        np.testing.assert_array_equal(limit.draw(g).gain, plain.draw(g).gain)
        np.testing.assert_array_equal(limit.draw_vectors(g).true, plain.draw_vectors(g).true)


@pytest.mark.parametrize("law", ["rician", "correlated", "remembers", "all"])
def test_the_mean_power_is_that_of_the_places(law: str) -> None:
    slower = {"speed_kmh": 3.0} if law in ("remembers", "all") else {}  # a = 0.497 from round to round
    options = {**LAWS[law]["fading_options"], **slower}
    one = cell(**LAWS[law] | {"fading_options": options, "step": 25e-3})
    power = (np.abs(vectors(one, 4000)) ** 2).sum(axis=-1) / (4 * one.mean_gain)
    a = 0.496622 if slower else 0.0
    error = power.std(axis=0) / np.sqrt(4000 * (1 - a**2) / (1 + a**2))
    assert (np.abs(power.mean(axis=0) - 1) < 4 * error).all()


def test_the_line_of_sight_is_the_steering_vector_and_has_its_share_of_the_power() -> None:
    one = cell(**LAWS["rician"])
    h = vectors(one, 6000) / np.sqrt(one.mean_gain)[:, None]
    mean = h.mean(axis=0)
    sight = np.sqrt(3 / 4) * steering(one.scene.angle(), 4)
    np.testing.assert_allclose(mean, sight, atol=5 * np.sqrt(0.25 / 6000))
    np.testing.assert_allclose((np.abs(h - mean) ** 2).mean(axis=0), 0.25, rtol=0.08)


def test_neighbouring_antennas_are_correlated_exponentially() -> None:
    one = cell(**LAWS["correlated"])
    h = vectors(one, 6000)[:, 2] / np.sqrt(one.mean_gain[2])
    covariance = h.T @ h.conj() / len(h)
    expected = 0.8 ** np.abs(np.subtract.outer(np.arange(4), np.arange(4)))
    np.testing.assert_allclose(covariance, expected, atol=0.06)


def test_the_correlation_over_time_is_that_of_clarke() -> None:
    """The examples of the specification: 3.5 GHz, 3 and 30 km/h."""
    speed = np.array([3.0, 30.0]) / 3.6
    np.testing.assert_allclose(clarke(speed, 3.5e9, 25e-3), [0.496622, -0.068244], atol=1e-6)
    np.testing.assert_allclose(clarke(speed[:1], 3.5e9, 5e-3), [0.976813], atol=1e-6)
    one = cell(num_devices=1, antennas=8, fading="gauss_markov", fading_options={"speed_kmh": 3.0})
    h = vectors(one, 12_000)[:, 0] / np.sqrt(one.mean_gain[0])
    a = j0(2 * np.pi * 3 / 3.6 * 3.5e9 / 3e8 * 25e-3)
    for lag in (1, 2, 3):
        found = (h[lag:] * h[:-lag].conj()).mean()
        assert found == pytest.approx(a**lag, abs=4 / np.sqrt(12_000 * 8 / 2))


def test_a_standing_device_keeps_its_channel() -> None:
    one = cell(fading="gauss_markov", fading_options={"speed_kmh": 0.0})
    np.testing.assert_allclose(one.draw(9).gain, one.draw(1).gain, rtol=1e-12)


# 3.5 GHz, TR 38.901, as the specification prints them.
TABLE = {
    "umi": {50: (79.090, 94.181, 0.51959), 200: (91.611, 115.229, 0.09352), 500: (107.114, 129.265, 0.03600)},
    "uma": {50: (77.212, 92.511, 0.64940), 200: (89.570, 114.462, 0.12805), 500: (98.269, 129.916, 0.03634)},
}


@pytest.mark.parametrize("name", sorted(TABLE))
def test_urban_losses_are_those_of_the_table(name: str) -> None:
    law = PATH_LOSSES[name](ChannelModel(num_devices=1, antennas=1))
    for metres, (sight, none, chance) in TABLE[name].items():
        d = np.array([float(metres)])
        assert law.loss_db(d, np.array([True]))[0] == pytest.approx(sight, abs=6e-4)
        assert law.loss_db(d, np.array([False]))[0] == pytest.approx(none, abs=6e-4)
        probability = law.visibility(d)
        assert probability is not None
        assert probability[0] == pytest.approx(chance, abs=6e-6)
    near = law.visibility(np.array([5.0, 18.0]))
    assert near is not None
    np.testing.assert_allclose(near, 1.0)


@pytest.mark.parametrize(("name", "spread"), [("umi", (4.0, 7.82)), ("uma", (4.0, 6.0))])
def test_who_sees_the_server_and_how_shadowing_spreads(name: str, spread: tuple[float, float]) -> None:
    one = cell(num_devices=40_000, path_loss=name, placement="random", min_distance=20.0, cell_radius=200.0)
    law, d, sees = one.scene.path_loss, one.distances, one.scene.visible()
    chance = law.visibility(d)
    assert chance is not None
    assert sees.mean() == pytest.approx(chance.mean(), abs=4 * 0.5 / 200)
    left = -10 * np.log10(one.mean_gain) - law.loss_db(d, sees)
    for visible, std in zip((True, False), spread, strict=True):
        assert left[sees == visible].std() == pytest.approx(std, rel=0.04)
        assert left[sees == visible].mean() == pytest.approx(0, abs=0.25)


@pytest.mark.parametrize("law", ["walks", "drives"])
def test_devices_move_at_their_speed_and_stay_in_the_cell(law: str) -> None:
    one = cell(num_devices=200, **LAWS[law])
    speed, step = LAWS[law]["mobility_options"]["speed_kmh"] / 3.6, LAWS[law]["step"]
    places = np.array([one.scene.mobility.at(g) for g in range(1, 200)])
    assert (np.abs(places) <= 500 + 1e-9).all()
    assert (np.abs(places) >= 80 - 1e-9).all()
    moved = np.abs(np.diff(places, axis=0))
    free = (np.abs(places[:-1]) > 80 + 1e-9) & (np.abs(places[1:]) > 80 + 1e-9)
    assert moved[free].max() == pytest.approx(speed * step, rel=1e-9)
    assert np.median(moved) == pytest.approx(speed * step, rel=1e-9)


def test_shadowing_of_a_moving_device_fades_with_the_distance() -> None:
    """Gudmundson 1991: exp(-d / d_corr); 8 dB whatever the place."""
    one = cell(
        num_devices=20_000,
        mobility="straight",
        mobility_options={"speed_kmh": 36.0},
        step=2.0,
        shadowing_std_db=8.0,
        placement="random",
        cell_radius=5000.0,
        min_distance=2000.0,
    )
    shadows = []
    for g in (1, 2, 4):
        d = np.abs(one.scene.mobility.at(g))
        shadows.append(-10 * np.log10(one.scene.mean_gain(g)) - (128.1 + 37.6 * np.log10(d / 1e3)))
    for index, metres in ((1, 20.0), (2, 60.0)):
        found = np.corrcoef(shadows[0], shadows[index])[0, 1]
        assert found == pytest.approx(np.exp(-metres / 50), abs=0.03)
        assert shadows[index].std() == pytest.approx(8, rel=0.03)


def test_what_the_server_knows_is_a_round_old_or_noisy_and_the_truth_is_untouched() -> None:
    plain = cell()
    assert plain.draw(3).known is None
    old = cell(knows={"delay": 2})
    assert old.draw(1).known is None
    state = old.draw(5)
    np.testing.assert_array_equal(state.gain, plain.draw(5).gain)
    np.testing.assert_array_equal(state.planned.gain, plain.draw(3).gain)
    np.testing.assert_array_equal(old.draw_vectors(5).known, plain.draw_vectors(3).true)
    np.testing.assert_array_equal(old.draw_vectors(5).true, plain.draw_vectors(5).true)
    some = np.array([3, 0])
    np.testing.assert_array_equal(state.of(some).planned.gain, plain.draw(3).gain[some])
    careful = cell(knows={"margin": 2.0}).draw(4)
    np.testing.assert_allclose(careful.planned.gain, careful.gain / 2)
    np.testing.assert_array_equal(careful.gain, plain.draw(4).gain)
    assert (careful.planned.rates.full_band < careful.rates.full_band).all()
    noisy = cell(knows={"relative_error": 0.2})
    errors = np.array([(v := noisy.draw_vectors(g)).known - v.true for g in range(1, 2000)])
    variance = (np.abs(errors) ** 2).mean(axis=(0, 2)) / noisy.mean_gain
    np.testing.assert_allclose(variance, 0.2, rtol=0.06)
    both = noisy.draw(7)
    np.testing.assert_allclose(both.gain, (np.abs(noisy.draw_vectors(7).true) ** 2).sum(axis=1))
    np.testing.assert_allclose(both.planned.gain, (np.abs(noisy.draw_vectors(7).known) ** 2).sum(axis=1))


def test_a_trace_is_played_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    h = (rng.normal(size=(3, 5, 4)) + 1j * rng.normal(size=(3, 5, 4))) * 1e-6
    np.savez(tmp_path / "h.npz", vectors=h)
    power = (np.abs(h) ** 2).sum(axis=-1)
    np.savetxt(tmp_path / "g.csv", power, delimiter=",")
    for name in ("h.npz", "g.csv"):
        one = cell(fading="trace", fading_options={"file": str(tmp_path / name)})
        for g, row in ((1, 0), (3, 2), (4, 0), (8, 1)):
            np.testing.assert_allclose(one.draw(g).gain, power[row], rtol=1e-12)
    one = cell(fading="trace", fading_options={"file": str(tmp_path / "h.npz")})
    np.testing.assert_allclose(one.draw_vectors(2).true, h[1], rtol=1e-12)
    levelled = cell(
        fading="trace", fading_options={"file": str(tmp_path / "h.npz")}, knows={"spread": "none"}
    )
    powers = [(np.abs(levelled.draw_vectors(g).true) ** 2).sum(axis=1) / 4 for g in (1, 2, 3)]
    np.testing.assert_allclose(np.mean(powers, axis=0), 1.0)
    ends = cell(fading="trace", fading_options={"file": str(tmp_path / "h.npz"), "at_end": "stop"})
    with pytest.raises(ValueError, match="ends after 3 rounds; round 4 needs"):
        ends.draw(4)
    with pytest.raises(ValueError, match="holds gains"):
        cell(fading="trace", fading_options={"file": str(tmp_path / "g.csv")}).draw_vectors(1)


@pytest.mark.parametrize(
    ("law", "text"),
    [
        ({"fading": "ricean"}, r"channel\.model = 'ricean' is unknown; did you mean rician\?"),
        ({"path_loss": "umx"}, r"channel\.path_loss = 'umx' is unknown"),
        ({"mobility": "walk"}, r"channel\.mobility = 'walk' is unknown"),
        ({"mobility": "straight"}, "needs the option 'speed_kmh'"),
        (
            {"fading": "rician", "fading_options": {"kfactor": 1}},
            "has no option 'kfactor'; did you mean k_factor",
        ),
        ({"fading": "rician", "fading_options": {"k_factor": -1.0}}, r"k_factor = -1\.0"),
        (
            {"fading": "correlated", "fading_options": {"spatial_correlation": 1.0}},
            r"spatial_correlation = 1\.0",
        ),
        ({"fading": "gauss_markov", "fading_options": {"speed_kmh": [1.0, 2.0]}}, "speed_kmh has 2 entries"),
        ({"fading": "trace", "fading_options": {"file": "nowhere.npz"}}, "file = 'nowhere.npz' is not there"),
        ({"path_loss": "uma", "path_loss_options": {"device_height_m": 20.0}}, "device_height_m = 20"),
        ({"path_loss": "umi", "path_loss_options": {"carrier_ghz": 0.0}}, r"carrier_ghz = 0\.0"),
    ],
)
def test_what_cannot_be_is_named(law: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        cell(**law).draw(1)


def test_a_trace_that_does_not_fit_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "small.npz", gains=np.ones((2, 4)))
    np.savez(tmp_path / "other.npz", gain=np.ones((2, 5)))
    np.savez(tmp_path / "negative.npz", gains=-np.ones((2, 5)))
    np.savez(tmp_path / "silent.npz", gains=np.ones((2, 5)) * [1, 1, 0, 1, 1])
    (tmp_path / "torn.npz").write_bytes(b"PK")
    for name, text in {
        "small": r"it must be \(5,\)",
        "other": "`gains` or `vectors` is needed",
        "negative": "gains below 0",
        "silent": "device 2 has no gain",
        "torn": "torn.npz",
    }.items():
        with pytest.raises(ValueError, match=text):
            cell(fading="trace", fading_options={"file": str(tmp_path / f"{name}.npz")}).draw(1)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(1, 5))
def test_a_process_gives_each_round_its_state(rounds: list[int], keep: int) -> None:
    process = Process(lambda: (1,), lambda state, g: (*state, g), keep)
    for g in rounds:
        assert process.at(g) == tuple(range(1, g + 1))
    with pytest.raises(ValueError, match="round = 0"):
        process.at(0)


def own_channel(scene: Any, *, strength: float = 2.0) -> Any:
    class Own:
        def gain(self, mean: Any, server_round: int) -> Any:
            return mean * strength * scene.model.antennas

        def vectors(self, mean: Any, server_round: int) -> Any:
            return np.sqrt(strength * mean)[:, None] * np.ones(scene.model.antennas, complex)

    return Own()


def test_a_channel_of_ones_own_is_one_function() -> None:
    one = cell(fading=f"{__name__}:own_channel", fading_options={"strength": 3.0})
    np.testing.assert_allclose(one.draw(1).gain, 3 * 4 * one.mean_gain)
    np.testing.assert_allclose((np.abs(one.draw_vectors(1).true) ** 2).sum(axis=1), one.draw(1).gain)
