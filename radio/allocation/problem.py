"""The joint problem as arrays, and what follows from it without a search: floors, caps, the least limit."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from radio.allocation.ratio import least_pruning_ratio
from radio.allocation.shares import InfeasibleAllocationError, WhenInfeasible
from radio.arrays import BoolArray, FloatArray, finite, in_unit_interval, non_negative, positive


@dataclass(frozen=True)
class Problem:
    """The validated inputs, broadcast to (M, K), with (M, 1) limit on the ratio."""

    rate: FloatArray
    slack: FloatArray
    compute: FloatArray
    bits: FloatArray
    weight: FloatArray
    overhead: FloatArray
    limit: FloatArray

    @property
    def servable(self) -> BoolArray:
        """Devices for which some share of the band gives a ratio below 1."""
        return np.asarray((self.slack > 0) & (self.rate > 0))

    def rows(self, index: NDArray[np.intp]) -> Problem:
        """Return the problem of some of the rounds."""
        return Problem(*(getattr(self, name)[index] for name in self.__dataclass_fields__))


def prepare(
    full_band_rate: ArrayLike,
    slack: ArrayLike,
    compute_time: ArrayLike,
    payload_bits: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    max_pruning_ratio: float = 1.0,
    overhead_bits: ArrayLike = 0.0,
) -> tuple[Problem, tuple[int, ...]]:
    """Check the arguments of `allocate`; return them as a problem, with the shape that they broadcast to.

    Raises:
        ValueError: if one is outside its range.
    """
    arrays = np.broadcast_arrays(
        non_negative("full_band_rate", full_band_rate),
        finite("slack", slack),
        non_negative("compute_time", compute_time),
        positive("payload_bits", payload_bits),
        non_negative("weights", 1.0 if weights is None else weights),
        non_negative("overhead_bits", overhead_bits),
    )
    shape = arrays[0].shape
    if not shape or shape[-1] == 0:
        raise ValueError(f"full_band_rate has shape {shape}; it needs a last axis with at least one device")
    limit = float(in_unit_interval("max_pruning_ratio", max_pruning_ratio))
    flat = [array.reshape(-1, shape[-1]) for array in arrays]
    flat.append(np.full((flat[0].shape[0], 1), limit))
    return Problem(*flat), shape


def floor(problem: Problem, limit: FloatArray) -> FloatArray:
    """Return the share each device needs for a ratio of `limit` (M, 1); infinite where none suffices."""
    keep = 1.0 - limit
    room = problem.slack - keep * problem.compute
    low = np.full(room.shape, np.inf)
    np.divide(
        keep * problem.bits + problem.overhead,
        problem.rate * room,
        out=low,
        where=(problem.rate > 0) & (room > 0),
    )
    return low


def least_limit(problem: Problem, left_out: BoolArray) -> FloatArray:
    """Bisect for the least limit (M, 1) at which the floors of all others fit into the band."""
    low, high = np.zeros_like(problem.limit), np.ones_like(problem.limit)

    def fits(limit: FloatArray) -> BoolArray:
        needed = np.where(left_out, 0.0, floor(problem, limit)).sum(axis=1, keepdims=True)
        return np.asarray(needed <= 1.0)

    high = np.where(fits(low), 0.0, high)
    while True:
        middle = 0.5 * (low + high)
        if bool(((middle <= low) | (middle >= high)).all()):
            return high
        good = fits(middle)
        high = np.where(good, middle, high)
        low = np.where(good, low, middle)


def settle_limit(
    problem: Problem, left_out: BoolArray, when_infeasible: WhenInfeasible
) -> tuple[Problem, FloatArray, BoolArray]:
    """Make `max_pruning_ratio` feasible; return the problem, the floors and who is left out.

    Raises:
        InfeasibleAllocationError: under `raise`, if it does not fit.
    """
    low = np.where(problem.limit < 1, floor(problem, problem.limit), 0.0)
    low[left_out] = 0.0
    needed = low.sum(axis=1, keepdims=True)
    bad = needed > 1.0
    if not bad.any():
        return problem, low, left_out
    if when_infeasible == "raise":
        raise InfeasibleAllocationError(
            f"max_pruning_ratio = {problem.limit[0, 0]} cannot be met: the devices with positive slack "
            f"need {needed.max():.4g} of the band, the limit is 1. Raise max_pruning_ratio or the latency "
            "threshold, or set when_infeasible to 'relax' or 'drop'"
        )
    if when_infeasible == "drop":
        order = np.argsort(low, axis=1, kind="stable")
        fits = np.cumsum(np.take_along_axis(low, order, axis=1), axis=1) <= 1.0
        kept = np.empty_like(fits)
        np.put_along_axis(kept, order, fits, axis=1)
        return problem, np.where(kept, low, 0.0), left_out | ~kept
    relaxed = replace(problem, limit=np.where(bad, least_limit(problem, left_out), problem.limit))
    low = np.where(relaxed.limit < 1, floor(relaxed, relaxed.limit), 0.0)
    low[left_out] = 0.0
    return relaxed, low, left_out


def cap_of(problem: Problem) -> FloatArray:
    """Return the share at which a device needs no pruning; infinite where there is none."""
    cap = np.full(problem.rate.shape, np.inf)
    gain = problem.slack - problem.compute
    np.divide(
        problem.bits + problem.overhead,
        problem.rate * gain,
        out=cap,
        where=(problem.rate > 0) & (gain > 0),
    )
    return cap


def ratio_of(problem: Problem, share: FloatArray) -> FloatArray:
    """Return the least pruning ratio of each device at its share."""
    return least_pruning_ratio(
        share, problem.rate, problem.slack, problem.compute, problem.bits, overhead_bits=problem.overhead
    )
