"""The joint choice of users and beam: input checks, what a policy returns, what a schedule is.

max over |S| = M and ||m|| = 1 of min over k in S of |m^H h_k|^2 (arXiv 2508.00341, eqs. (8)-(9)); NP-hard.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from radio.beamforming.problem import Beam, Complex, Real, gains

Users = NDArray[np.int64]


@dataclass(frozen=True)
class Selection:
    """What a policy returns: users, a beam if it has one (None: the beamformer finds it), and a bound.

    `upper_bound`, if the policy has one, is exceeded by no choice of users and beam; with the status "proved"
    it is as close to the gain as was asked for.
    """

    users: Users
    beam: Complex | None = None
    status: str = "converged"
    iterations: int = 0
    upper_bound: float | None = None


@dataclass(frozen=True)
class Schedule:
    """Users and receive beam of one round.

    Attributes:
        users: (M,) indices, ascending.
        beam: (N,) complex, unit norm, canonical phase.
        min_gain: min over the users of |m^H h_k|^2.
        runtime_s: measured seconds of the policy and its beam (without the bounds).
        upper_bound: no choice of M users and beam exceeds it (if asked for, or if the policy proves it).
        set_upper_bound: no beam exceeds it for these users (if asked for).
        method: name of the policy.
        status: how it ended; "proved": no choice is better, within the gap that the policy was given.
        iterations: of the policy, in its own unit (`branch_and_bound`: nodes).
    """

    users: Users
    beam: Complex
    min_gain: float
    runtime_s: float
    upper_bound: float | None
    set_upper_bound: float | None
    method: str
    status: str
    iterations: int

    @property
    def normalised_mse(self) -> float:
        """MSE of one channel use times P0 / noise power: 1 / min_gain (arXiv 2508.00341, eqs. (5)-(7))."""
        return 1.0 / self.min_gain

    @property
    def proved(self) -> bool:
        """Whether no other choice is better, within the gap that the policy was given."""
        return self.status == "proved"

    @property
    def gap_db(self) -> float | None:
        """Upper bound over gain in dB: the most that a better choice could bring. None without a bound."""
        return None if self.upper_bound is None else 10.0 * math.log10(self.upper_bound / self.min_gain)


class BeamSolver(Protocol):
    """Finds a beam for channels (M, N); `initial` is a beam the result is never worse than."""

    def __call__(self, channels: Complex, *, initial: Complex | None = None) -> Beam: ...  # noqa: D102


Policy = Callable[..., Selection | Users]


def check_num_selected(num_selected: int, users: int) -> int:
    """Return `num_selected` as an int.

    Raises:
        ValueError: unless 1 <= num_selected <= users.
    """
    if int(num_selected) != num_selected or num_selected < 1:
        raise ValueError(f"num_selected = {num_selected} must be an integer of at least 1")
    if num_selected > users:
        raise ValueError(f"num_selected = {num_selected} exceeds the number of users K = {users}")
    return int(num_selected)


def strongest(power: Real, count: int) -> Users:
    """Return the indices of the `count` largest entries, ascending; ties go to the lower index.

    For a fixed beam these users are exactly optimal (arXiv 2508.00341, eq. (15)).
    """
    if count >= len(power):
        return np.arange(len(power))
    level = np.partition(power, len(power) - count)[len(power) - count]
    above = np.flatnonzero(power > level)
    equal = np.flatnonzero(power == level)[: count - len(above)]
    return np.sort(np.concatenate([above, equal]))


def best_for_beam(channels: Complex, beam: Complex, count: int) -> Users:
    """Return the `count` users of largest |m^H h_k|, ascending (arXiv 2508.00341, eq. (15))."""
    return strongest(gains(channels, beam), count)
