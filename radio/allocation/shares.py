"""What an allocation is: shares of the band, pruning ratios, and what limits each device."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from radio.arrays import FloatArray

WhenInfeasible = Literal["raise", "relax", "drop"]


class AllocationStatus(IntEnum):
    """What limits a device."""

    INTERIOR = 0  # strictly between its bounds
    SATURATED = 1  # pruning ratio 0: more bandwidth would not help it
    STARVED = 2  # bandwidth 0, pruning ratio 1: it costs more than it brings; it uploads nothing
    INFEASIBLE = 3  # left out of the global part: no slack (D <= 0), or dropped for rho_max
    FLOOR = 4  # held at max_pruning_ratio by that limit
    TIME_BOUND = 5  # under time and energy: the threshold holds it, energy is left over
    ENERGY_BOUND = 6  # under time and energy: it spends its budget


class InfeasibleAllocationError(ValueError):
    """`max_pruning_ratio` cannot be met by all feasible devices at once."""


@dataclass(frozen=True)
class Allocation:
    """Shares of one round (or of a batch of rounds).

    Attributes:
        bandwidth_fraction: (..., K) b, sums to at most 1.
        pruning_ratio: (..., K) rho in [0, 1].
        multiplier: (...) lambda, the fall of the objective per unit of bandwidth fraction; 0 where
            bandwidth is left over, NaN where no optimum was sought.
        status: (..., K) int8, `AllocationStatus` codes.
        objective: (...) sum of w rho, left-out devices counting with rho = 1.
        max_pruning_ratio: (...) the limit in force; above the one asked for after `relax`.
        gap: (...) no allocation has an objective below `objective - gap`: 0 where the optimum was found,
            NaN where none was sought.
        frequency: (..., K) CPU frequency of each device, Hz; None: its own.
        power: (..., K) transmit power of each device, W, 0 where it sends nothing; None: its own.
    """

    bandwidth_fraction: FloatArray
    pruning_ratio: FloatArray
    multiplier: FloatArray
    status: NDArray[np.int8]
    objective: FloatArray
    max_pruning_ratio: FloatArray
    gap: FloatArray
    frequency: FloatArray | None = None
    power: FloatArray | None = None

    @staticmethod
    def of_shares(
        bandwidth_fraction: ArrayLike,
        pruning_ratio: ArrayLike,
        *,
        weights: ArrayLike | None = None,
        left_out: ArrayLike = False,
        max_pruning_ratio: float = 1.0,
    ) -> Allocation:
        """Return an allocation of given shares and ratios, for policies that do not optimise.

        Args:
            bandwidth_fraction: (..., K) b.
            pruning_ratio: (..., K) rho.
            weights: (..., K) of the objective; None: 1.
            left_out: (..., K) bool, devices that take no part in the global part.
            max_pruning_ratio: the limit that was asked for.
        """
        share = np.asarray(bandwidth_fraction, dtype=np.float64)
        ratio = np.asarray(pruning_ratio, dtype=np.float64)
        status = np.full(ratio.shape, AllocationStatus.INTERIOR, dtype=np.int8)
        status[ratio <= 0] = AllocationStatus.SATURATED
        status[ratio >= 1] = AllocationStatus.STARVED
        status[np.broadcast_to(left_out, ratio.shape)] = AllocationStatus.INFEASIBLE
        batch = ratio.shape[:-1]
        nothing = np.full(batch, np.nan)[()]
        return Allocation(
            bandwidth_fraction=share,
            pruning_ratio=ratio,
            multiplier=nothing,
            status=status,
            objective=(_ones(weights) * ratio).sum(axis=-1),
            max_pruning_ratio=np.full(batch, max_pruning_ratio)[()],
            gap=nothing,
        )


def _ones(weights: ArrayLike | None) -> FloatArray:
    return np.asarray(1.0 if weights is None else weights, dtype=np.float64)
