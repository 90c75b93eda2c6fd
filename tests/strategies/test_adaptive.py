"""Over-the-air averaging that learns through the noise: what its parts remember, and how the mean is made."""

import numpy as np
import pytest

from strategies.adaptive_receiver import Memory
from strategies.iterate_average import IterateAverage
from strategies.noise_aware import NoiseAwareMomentum


def test_what_a_user_delivers_and_what_it_keeps_is_what_it_wanted():
    """Its mean always arrives; of the rest the share does."""
    rng = np.random.default_rng(0)
    wanted = (0.1 * rng.standard_normal(1000)).astype(np.float32)
    memory = Memory()
    memory.keep(3, wanted, 0.25)
    delivered = wanted.mean() + 0.25 * (wanted - wanted.mean())
    np.testing.assert_allclose(delivered + memory.undelivered[3], wanted, atol=1e-7)
    memory.keep(3, wanted, 1.0)
    assert memory.undelivered == {}


def test_the_memory_survives_a_checkpoint():
    memory = Memory(0.25, {3: np.ones(2, np.float32), 11: np.zeros(2, np.float32)})
    back = Memory()
    back.restore(memory.state())
    assert back.correlation == memory.correlation
    assert back.undelivered.keys() == memory.undelivered.keys()
    assert Memory().state() == {}


@pytest.mark.parametrize(("power", "weights"), [(0.0, [1 / 4] * 4), (1.0, [0.1, 0.2, 0.3, 0.4])])
def test_the_average_weighs_the_iterates_as_it_says(power, weights):
    """p = 0: all alike; p = 1: in proportion to the round (Shamir and Zhang 2013)."""
    average = IterateAverage(power)
    for position in range(4):
        mean = average.add(np.eye(4, dtype=np.float32)[position])
    np.testing.assert_allclose(mean, weights, rtol=1e-6)


def test_momentum_is_heavy_ball_without_noise_and_less_in_noise():
    """By hand, beta 0.5: D = 0.3, then -0.1 with V = 0.0025 (t = 0.75), then 0.1 with V = 0.02 (t = 0)."""
    momentum = NoiseAwareMomentum(0.5)
    moved = [momentum.step(np.full(4, d), v)[0] for d, v in ((0.3, 0.0), (-0.1, 0.0025), (0.1, 0.02))]
    np.testing.assert_allclose(moved, [0.3, 0.5 * 0.75 * 0.3 - 0.1, 0.1], rtol=1e-6)
    clean = NoiseAwareMomentum(0.5)
    np.testing.assert_allclose([clean.step(np.ones(2), 0.0)[0] for _ in range(3)], [1, 1.5, 1.75])


def test_on_noise_alone_momentum_walks_no_further_than_without():
    rng = np.random.default_rng(0)
    momentum, walked, plain = NoiseAwareMomentum(0.9), np.zeros(2000), np.zeros(2000)
    for _ in range(40):
        noise = rng.standard_normal(2000)
        walked += momentum.step(noise, 1.0)
        plain += noise
    assert np.square(walked).mean() < 1.2 * np.square(plain).mean()
