"""Latency of one round: local computing, and the uplink of the retained weights.

Liu et al. 2024, eqs. (24), (28), (29). Broadcast and aggregation are free, as there. With T0 the part that
pruning cannot shorten and G the time of the dense global steps, device k needs

    T_k = T0_k + (1 - rho_k) (G_k + Q_k / (b_k r_k)),        the round max_k T_k.

The paper charges the importance steps in (24) and (28) but loses them from (46) on, so its printed
optimum overshoots the budget by that time; `include_importance_cost` puts them into T0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from radio.arrays import FloatArray, count, finite, non_negative, positive


@dataclass(frozen=True)
class ComputeModel:
    """What a device computes in one round: the local part of its latency (Liu et al. 2024, eqs. (24), (28)).

    Attributes:
        personal_weights: N_v, weights that stay on the device.
        global_weights: N_u, weights that are pruned and sent.
        personal_steps: tau_v, SGD steps on the personal part.
        global_steps: tau_u, masked SGD steps on the global part.
        importance_steps: steps on the scratch copy that ranks the weights.
        copy_steps: steps on a dense copy of the global part that stays on the device (Ditto).
        personal_cycles: C, cycles per personal weight and step; a number or (K,). A convolution uses
            a weight hundreds of times per sample, so the two parts may differ.
        global_cycles: C, cycles per global weight and step; a number or (K,).
        include_importance_cost: charge the importance steps (True), or not, as the paper's
            allocation does (False).
    """

    personal_weights: int
    global_weights: int
    personal_steps: int = 2
    global_steps: int = 2
    importance_steps: int = 1
    copy_steps: int = 0
    personal_cycles: float | FloatArray = 20.0
    global_cycles: float | FloatArray = 20.0
    include_importance_cost: bool = True

    def __post_init__(self) -> None:
        for name in ("personal_weights", "personal_steps", "importance_steps", "copy_steps"):
            count(name, getattr(self, name))
        for name in ("global_weights", "global_steps"):
            count(name, getattr(self, name), 1)
        non_negative("personal_cycles", self.personal_cycles)
        non_negative("global_cycles", self.global_cycles)

    def fixed_time(self, cpu_frequency: ArrayLike) -> FloatArray:
        """Return T0 = (tau_v C_v N_v [+ (importance, copy steps) * C_u N_u]) / f, in s; f in Hz, (K,)."""
        cycles = self.personal_steps * self.personal_weights * np.asarray(self.personal_cycles)
        if self.copy_steps:
            cycles = cycles + self.copy_steps * self.global_weights * np.asarray(self.global_cycles)
        if self.include_importance_cost:
            cycles = cycles + self.importance_steps * self.global_weights * np.asarray(self.global_cycles)
        return np.asarray(cycles / positive("cpu_frequency", cpu_frequency), dtype=np.float64)

    def compute_time(self, cpu_frequency: ArrayLike) -> FloatArray:
        """Return G = tau_u C_u N_u / f, the time of the dense global steps, in s; f in Hz, (K,)."""
        cycles = self.global_steps * self.global_weights * np.asarray(self.global_cycles)
        return np.asarray(cycles / positive("cpu_frequency", cpu_frequency), dtype=np.float64)


def slack(latency_threshold: ArrayLike, fixed_time: ArrayLike) -> FloatArray:
    """Return D = T_th - T0, in s: what is left for the prunable part. Not positive: infeasible device."""
    return np.asarray(
        positive("latency_threshold", latency_threshold) - non_negative("fixed_time", fixed_time)
    )


def device_latency(
    fixed_time: ArrayLike,
    compute_time: ArrayLike,
    kept_fraction: ArrayLike,
    uplink_bits: ArrayLike,
    uplink_rate: ArrayLike,
) -> FloatArray:
    """Return T_k from what a device really kept and really sent (Liu et al. 2024, eq. (28)).

    T = T0 + (share of weights kept) G + bits / rate. A device that sends nothing needs T0 (its
    importance steps stay charged if T0 holds them, although it could skip them: an upper bound).

    Args:
        fixed_time: (..., K) T0, s.
        compute_time: (..., K) G, s.
        kept_fraction: (..., K) retained weights / N_u, in [0, 1]; 1 - rho where a plan is meant.
        uplink_bits: (..., K) bits on the uplink, header and positions included.
        uplink_rate: (..., K) rate at the device's share of the band, bit/s (b r, or `ofdma.rate`).

    Returns:
        (..., K) seconds; infinite where bits have to be sent at rate 0.
    """
    bits = non_negative("uplink_bits", uplink_bits)
    speed = non_negative("uplink_rate", uplink_rate)
    kept = finite("kept_fraction", kept_fraction)
    with np.errstate(divide="ignore", invalid="ignore"):
        airtime = np.where(bits > 0, bits / speed, 0.0)
    return np.asarray(
        non_negative("fixed_time", fixed_time) + kept * non_negative("compute_time", compute_time) + airtime
    )


def round_latency(device_latency: ArrayLike) -> FloatArray:
    """Return the latency of the round, (..., K) -> (...): the maximum (Liu et al. 2024, eq. (29))."""
    return np.asarray(np.max(np.asarray(device_latency, dtype=np.float64), axis=-1))
