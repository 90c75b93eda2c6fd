"""One contract for every beamformer, and the cases where the optimum is known in closed form."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radio.beamforming import BEAMFORMERS, Beam, beamform, gains, set_upper_bound
from radio.beamforming.ascent import ascend, polish
from radio.beamforming.problem import random_beams

SLACK: dict[str, float] = {"dc": 2e-2}  # the bisection stops 1e-3 of its interval short; local method


def rayleigh(seed: int, users: int, antennas: int) -> np.ndarray[Any, np.dtype[np.complex128]]:
    rng = np.random.default_rng(seed)
    shape = (users, antennas)
    return np.asarray((rng.standard_normal(shape) + 1j * rng.standard_normal(shape)) / np.sqrt(2))


def squares(h: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.asarray(np.abs(h) ** 2)


@pytest.mark.parametrize("method", list(BEAMFORMERS))
@pytest.mark.parametrize(("users", "antennas"), [(5, 3), (8, 4)])
def test_contract(method: str, users: int, antennas: int) -> None:
    """Unit norm, canonical phase, objective as reported, between Corollary 5.2 and the bounds, repeatable."""
    h = rayleigh(users, users, antennas)
    found = beamform(h, method=method, upper_bound=True)
    assert found.beam.shape == (antennas,)
    assert np.linalg.norm(found.beam) == pytest.approx(1.0, abs=1e-12)
    assert abs(found.beam[0].imag) < 1e-12
    assert found.beam[0].real > 0
    assert found.min_gain == pytest.approx(float(gains(h, found.beam).min()), rel=1e-12)
    assert found.upper_bound is not None
    norms = (np.abs(h) ** 2).sum(axis=1)
    assert found.min_gain <= found.upper_bound * (1 + 1e-9)
    assert found.upper_bound <= norms.min() * (1 + 1e-9)
    gram = np.abs(h.conj() @ h.T) ** 2
    assert found.min_gain >= (gram.min(axis=1) / norms).max() * (1 - 1e-9)
    assert isinstance(found.status, str)
    again = beamform(h, method=method)
    np.testing.assert_array_equal(again.beam, found.beam)


@pytest.mark.parametrize("method", list(BEAMFORMERS))
def test_phase_scale_and_rotation_do_not_matter(method: str) -> None:
    """|m^H h|^2 ignores each user's phase, scales with the square, and follows a unitary change of basis."""
    h = rayleigh(3, 6, 3)
    slack = 2 * SLACK.get(method, 1e-4)
    base = beamform(h, method=method).min_gain
    rng = np.random.default_rng(0)
    turned = h * np.exp(2j * np.pi * rng.random((6, 1)))
    assert beamform(turned, method=method).min_gain == pytest.approx(base, rel=slack)
    assert beamform(1e-6 * h, method=method).min_gain == pytest.approx(1e-12 * base, rel=slack)
    unitary = np.linalg.qr(rayleigh(4, 3, 3))[0]
    assert beamform(h @ unitary, method=method).min_gain == pytest.approx(base, rel=slack)


@pytest.mark.parametrize("method", list(BEAMFORMERS))
def test_initial_beam_is_an_incumbent(method: str) -> None:
    """Whatever the method does with it, the result is never worse than the beam it was given."""
    h = rayleigh(5, 8, 4)
    good = beamform(h, method="sca", starts=50)
    found = beamform(h, method=method, initial=good.beam)
    assert found.min_gain >= good.min_gain * (1 - 1e-9)


@pytest.mark.parametrize("method", list(BEAMFORMERS))
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(lambda: (rayleigh(0, 1, 4), squares(rayleigh(0, 1, 4)).sum()), id="one user"),
        pytest.param(lambda: (rayleigh(1, 5, 1), squares(rayleigh(1, 5, 1)).min()), id="one antenna"),
        pytest.param(lambda: (np.array([[1, 0], [0.6, 0.8]]), 0.8), id="two unit users: (1 + r)/2"),
        pytest.param(lambda: (np.diag([1.0, 2.0, 0.5]), 1 / (1 + 1 / 4 + 4)), id="orthogonal: sum 1/a^2"),
        pytest.param(lambda: (np.outer([1, 2, 3], [1, 1]), 2.0), id="collinear: weakest user"),
    ],
)
def test_closed_forms(method: str, case: Callable[[], tuple[np.ndarray[Any, Any], float]]) -> None:
    """One user, one antenna, two, orthogonal, collinear users: known optima, and the relaxation is tight."""
    h, optimum = case()
    found = beamform(h, method=method, upper_bound=True)
    assert found.min_gain == pytest.approx(optimum, rel=SLACK.get(method, 1e-5))
    assert set_upper_bound(np.asarray(h, dtype=complex)) == pytest.approx(optimum, rel=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(1, 6))
def test_no_beam_exceeds_the_bound(seed: int, users: int, antennas: int) -> None:
    """The bound is a dual value, valid against any beam, and adding a user cannot raise it."""
    h = rayleigh(seed, users, antennas)
    bound = set_upper_bound(h)
    beams = random_beams(np.random.default_rng(seed), 200, antennas)
    assert ascend(h, beams)[1].max() <= bound * (1 + 1e-9)
    if users > 1:
        assert bound <= set_upper_bound(h[:-1]) * (1 + 1e-6)


def test_barrier_bound_equals_the_cone_solver() -> None:
    """Our Newton method and cvxpy solve the same semidefinite program."""
    for seed, (users, antennas) in enumerate([(4, 2), (10, 4), (12, 6)]):
        h = rayleigh(seed, users, antennas)
        reference = beamform(h, method="sdr").upper_bound
        assert set_upper_bound(h) == pytest.approx(reference, rel=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 15), st.integers(1, 6))
def test_polish_never_falls(seed: int, users: int, antennas: int) -> None:
    """The convex step keeps its starting point feasible, also from a beam that nulls a user."""
    h = rayleigh(seed, users, antennas)
    start = random_beams(np.random.default_rng(seed), 1, antennas)[0]
    if antennas > 1:
        start = start - h[0] * (h[0].conj() @ start) / np.vdot(h[0], h[0]).real
        start /= np.linalg.norm(start)
    before = float(gains(h, start).min())
    for steps in (1, 3, 20):
        beam, gain, _ = polish(h, start, steps=steps)
        assert gain >= before * (1 - 1e-12)
        assert gain == pytest.approx(float(gains(h, beam).min()), rel=1e-9, abs=1e-15)
        before = gain


def test_polish_reaches_the_optimum_where_the_relaxation_is_tight() -> None:
    """With two users the semidefinite bound is attained; the polish alone must find it."""
    for seed in range(10):
        h = rayleigh(seed, 2, 5)
        start = random_beams(np.random.default_rng(seed), 1, 5)[0]
        assert polish(h, start, tolerance=1e-9)[1] == pytest.approx(set_upper_bound(h), rel=1e-5)


def test_adding_a_user_never_helps() -> None:
    """The optimum over more users is at most that over fewer."""
    h = rayleigh(2, 10, 4)
    values = [beamform(h[:count], starts=64, finished=16).min_gain for count in range(1, 11)]
    assert all(later <= earlier * (1 + 1e-4) for earlier, later in pairwise(values))


@pytest.mark.parametrize(("sets", "users", "antennas"), [(4, 10, 8), (4, 20, 16)])
def test_fast_reaches_many_runs_of_convex_approximation(sets: int, users: int, antennas: int) -> None:
    """16 joint starts give on average at least 99 % of the best of 100 separate runs."""
    ratio = []
    for seed in range(sets):
        h = rayleigh(seed, users, antennas)
        many = beamform(h, method="sca", starts=100, rng=np.random.default_rng(1))
        ratio.append(beamform(h, starts=16).min_gain / many.min_gain)
    assert np.mean(ratio) >= 0.99


@pytest.mark.slow
def test_fast_against_200_runs_and_the_published_solver() -> None:
    """The same with 200 runs on more sets, and at least the published solver's mean gain."""
    ratio, ours, published = [], 0.0, 0.0
    for seed in range(20):
        h = rayleigh(seed, 10, 8)
        many = beamform(h, method="sca", starts=200, rng=np.random.default_rng(1))
        found = beamform(h)
        ratio.append(found.min_gain / many.min_gain)
        if seed < 6:
            ours += found.min_gain
            published += beamform(h, method="dc").min_gain
    assert np.mean(ratio) >= 0.99
    assert ours >= published


def custom(channels: np.ndarray[Any, Any], **_: Any) -> Beam:
    return Beam(np.eye(channels.shape[1], dtype=complex)[0], 0.0, None, "mine", 0)


def test_a_method_may_be_a_dotted_reference() -> None:
    """A user's own solver needs no change in the package."""
    assert beamform(np.eye(2), method=f"{__name__}:custom").status == "mine"


@pytest.mark.parametrize(
    ("channels", "message"),
    [
        (np.ones((3, 0)), "N = 0"),
        (np.ones((0, 3)), "K = 0"),
        (np.ones(3), "shape"),
        (np.array([[1.0, np.inf]]), "user 0 is not finite"),
        (np.array([[1.0, 1.0], [0.0, 0.0]]), "user 1 is the zero vector"),
    ],
)
def test_bad_channels(channels: np.ndarray[Any, Any], message: str) -> None:
    """The error names what is wrong and with whom."""
    with pytest.raises(ValueError, match=message):
        beamform(channels)


@pytest.mark.parametrize("name", ["nonsense", "no.such.module:solve", "radio.beamforming.fast:nothing"])
def test_unknown_method(name: str) -> None:
    """Unknown names list what exists; references that cannot be loaded say why."""
    with pytest.raises(ValueError, match=name):
        beamform(np.eye(2), method=name)
