"""A largest pruning ratio that may not fit into the band."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from radio.allocation.shares import InfeasibleAllocationError, WhenInfeasible
from radio.arrays import BoolArray, FloatArray, choice


def settle_limit(
    needs: Callable[[float], FloatArray], limit: float, left_out: BoolArray, when_infeasible: WhenInfeasible
) -> tuple[float, BoolArray]:
    """Make a largest pruning ratio feasible; return the one in force and who is left out.

    Args:
        needs: from a pruning ratio to the share of the band that each device needs for it, (K,).
        limit: the ratio that is asked for; 1: no limit.
        left_out: (K,) who takes no part anyway.
        when_infeasible: as of `radio.allocation.allocate`.

    Raises:
        InfeasibleAllocationError: (a ValueError) under `raise`, if the limit does not fit.
    """
    choice("when_infeasible", when_infeasible, WhenInfeasible)
    if limit >= 1:
        return limit, left_out

    def floors(at: float) -> FloatArray:
        return np.where(left_out, 0.0, needs(at))

    low = floors(limit)
    if low.sum() <= 1:
        return limit, left_out
    if when_infeasible == "raise":
        raise InfeasibleAllocationError(
            f"max_pruning_ratio = {limit} cannot be met: the devices that can take part need {low.sum():.4g} "
            "of the band, the limit is 1. Raise max_pruning_ratio, the latency threshold or the energy "
            "budget, or set when_infeasible to 'relax' or 'drop'"
        )
    if when_infeasible == "drop":
        order = np.argsort(low, kind="stable")
        kept = np.zeros(low.shape, dtype=np.bool_)
        kept[order] = np.cumsum(low[order]) <= 1
        return limit, left_out | ~kept
    least, most = limit, 1.0
    while least < (middle := 0.5 * (least + most)) < most:
        least, most = (least, middle) if floors(middle).sum() <= 1 else (middle, most)
    return most, left_out
