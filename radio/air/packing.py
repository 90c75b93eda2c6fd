"""Real entries on complex symbols, symbols on subcarriers, and the time that they take.

"iq" puts two real entries on one symbol, (u_2i + j u_2i+1)/sqrt(2); "real" sends one and keeps the real part.
With F subcarriers symbol i is on subcarrier i mod F.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from radio.air.zero_forcing import Packing
from radio.arrays import positive
from radio.beamforming.problem import Complex, Real


def symbols(size: int, packing: Packing = "iq") -> int:
    """Return the channel uses of `size` real entries."""
    return -(-size // 2) if packing == "iq" else size


def airtime_s(size: int, bandwidth_hz: float, packing: Packing = "iq") -> float:
    """Return the seconds of the analog upload: one channel use per 1/bandwidth, whatever the number of users.

    Raises:
        ValueError: unless `bandwidth_hz` is positive.
    """
    positive("bandwidth_hz", bandwidth_hz)
    return symbols(size, packing) / bandwidth_hz


def turn(values: Real, arrived: complex | Complex, packing: Packing, first: int = 0) -> Real:
    """Multiply the packed symbols of `values` (d,) by complex factors and unpack, (d,).

    Args:
        values: entries of one user.
        arrived: one factor, or one for each subcarrier, (F,).
        packing: "iq" or "real".
        first: place of `values[0]` in the upload, even.
    """
    factor = np.asarray(arrived)
    if factor.ndim:
        factor = factor[carriers(symbols(values.size, packing), factor.size, packing, first)]
    if packing == "real" or (factor.ndim == 0 and factor == 1.0):
        return np.asarray(values * factor.real)
    padded = values if values.size % 2 == 0 else np.append(values, 0.0)
    return np.asarray((padded.view(np.complex128) * factor).view(np.float64)[: values.size])


def carriers(uses: int, subcarriers: int, packing: Packing, first: int) -> NDArray[np.intp]:
    """Return the subcarriers of so many symbols from entry `first` of an upload on."""
    begin = first // 2 if packing == "iq" else first
    return (begin + np.arange(uses)) % subcarriers


def on_subcarriers(values: Real, subcarriers: int, packing: Packing, first: int) -> Real:
    """Return the sum of squares of the entries on each subcarrier, (F,)."""
    squares = values**2
    if packing == "iq":
        squares = np.add.reduceat(squares, np.arange(0, squares.size, 2))
    places = carriers(squares.size, subcarriers, packing, first)
    return np.asarray(np.bincount(places, squares, minlength=subcarriers), dtype=np.float64)
