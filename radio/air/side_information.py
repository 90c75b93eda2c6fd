"""What an over-the-air round says beside its analog sum: pilots, statistics, coefficients and masks.

The emulation takes these for free, as the papers do; here is what they take on the same band.

* Pilots: one channel use per candidate, from which every antenna estimates its channel.
* Uplink numbers and masks are sent digitally by all users at once. With S the users that are still decoded,
  any equal rate r with

      |S| r <= log2 det(I + rho sum_{k in S} h_k h_k^H)      for every set S of users

  can be sent (the multi-access channel with N antennas; Tse and Viswanath 2005, section 10.1): the least of
  these bounds per user is the rate.
* Downlink numbers go to all users at the rate of the worst of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from radio.arrays import non_negative, positive
from radio.beamforming.problem import check_channels

NUMBER_BITS = 32  # of a statistic or a real coefficient
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
        channels: (M, N), M at most ten or so: all sets of users are looked at.
        snr: transmit power over the noise of an antenna.
    """
    checked = check_channels(channels)
    positive("snr", snr)
    sets = _sets(len(checked))
    gram = checked @ checked.conj().T  # det(I_N + H H^H) = det(I_M + H^H H)
    scaled = np.sqrt(sets)[:, :, np.newaxis] * gram * np.sqrt(sets)[:, np.newaxis, :]
    _, log_det = np.linalg.slogdet(np.eye(len(checked)) + snr * scaled)
    return float((log_det / np.log(2.0) / sets.sum(axis=1)).min())


def multi_access_s(channels: ArrayLike, snr: float, bits: float, bandwidth_hz: float) -> float:
    """Return the seconds in which every user sends so many bits over the shared band.

    Args:
        channels: (M, N) of the users.
        snr: transmit power over the noise of an antenna.
        bits: of each user.
        bandwidth_hz: channel uses per second.

    Raises:
        ValueError: for bad channels, a rate that is not positive, or negative bits.
    """
    checked = check_channels(channels)
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
    broadcast_bits: int = 0,
) -> SideInformation:
    """Return what a round of these users says beside its sum; masks that users send are not in it.

    Args:
        channels: (M, N) of the scheduled users.
        snr: transmit power over the noise of an antenna, both ways.
        bandwidth_hz: channel uses per second.
        candidates: devices that send a pilot.
        statistics: numbers that each user sends.
        broadcast_bits: that the server sends to all beside eta and each user's complex coefficient.
    """
    checked = check_channels(channels)
    users = len(checked)
    up = statistics * NUMBER_BITS
    down = (1 + 2 * users) * NUMBER_BITS + broadcast_bits
    worst = float((checked.real**2 + checked.imag**2).sum(axis=1).min())
    uplink_s = candidates / bandwidth_hz + multi_access_s(checked, snr, up, bandwidth_hz)
    downlink_s = down / (bandwidth_hz * float(np.log2(1.0 + positive("snr", snr) * worst)))
    return SideInformation(candidates, users * up, down, uplink_s, downlink_s)
