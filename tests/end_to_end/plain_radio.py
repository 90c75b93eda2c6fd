"""The OFDMA cell, written a second time: rates, bits and optima from the paper, nothing of `radio`.

Liu et al. 2024, section III. The optimum is found by sequential quadratic programming over every set of
devices that upload, which has nothing in common with the water-filling of the product.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from scipy.optimize import brentq, minimize

Array = np.ndarray


@dataclass(frozen=True)
class Cell:
    """One round's inputs, SI units; arrays are (K,)."""

    gain: Array
    slack: Array
    compute: Array
    dense_bits: float
    overhead_bits: float
    band: float
    power: float
    noise: float  # over the whole band
    proportional: bool = False

    def rate(self, device: int, share: float) -> float:
        """Eq. (9), or with noise that grows with the share."""
        if share <= 0:
            return 0.0
        noise = self.noise * (share if self.proportional else 1.0)
        return share * self.band * math.log2(1 + self.gain[device] * self.power / noise)

    def kept(self, device: int, share: float) -> float:
        """The largest 1 - rho that computing and sending within the slack allow; may exceed 1."""
        speed = self.rate(device, share)
        spare = speed * self.slack[device] - self.overhead_bits
        return spare / (speed * self.compute[device] + self.dense_bits)

    def least_ratio(self, device: int, share: float) -> float:
        """The least pruning ratio of a device with that share."""
        return float(np.clip(1 - self.kept(device, share), 0, 1)) if share > 0 else 1.0


def optimum(cell: Cell) -> tuple[Array, Array, float]:
    """Return shares, ratios and the price of the band that minimise the sum of the ratios."""
    devices = [k for k in range(cell.gain.size) if cell.slack[k] > 0]
    best = (-1.0, np.zeros(cell.gain.size), 0.0)
    sets = product([False, True], repeat=len(devices)) if cell.overhead_bits else [[True] * len(devices)]
    for chosen in sets:
        senders = [k for k, there in zip(devices, chosen, strict=True) if there]
        if senders and (found := _share(cell, senders)) and found[0] > best[0] + 1e-12:
            best = found
    ratio = np.array([cell.least_ratio(k, b) for k, b in enumerate(best[1])])
    return best[1], ratio, best[2]


def _share(cell: Cell, senders: list[int]) -> tuple[float, Array, float] | None:
    """Share the band between devices that all upload."""
    caps = np.array([_cap(cell, k) for k in senders])

    def kept(share: Array) -> Array:
        return np.array([cell.kept(k, b) for k, b in zip(senders, share, strict=True)])

    def slope(share: Array) -> Array:
        step = 1e-6 * np.maximum(share, 1e-9)
        return (kept(share + step) - kept(share - step)) / (2 * step)

    share = caps
    if caps.sum() > 1:
        start = caps / caps.sum()
        whole_band: Any = {"type": "ineq", "fun": lambda b: 1 - b.sum(), "jac": lambda b: -np.ones(b.size)}
        search: Any = minimize
        found = search(
            lambda b: -kept(b).sum(), start, jac=lambda b: -slope(b), method="SLSQP",
            bounds=[(1e-9, cap) for cap in caps],
            constraints=whole_band,
            options={"ftol": 1e-15, "maxiter": 500},
        )  # fmt: skip
        share = np.where(found.x > 1e-6, found.x, 0.0)
    gains = kept(share)
    if (gains < -1e-6).any():
        return None  # a device that cannot pay for its header and positions
    inner = (share < caps * (1 - 1e-6)) & (share > 1e-6)
    price = float(slope(share)[inner].mean()) if inner.any() else 0.0
    whole = np.zeros(cell.gain.size)
    whole[senders] = share
    return float(np.minimum(gains, 1).sum()), whole, price


def _cap(cell: Cell, device: int) -> float:
    """The share from which on a device prunes nothing, at most 1."""
    if cell.kept(device, 1.0) <= 1:
        return 1.0
    return brentq(lambda b: cell.kept(device, b) - 1, 1e-12, 1.0, xtol=1e-15)


def equal(cell: Cell) -> tuple[Array, Array]:
    """Equal shares for those that can upload with them, each with its least ratio."""
    senders = [k for k in range(cell.gain.size) if cell.slack[k] > 0]
    while senders:
        ratio = {k: cell.least_ratio(k, 1 / len(senders)) for k in senders}
        staying = [k for k in senders if ratio[k] < 1]
        if staying == senders:
            break
        senders = staying
    share = np.array([1 / len(senders) if k in senders else 0.0 for k in range(cell.gain.size)])
    return share, np.array([cell.least_ratio(k, b) for k, b in enumerate(share)])


def printed(cell: Cell) -> tuple[Array, Array]:
    """Eqs. (54) and (58), negative shares set to 0 and the rest scaled to the whole band."""
    r = np.array([cell.rate(k, 1.0) for k in range(cell.gain.size)])
    d, g, q = cell.slack, cell.compute, cell.dense_bits
    root = (np.sqrt(d * q / r) / g).sum() / (1 + (q / (r * g)).sum())
    share = np.maximum((np.sqrt(r * d * q) / root - q) / (r * g), 0)
    share /= share.sum()
    ratio = np.array([cell.least_ratio(k, b) for k, b in enumerate(share)])
    return np.where(ratio < 1, share, 0.0), ratio


def wire_bytes(size: int, kept: int, bits: int) -> int:
    """Header, values (with a centre and a step per 2048 at 8 bits) and the cheapest list of positions."""
    if kept == 0:
        return 0
    values = kept * bits // 8 + (8 * math.ceil(kept / 2048) if bits == 8 else 0)
    listed = min(kept, size - kept)
    positions = min(
        math.ceil(size / 8), 4 * math.ceil(size / 65536) + 2 * listed, 2 * math.ceil(size / 256) + listed
    )
    return 28 + values + (positions if listed else 0)


def ring_gain(devices: int) -> Array:
    """Mean gain of one antenna on rings of equal area from 80 m to 500 m, 128.1 + 37.6 log10(km) dB."""
    area = (np.arange(devices) + 0.5) / devices
    kilometres = np.sqrt(80**2 + (500**2 - 80**2) * area) / 1000
    return 10 ** (-(128.1 + 37.6 * np.log10(kilometres)) / 10)


Recipe = Callable[[Cell], tuple[Array, Array]]
