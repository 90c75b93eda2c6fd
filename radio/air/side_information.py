"""What an over-the-air round says beside its analog sum: pilots, statistics, coefficients and masks.

The emulation takes these for free, as the papers do; here is what they take on the same band.

* Pilots: one channel use per candidate and tap, from which every antenna estimates its channel.
* Uplink numbers and masks are sent digitally by all users at once. With S the users that are still decoded,
  any equal rate r with

      |S| r <= log2 det(I + rho sum_{k in S} h_k h_k^H)      for every set S of users

  can be sent (the multi-access channel with N antennas; Tse and Viswanath 2005, section 10.1): the least of
  these bounds per user is the rate.
* Downlink numbers go to all users at the rate of the worst of them.

Over subcarriers rates are means over the subcarriers (of which no more than sixteen are looked at).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from radio.air.zero_forcing import check_band
from radio.arrays import non_negative, positive
from radio.beamforming.problem import Complex, Real

NUMBER_BITS = 32  # of a statistic or a real coefficient
_CARRIERS = 16  # that rates are taken at
_AT_ONCE = 10  # users that are decoded together; more take turns in groups, which is a rate that holds too


@dataclass(frozen=True)
class SideInformation:
    """What is said beside the sum.

    Attributes:
        pilots: channel uses.
        uplink_bits, downlink_bits: of all users together.
        uplink_s, downlink_s: s; `uplink_s` with the pilots.
    """

    pilots: int
    uplink_bits: int
    downlink_bits: int
    uplink_s: float
    downlink_s: float

    @property
    def seconds(self) -> float:
        """Return the time of all of it, s."""
        return self.uplink_s + self.downlink_s

    @property
    def bits(self) -> int:
        """Return the bits of both directions."""
        return self.uplink_bits + self.downlink_bits


@cache
def _sets(users: int) -> NDArray[np.float64]:
    """Return all sets of users but the empty one, (2^users - 1, users) of 0 and 1."""
    numbers = np.arange(1, 1 << users)
    return ((numbers[:, np.newaxis] >> np.arange(users)) & 1).astype(np.float64)


def symmetric_rate(channels: ArrayLike, snr: float) -> float:
    """Return the largest rate that every user can send at once, bits per channel use.

    Args:
        channels: (M, N) or (M, F, N), M at most ten or so: all sets of users are looked at.
        snr: transmit power over the noise of an antenna.
    """
    checked = check_band(channels)
    positive("snr", snr)
    sets = _sets(len(checked))
    carriers = _some(checked)
    log_det = sum(_log_det(carriers[:, f], sets, snr) for f in range(carriers.shape[1])) / carriers.shape[1]
    return float((log_det / np.log(2.0) / sets.sum(axis=1)).min())


def _log_det(channels: Complex, sets: Real, snr: float) -> Real:
    gram = channels @ channels.conj().T  # det(I_N + H H^H) = det(I_M + H^H H)
    scaled = np.sqrt(sets)[:, :, np.newaxis] * gram * np.sqrt(sets)[:, np.newaxis, :]
    return np.asarray(np.linalg.slogdet(np.eye(len(channels)) + snr * scaled)[1])


def _some(channels: Complex) -> Complex:
    """Return some subcarriers of channels (M, N) or (M, F, N), evenly spaced; one where all are equal."""
    if channels.ndim == 2:
        return channels[:, np.newaxis]
    if bool((channels == channels[:, :1]).all()):
        return channels[:, :1]
    places = np.arange(min(_CARRIERS, channels.shape[1])) * channels.shape[1] // _CARRIERS
    return channels[:, np.unique(places)] if channels.shape[1] > _CARRIERS else channels


def multi_access_s(channels: ArrayLike, snr: float, bits: float, bandwidth_hz: float) -> float:
    """Return the seconds in which every user sends so many bits over the shared band.

    Args:
        channels: (M, N) or (M, F, N) of the users.
        snr: transmit power over the noise of an antenna.
        bits: of each user.
        bandwidth_hz: channel uses per second.

    Raises:
        ValueError: for bad channels, a rate that is not positive, or negative bits.
    """
    checked = check_band(channels)
    positive("bandwidth_hz", bandwidth_hz)
    non_negative("bits", bits)
    seconds = 0.0
    for begin in range(0, len(checked), _AT_ONCE):
        seconds += bits / (bandwidth_hz * symmetric_rate(checked[begin : begin + _AT_ONCE], snr))
    return seconds


def side_information(
    channels: ArrayLike,
    snr: float,
    bandwidth_hz: float,
    *,
    candidates: int,
    statistics: int,
    broadcast_bits: int,
    taps: int = 1,
    coefficients: int = 1,
) -> SideInformation:
    """Return what a round of these users says beside its sum; masks that users send are not in it.

    Args:
        channels: (M, N) or (M, F, N) of the scheduled users.
        snr: transmit power over the noise of an antenna, both ways.
        bandwidth_hz: channel uses per second.
        candidates: devices that send a pilot.
        statistics: numbers that each user sends.
        taps: L of every channel.
        coefficients: complex numbers that the server tells each user.
        broadcast_bits: that the server sends to all beside eta and those.
    """
    checked = check_band(channels)
    users = len(checked)
    up = statistics * NUMBER_BITS
    down = (1 + 2 * users * coefficients) * NUMBER_BITS + broadcast_bits
    seen = _some(checked)
    power = (seen.real**2 + seen.imag**2).sum(axis=-1)
    worst = float(np.log2(1.0 + positive("snr", snr) * power).mean(axis=1).min())
    uplink_s = candidates * taps / bandwidth_hz + multi_access_s(checked, snr, up, bandwidth_hz)
    downlink_s = down / (bandwidth_hz * worst)
    return SideInformation(candidates * taps, users * up, down, uplink_s, downlink_s)
