"""Exact sharing of one unit of a resource between piecewise-linear, non-decreasing demands.

Every device asks, at the level s = multiplier^(-1/2), for

    base                          s < on,
    (s / start - 1) / growth      on <= s < full      (never below `onset`),
    cap                           full <= s,

and the level is sought at which the demands sum to one. The sum is piecewise linear with 2K corners:
sort them, find the corner at which the sum passes one by bisection over the sorted corners, solve the
linear equation of that segment: O(K log K), no iteration to a tolerance.

Demands with `growth` -> 0 rise almost vertically, and running sums of slopes would lose every gentle slope
beside a steep one. So each probe sums the demands afresh, and the last step is solved for the *distance*
to the start of the steepest demand, where nothing cancels. A vertical demand (`on == full`) may end up
partly filled; the caller learns which.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from radio.arrays import BoolArray, FloatArray


@dataclass(frozen=True)
class Demand:
    """Demands of M independent problems with K devices each; all arrays (M, K).

    Attributes:
        base: demand below the level `on`.
        onset: demand just after `on`; equal to `base` unless the demand jumps.
        cap: largest demand.
        start: level at which the unclipped linear demand is 0.
        growth: (s / start - 1) / growth is the linear part; 0 for a vertical demand.
        on: level at which the demand leaves `base`.
        full: level at which it reaches `cap`.
    """

    base: FloatArray
    onset: FloatArray
    cap: FloatArray
    start: FloatArray
    growth: FloatArray
    on: FloatArray
    full: FloatArray

    def rows(self, index: NDArray[np.intp] | slice) -> Demand:
        """Return the problems selected by `index` along the first axis."""
        return Demand(
            self.base[index],
            self.onset[index],
            self.cap[index],
            self.start[index],
            self.growth[index],
            self.on[index],
            self.full[index],
        )


@dataclass(frozen=True)
class Filling:
    """The shares at the level where they sum to one.

    Attributes:
        share: (M, K).
        level: (M,) s = multiplier^(-1/2).
        partial: (M, K) jumps of which only a part fits.
    """

    share: FloatArray
    level: FloatArray
    partial: BoolArray


def fill(demand: Demand) -> Filling:
    """Share one unit; the caps of every problem must sum to at least one and the bases to at most one."""
    m, k = demand.base.shape
    row = np.arange(m)
    vertical = demand.on >= demand.full
    slope = np.zeros((m, k))
    np.divide(1.0, demand.start * demand.growth, out=slope, where=~vertical)

    def at(level: FloatArray, jumped: bool) -> FloatArray:
        """Demands at a corner, before (False) or after (True) the jumps that happen there."""
        s = level[:, np.newaxis]
        linear = np.minimum(np.maximum((s - demand.start) * slope, demand.onset), demand.cap)
        after = np.where(s >= demand.full, demand.cap, linear)
        return np.where(s >= demand.on if jumped else s > demand.on, after, demand.base)

    corners = np.concatenate([demand.on, demand.full], axis=1)
    corners.sort(axis=1)
    low = np.zeros(m, dtype=np.intp)
    high = np.full(m, 2 * k - 1, dtype=np.intp)  # by assumption the sum there is at least one
    while bool((low < high).any()):
        middle = (low + high) // 2
        enough = at(corners[row, middle], True).sum(axis=1) >= 1.0
        high = np.where(enough, middle, high)
        low = np.where(enough, low, np.minimum(middle + 1, high))
    corner = corners[row, high]
    previous = corners[row, np.maximum(high - 1, 0)]

    before, after = at(corner, False), at(corner, True)
    missing = 1.0 - before.sum(axis=1)
    at_corner = (missing > 0) | (high == 0)
    rise = after - before
    total = rise.sum(axis=1)
    part = np.clip(np.divide(missing, total, out=np.zeros(m), where=total > 0), 0.0, 1.0)
    share = before + part[:, np.newaxis] * rise
    partial = at_corner[:, np.newaxis] & (rise > 0) & (part < 1)[:, np.newaxis]
    level = corner.copy()

    inside = np.flatnonzero(~at_corner)
    if inside.size:
        every: NDArray[np.intp] | slice = (
            slice(None) if inside.size == m else inside
        )  # a slice spares the copies
        share[inside], level[inside] = _solve_segment(
            demand.rows(every), slope[every], previous[every], corner[every]
        )
    return Filling(share=share, level=level, partial=partial)


def _solve_segment(
    demand: Demand, slope: FloatArray, left: FloatArray, right: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Solve the linear equation between two neighbouring corners."""
    row = np.arange(left.size)
    left, right = left[:, np.newaxis], right[:, np.newaxis]
    active = (demand.on <= left) & (demand.full >= right)
    fixed = np.where(demand.full <= left, demand.cap, demand.base)
    steep = np.where(active, slope, 0.0)
    origin = demand.start[row, np.argmax(steep, axis=1)]
    distance = demand.start - origin[:, np.newaxis]
    lead = np.where(active, 0.0, fixed).sum(axis=1)
    step = (1.0 - lead + (steep * distance).sum(axis=1)) / steep.sum(axis=1)
    for _ in range(3):  # once, then again for what rounding or a corner within rounding left over
        moving = (step[:, np.newaxis] - distance) * steep
        clipped = np.minimum(np.maximum(moving, demand.onset), demand.cap)
        share = np.where(active, clipped, fixed)
        rest = 1.0 - share.sum(axis=1)
        room = np.where(moving == clipped, steep, 0.0).sum(axis=1)
        step = step + np.divide(rest, room, out=np.zeros_like(rest), where=room > 0)
        if bool((np.abs(rest) <= 1e-15).all()):
            break
    return share, origin + step
