"""OFDM for sums over the air: L taps become F subcarriers, and users are a little late and a little turned.

A channel of L taps h_0 .. h_{L-1}, one sample apart, is on subcarrier f of F (f counts from the middle of the
band, in cycles per sample)

    H(f) = sum_l h_l exp(-j 2 pi f l)

as long as taps and delays together keep to the cyclic prefix, which is sent again in front of every OFDM
symbol and costs its time. A user whose signal arrives tau samples off the middle of all, with its
carrier turned by phi, is heard through H(f) exp(j (phi - 2 pi f tau)) (Goldsmith, *Wireless Communications*,
2005, section 12.4). What pilots show of the offsets is part of the channel estimate and costs nothing;
`delay_spread` and `phase_std` are what synchronisation leaves over: the receiver does not know it, and its
sum is off by

    E |exp(j (phi - 2 pi f tau)) - 1|^2 = 2 (1 - exp(-phase_std^2 / 2) sinc(f delay_spread))

of each user's power on that subcarrier, sinc(x) = sin(pi x) / (pi x).

Symbol i of an upload goes to subcarrier i mod F.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from radio.air.packing import symbols
from radio.air.zero_forcing import Packing
from radio.arrays import ComplexArray, FloatArray, count, non_negative, positive
from schema import in_si


@dataclass(frozen=True)
class Offsets:
    """How far off users are: `delay` (K,) in samples, `phase` (K,) in radians."""

    delay: FloatArray
    phase: FloatArray


@dataclass(frozen=True)
class Ofdm:
    """The subcarriers of an upload and what is between the users and them.

    Attributes:
        subcarriers: F; 1: a single carrier, as without OFDM.
        groups: G groups of neighbouring subcarriers; each has a receive beam of its own.
        prefix: samples in front of every OFDM symbol.
        taps: L of every channel.
        tap_decay: ratio of the power of a tap to that of the next one, linear.
        delay_spread: users arrive within so many samples, uniformly. The receiver's DFT begins with the first
            of them, and it turns every subcarrier back by the middle of what may come.
        phase_std: deviation of each user's phase, normal, radians.
    """

    subcarriers: int = 1
    groups: int = 1
    prefix: int = 0
    taps: int = 1
    tap_decay: float = 1.0
    delay_spread: float = 0.0
    phase_std: float = 0.0

    def __post_init__(self) -> None:
        for name in ("subcarriers", "groups", "taps"):
            count(name, getattr(self, name), 1)
        count("prefix", self.prefix)
        positive("tap_decay", self.tap_decay)
        non_negative("delay_spread", self.delay_spread)
        non_negative("phase_std", self.phase_std)
        if self.groups > self.subcarriers:
            raise ValueError(f"groups = {self.groups} is above subcarriers = {self.subcarriers}")
        if self.prefix > self.subcarriers:
            raise ValueError(
                f"prefix = {self.prefix} is above subcarriers = {self.subcarriers}: it repeats the end of an "
                "OFDM symbol, and cannot be longer"
            )
        needed = self.taps - 1 + self.delay_spread
        if needed > self.prefix:
            raise ValueError(
                f"prefix = {self.prefix} samples is too short: {self.taps} taps and users up to "
                f"{self.delay_spread:g} samples apart need {int(np.ceil(needed))}; beyond it OFDM symbols "
                "run into each other"
            )

    @property
    def synchronised(self) -> bool:
        """Whether users arrive as the receiver expects them."""
        return self.delay_spread == 0 and self.phase_std == 0

    @cached_property
    def frequency(self) -> FloatArray:
        """Return f of each subcarrier, (F,) cycles per sample, 0 in the middle of the band."""
        return np.asarray((np.arange(self.subcarriers) - self.subcarriers // 2) / self.subcarriers)

    @cached_property
    def group(self) -> tuple[NDArray[np.intp], ...]:
        """Return the subcarriers of each group."""
        return tuple(np.array_split(np.arange(self.subcarriers), self.groups))

    @cached_property
    def centre(self) -> NDArray[np.intp]:
        """Return the subcarrier in the middle of each group, (G,)."""
        return np.array([members[members.size // 2] for members in self.group])

    def useful(self, bandwidth: float) -> float:
        """Return the channel uses per second of a band, Hz: the prefix carries nothing new."""
        return bandwidth * self.subcarriers / (self.subcarriers + self.prefix)

    def uses(self, size: int, packing: Packing) -> int:
        """Return the channel uses of `size` real entries: whole OFDM symbols."""
        return -(-symbols(size, packing) // self.subcarriers) * self.subcarriers

    def response(self, taps: ComplexArray, carriers: NDArray[np.intp] | None = None) -> ComplexArray:
        """Return the channels (K, F, N) of taps (K, L, N), on all subcarriers or on some of them."""
        f = self.frequency if carriers is None else self.frequency[carriers]
        # The first tap is added as it is: one tap alone is the flat channel, bit for bit.
        channels = np.repeat(taps[:, :1], f.size, axis=1)
        for place in range(1, taps.shape[1]):
            turned = np.exp(-2j * np.pi * place * f)
            channels += taps[:, place : place + 1] * turned[np.newaxis, :, np.newaxis]
        return channels

    def draw_offsets(self, users: int, rng: np.random.Generator) -> Offsets:
        """Return how far off each user is in a round."""
        delay = self.delay_spread * (rng.random(users) - 0.5)
        return Offsets(delay, self.phase_std * rng.standard_normal(users))

    def rotation(self, offsets: Offsets) -> ComplexArray:
        """Return what offsets turn each subcarrier by, (K, F)."""
        ramp = np.outer(offsets.delay, self.frequency)
        return np.asarray(np.exp(1j * (offsets.phase[:, np.newaxis] - 2 * np.pi * ramp)))


def ofdm(air: Any) -> Ofdm | None:
    """Return what the keys below `air` say; None: one carrier, a flat channel and all in time."""
    if air.subcarriers == 1 and air.phase_error_deg == 0:
        return None
    return Ofdm(
        subcarriers=air.subcarriers,
        groups=air.subcarrier_groups,
        prefix=air.cyclic_prefix,
        taps=air.taps,
        tap_decay=in_si(air)["tap_decay"],
        delay_spread=air.timing_spread,
        phase_std=in_si(air)["phase_error"],
    )
