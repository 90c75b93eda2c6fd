"""The server's step against numbers computed by hand, and what all server optimisers hold to."""

import math
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.server_optimizers import SERVER_OPTIMIZERS, ServerStep

NAMES = tuple(SERVER_OPTIMIZERS)
BEFORE = np.array([1.0, -2.0, 0.5], np.float32)


def test_a_learning_rate_of_one_takes_what_is_proposed():
    proposed = np.array([1.1, -2.0, np.float32(0.1)], np.float32)
    np.testing.assert_array_equal(ServerStep()(BEFORE, proposed, None), proposed)
    assert ServerStep().state() == {}


# Two rounds that ask for +0.3, then -0.1; beta1 = 0.5, beta2 = 0.75, tau = 0.1.
_FIRST, _SECOND = 0.5 * 0.3, 0.5 * (0.5 * 0.3) + 0.5 * -0.1
BY_HAND = {
    "sgd": ({}, 0.3, -0.1),
    "momentum": ({"beta": 0.5}, 0.3, 0.5 * 0.3 - 0.1),
    "adagrad": (
        {"beta1": 0.5, "tau": 0.1},
        _FIRST / (math.sqrt(0.01 + 0.09) + 0.1),
        _SECOND / (math.sqrt(0.01 + 0.09 + 0.01) + 0.1),
    ),
    "adam": (
        {"beta1": 0.5, "beta2": 0.75, "tau": 0.1},
        _FIRST / (math.sqrt(0.75 * 0.01 + 0.25 * 0.09) + 0.1),
        _SECOND / (math.sqrt(0.75 * 0.03 + 0.25 * 0.01) + 0.1),
    ),
    "yogi": (
        {"beta1": 0.5, "beta2": 0.75, "tau": 0.1},
        _FIRST / (math.sqrt(0.01 + 0.25 * 0.09) + 0.1),  # s - D^2 < 0: up
        _SECOND / (math.sqrt(0.0325 - 0.25 * 0.01) + 0.1),  # s - D^2 > 0: down
    ),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rate", [1.0, 0.25])
def test_two_rounds_by_hand(name, rate):
    options, first, second = BY_HAND[name]
    server, weights = ServerStep(name, rate, options), BEFORE
    for change, expected in ((0.3, first), (-0.1, second)):
        after = server(weights, (weights + np.float32(change)).astype(np.float32), None)
        np.testing.assert_allclose(after - weights, rate * expected, rtol=2e-5, atol=2e-7)
        weights = after


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32 - 1))
def test_what_nobody_sent_does_not_move_and_no_weight_knows_of_another(name, seed):
    """Each weight goes as if it were alone and the rounds in which nobody sent it had not been."""
    rng = np.random.default_rng(seed)
    size, rounds = 6, 5
    covered = rng.random((rounds, size)) < 0.6
    changes = rng.standard_normal((rounds, size)).astype(np.float32)
    start = rng.standard_normal(size).astype(np.float32)
    together, server = start, ServerStep(name, 0.1)
    for mask, change in zip(covered, changes, strict=True):
        after = server(together, together + change, mask)
        np.testing.assert_array_equal(after[~mask], together[~mask])
        together = after
    for weight in range(size):
        alone, server = start[weight : weight + 1], ServerStep(name, 0.1)
        for change in changes[covered[:, weight], weight]:
            alone = server(alone, alone + change, None)
        assert alone[0] == together[weight]


@pytest.mark.parametrize("name", NAMES)
def test_a_restored_server_goes_on_as_if_nothing_had_been(name):
    rng = np.random.default_rng(0)
    server, weights = ServerStep(name, 0.1), BEFORE

    def proposal():
        return (weights + rng.standard_normal(3)).astype(np.float32), rng.random(3) < 0.7

    for _ in range(3):
        weights = server(weights, *proposal())
    other = ServerStep(name, 0.1)
    other.restore({"norms": np.zeros(2), **server.state()})
    for _ in range(3):
        proposed = proposal()
        after = server(weights, *proposed)
        np.testing.assert_array_equal(after, other(weights, *proposed))
        weights = after


OWN = """
class Signs:
    def __init__(self, *, size: float = 0.5):
        self.size = size

    def step(self, change, state):
        state["seen"] = state.get("seen", 0 * change) + 1
        return self.size * (change > 0) - self.size * (change < 0)

class Broken:
    def step(self, change, state):
        return change[:2]
"""


def test_one_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "own_server.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_server", raising=False)
    server = ServerStep("own_server:Signs", 1.0, {"size": 0.25})
    moved = server(BEFORE, BEFORE + np.array([3, -3, 0], np.float32), None)
    assert (moved - BEFORE).tolist() == [0.25, -0.25, 0]
    assert server.state()["server-seen"].tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match=r"server\.optimizer = own_server:Broken"):
        ServerStep("own_server:Broken")


@pytest.mark.parametrize(
    ("name", "rate", "options", "words"),
    [
        ("adamw", 1.0, {}, r"server\.optimizer = 'adamw' is unknown"),
        ("sgd", 1.0, {"beta": 0.9}, "has no option 'beta'"),
        ("sgd", 0.0, {}, r"learning_rate = 0\.0; it must be positive"),
        ("momentum", 1.0, {"beta": 1.0}, r"beta = 1\.0; it must be at least 0 and below 1"),
        ("adam", 1.0, {"tau": 0.0}, r"tau = 0\.0; it must be positive"),
        ("yogi", 1.0, {"beta2": -0.1}, r"beta2 = -0\.1"),
    ],
)
def test_values_are_checked(name, rate, options, words):
    with pytest.raises(ValueError, match=words):
        ServerStep(name, rate, options)
