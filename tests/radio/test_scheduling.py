"""One contract for every scheduling method, bad input, and the registry."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from radio.beamforming import gains
from radio.scheduling import SCHEDULERS, Selection, policy, schedule

ACTOR_CRITIC = "strategies.actor_critic:actor_critic"  # learned, with torch, which radio does not import
METHODS = (*SCHEDULERS, ACTOR_CRITIC)
OPTIONS: dict[str, dict[str, Any]] = {
    ACTOR_CRITIC: {"updates": 20, "batch": 16},
    "subgradient": {"outer": 10, "inner": 50},
}
JOINT = ("multistart", "enhanced", "brute_force", "iterative", "policy_greedy", "policy")
GLOBAL_PHASE = sorted(SCHEDULERS)  # the network sees Re and Im of the channels


def rayleigh(seed: int, users: int, antennas: int) -> np.ndarray[Any, np.dtype[np.complex128]]:
    rng = np.random.default_rng(seed)
    shape = (users, antennas)
    return np.asarray((rng.standard_normal(shape) + 1j * rng.standard_normal(shape)) / np.sqrt(2))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("users", "antennas", "selected"), [(12, 4, 4), (10, 2, 1), (6, 3, 6), (9, 1, 3)])
def test_contract(method: str, users: int, antennas: int, selected: int) -> None:
    """Distinct sorted users, unit beam, objective as reported, below both bounds, repeatable."""
    h = rayleigh(users, users, antennas)
    found = schedule(h, selected, method=method, upper_bound=True, **OPTIONS.get(method, {}))
    assert found.users.shape == (selected,)
    assert (np.diff(found.users) > 0).all()
    assert found.users[0] >= 0
    assert found.users[-1] < users
    assert np.linalg.norm(found.beam) == pytest.approx(1.0, abs=1e-12)
    assert abs(found.beam[0].imag) < 1e-12
    assert found.beam[0].real > 0
    assert found.min_gain == pytest.approx(float(gains(h[found.users], found.beam).min()), rel=1e-12)
    assert found.normalised_mse == pytest.approx(1 / found.min_gain)
    assert found.upper_bound is not None
    assert found.set_upper_bound is not None
    assert found.min_gain <= found.set_upper_bound * (1 + 1e-9)
    assert found.min_gain <= found.upper_bound * (1 + 1e-9)
    assert found.runtime_s > 0
    assert found.method == method
    again = schedule(h, selected, method=method, **OPTIONS.get(method, {}))
    np.testing.assert_array_equal(again.users, found.users)
    np.testing.assert_array_equal(again.beam, found.beam)


@pytest.mark.parametrize("method", METHODS)
def test_scale_does_not_matter(method: str) -> None:
    """h -> a h scales the gain by a^2: path loss of 120 dB changes nothing else."""
    h = rayleigh(1, 14, 4)
    options = OPTIONS.get(method, {})
    base = schedule(h, 4, method=method, **options)
    scaled = schedule(2.0**-20 * h, 4, method=method, **options)
    assert scaled.min_gain == pytest.approx(2.0**-40 * base.min_gain, rel=1e-4)


@pytest.mark.parametrize("method", GLOBAL_PHASE)
def test_global_phase_does_not_matter(method: str) -> None:
    """h -> e^{j theta} h leaves every gain as it is."""
    h = rayleigh(1, 14, 4)
    base = schedule(h, 4, method=method)
    turned = schedule(1j * h, 4, method=method)
    assert turned.min_gain == pytest.approx(base.min_gain, rel=2e-2)


@pytest.mark.parametrize("method", JOINT)
def test_one_user_and_one_antenna(method: str) -> None:
    """M = 1: the strongest user with its matched filter. N = 1: the M strongest users."""
    h = rayleigh(7, 12, 4)
    norms = (np.abs(h) ** 2).sum(axis=1)
    one = schedule(h, 1, method=method)
    assert one.users.tolist() == [int(norms.argmax())]
    assert one.min_gain == pytest.approx(norms.max(), rel=1e-9)
    flat = rayleigh(8, 12, 1)
    several = schedule(flat, 4, method=method)
    if method not in ("policy", "policy_greedy"):
        expected = np.sort(np.argsort(-np.abs(flat[:, 0]))[:4])
        np.testing.assert_array_equal(several.users, expected)
    assert several.min_gain == pytest.approx(np.sort(np.abs(flat[:, 0]) ** 2)[-4], rel=1e-9)


@pytest.mark.parametrize(
    ("channels", "selected", "message"),
    [
        (np.ones((3, 0)), 1, "N = 0"),
        (np.ones((3, 2)), 4, "num_selected = 4 exceeds the number of users K = 3"),
        (np.ones((3, 2)), 0, "num_selected = 0"),
        (np.ones((3, 2)), 1.5, "num_selected = 1.5"),
        (np.array([[1.0, np.nan]]), 1, "user 0 is not finite"),
        (np.array([[1.0, 1.0], [0.0, 0.0]]), 1, "user 1 is the zero vector"),
    ],
)
def test_bad_input(channels: np.ndarray[Any, Any], selected: int, message: str) -> None:
    """Refused before any work, naming the parameter, the value and the limit."""
    with pytest.raises(ValueError, match=message):
        schedule(channels, selected)


def test_unknown_names_list_what_exists() -> None:
    """A typing error in a yaml file shows the choices."""
    with pytest.raises(
        ValueError, match=r"'polcy' is unknown; .* policy\? valid: .*multistart.*policy_greedy"
    ):
        schedule(np.eye(3), 1, method="polcy")
    with pytest.raises(ValueError, match="no_such_module"):
        schedule(np.eye(3), 1, method="no_such_module:f")
    with pytest.raises(ValueError, match=r"scheduler\.beamformer = 'beamy' is unknown"):
        schedule(np.eye(3), 1, beamformer="beamy")
    for option in ({"rule": "x"}, {"score": "x"}, {"candidates": 0}):
        with pytest.raises(ValueError, match=next(iter(option))):
            schedule(np.eye(3), 2, method="policy_greedy", **option)
    with pytest.raises(ValueError, match="max_sets"):
        schedule(rayleigh(0, 40, 2), 20, method="brute_force")


def last_users(channels: np.ndarray[Any, Any], num_selected: int, **_: Any) -> Selection:
    return Selection(np.arange(len(channels) - num_selected, len(channels)))


def test_a_policy_is_one_function() -> None:
    """By dotted reference or decorated; without a beam, the beamformer finds it."""
    found = schedule(rayleigh(0, 6, 3), 2, method=f"{__name__}:last_users")
    assert found.users.tolist() == [4, 5]
    policy("last_users")(last_users)
    try:
        again = schedule(rayleigh(0, 6, 3), 2, method="last_users")
    finally:
        SCHEDULERS.remove("last_users")
    assert again.min_gain == found.min_gain


def twice_the_same(channels: np.ndarray[Any, Any], num_selected: int, **_: Any) -> Selection:
    return Selection(np.zeros(num_selected, dtype=np.int64))


def test_a_policy_that_repeats_a_user_is_caught() -> None:
    """A broken policy must not reach the air."""
    with pytest.raises(ValueError, match="not 2 distinct users"):
        schedule(np.eye(3), 2, method=f"{__name__}:twice_the_same")


def test_radio_imports_neither_torch_nor_cvxpy() -> None:
    """The learned baseline and the reference solvers load only when asked for."""
    code = (
        "import sys, numpy as np; from radio.scheduling import schedule; schedule(np.eye(3), 2);"
        "assert not {'torch', 'cvxpy', 'flwr'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
