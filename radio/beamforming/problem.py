"""The max-min beam problem: input checks, gains, canonical phase, and what every solver returns.

max over ||m|| = 1 of min_k |m^H h_k|^2 for a fixed set of users; row k of `channels` is h_k.
(arXiv 2508.00341, eq. (10)). The normalised MSE of over-the-air aggregation is one over that minimum.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Complex = NDArray[np.complex128]
Real = NDArray[np.float64]


@dataclass(frozen=True)
class Beam:
    """A receive beam for one set of users.

    Attributes:
        beam: (N,) complex, unit norm, first entry of non-negligible size real and positive.
        min_gain: min over the users of |m^H h_k|^2.
        upper_bound: a number that no unit beam exceeds on this set, if it was asked for.
        status: how the solver ended ("converged", "iteration_limit", "solver_failures", ...).
        iterations: convex subproblems solved.
    """

    beam: Complex
    min_gain: float
    upper_bound: float | None
    status: str
    iterations: int


def check_channels(channels: ArrayLike) -> Complex:
    """Return `channels` as a (K, N) complex array.

    Raises:
        ValueError: if the array is not 2-D, has K = 0 or N = 0, holds a non-finite value or a zero row.
    """
    array = np.asarray(channels)
    if array.ndim != 2:
        raise ValueError(f"channels has shape {array.shape}; it must be (users K, antennas N)")
    users, antennas = array.shape
    if antennas < 1:
        raise ValueError(f"channels has N = {antennas} receive antennas; at least 1 is needed")
    if users < 1:
        raise ValueError(f"channels has K = {users} users; at least 1 is needed")
    array = np.ascontiguousarray(array, dtype=np.complex128)
    finite = np.isfinite(array).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"channels of user {int(np.argmin(finite))} is not finite; NaN and infinity are refused"
        )
    silent = ~array.any(axis=1)
    if silent.any():
        raise ValueError(
            f"channels of user {int(np.argmax(silent))} is the zero vector; no transmit power can invert it"
        )
    return array


def gains(channels: Complex, beam: Complex) -> Real:
    """Return |m^H h_k|^2 of every user, (K,), for channels (K, N) and a beam (N,)."""
    projected = channels @ beam.conj()
    return projected.real**2 + projected.imag**2


def canonical_phase(beam: Complex) -> Complex:
    """Scale to unit norm and turn so that the first non-negligible entry is real and positive.

    The objective ignores a common phase (Lemma 4.1 of arXiv 2508.00341); fixing it makes results comparable.
    """
    beam = beam / np.linalg.norm(beam)
    first = beam[np.argmax(np.abs(beam) > 1e-9)]
    return np.asarray(beam * (first.conj() / np.abs(first)))


def finish(channels: Complex, beam: Complex, *, bound: float | None, status: str, iterations: int) -> Beam:
    """Wrap a solver's beam: canonical phase, and the objective evaluated on what is returned."""
    beam = canonical_phase(beam)
    return Beam(beam, float(gains(channels, beam).min()), bound, status, iterations)


def principal_beam(channels: Complex) -> Complex:
    """Return the unit left singular vector of [h_1 .. h_K] of the largest singular value, (N,)."""
    return np.asarray(np.linalg.eigh(channels.T @ channels.conj())[1][:, -1])


def matched_filters(channels: Complex) -> Complex:
    """Return h_k / ||h_k|| for every user, (K, N)."""
    return np.asarray(channels / np.linalg.norm(channels, axis=1, keepdims=True))


def best_matched_filter(channels: Complex) -> Complex:
    """Return the matched filter of largest minimum gain (Corollary 5.2 of arXiv 2508.00341 is its value)."""
    filters = matched_filters(channels)
    return np.asarray(filters[np.argmax(np.abs(filters.conj() @ channels.T).min(axis=1))])


def random_beams(rng: np.random.Generator, count: int, antennas: int) -> Complex:
    """Return `count` independent beams, uniform on the complex unit sphere, (count, N)."""
    pairs = rng.standard_normal((count, antennas, 2))
    beams = pairs[..., 0] + 1j * pairs[..., 1]
    return np.asarray(beams / np.linalg.norm(beams, axis=1, keepdims=True))
