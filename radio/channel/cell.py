"""One emulated cell: where its devices are, and what their uplinks are in any round.

Places and mean gains are drawn once; the channels of round g come from a stream of that round, so that any
round can be drawn alone and in any order. A round's channels bring their rate model: what shares out the band
and what accounts for the latency are given the same object.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from radio.arrays import ComplexArray, FloatArray, choice, non_negative, positive
from radio.channel.fading import ChannelModel, draw_gain, draw_vectors, mean_gain, place_devices
from radio.channel.rates import RateModel, fixed_noise, proportional_noise

Streams = Callable[..., np.random.Generator]
"""`stream(purpose, *indices)`: independent generators by key, e.g. `functools.partial(generator, seed)`."""

NoiseModel = Literal["fixed", "proportional"]
Spread = Literal["absolute", "relative", "none"]


@dataclass(frozen=True)
class Uplink:
    """The link budget that turns gains into rates.

    Attributes:
        bandwidth: B, Hz, shared by all devices.
        transmit_power: p, W.
        noise_power: sigma^2 over the whole band, W.
        noise_model: the same noise power for every share of the band, or proportional to the share.
    """

    bandwidth: float
    transmit_power: float
    noise_power: float
    noise_model: NoiseModel = "fixed"

    def __post_init__(self) -> None:
        for name in ("bandwidth", "transmit_power", "noise_power"):
            positive(name, getattr(self, name))
        choice("noise_model", self.noise_model, NoiseModel)

    def rates(self, gain: FloatArray) -> RateModel:
        """Return the rates over channels of these power gains, (..., K)."""
        if self.noise_model == "proportional":
            density = self.noise_power / self.bandwidth
            return proportional_noise(gain, self.bandwidth, self.transmit_power, density)
        return fixed_noise(gain, self.bandwidth, self.transmit_power, self.noise_power)


@dataclass(frozen=True)
class ChannelState:
    """The uplinks of one round.

    Attributes:
        gain: (K,) power gain after combining over the antennas, linear.
        rates: of these gains.
    """

    gain: FloatArray
    rates: RateModel

    def of(self, devices: NDArray[np.intp]) -> ChannelState:
        """Return the uplinks of some devices, in that order."""
        return ChannelState(self.gain[devices], self.rates.of(devices))


@dataclass(frozen=True)
class ChannelVectors:
    """The uplinks of one round at every antenna.

    Attributes:
        true: (K, N) complex channels that signals pass.
        known: (K, N) the server's estimate; `true` itself where it is perfect.
    """

    true: ComplexArray
    known: ComplexArray

    @property
    def perfect(self) -> bool:
        """Whether the server knows the channels."""
        return self.known is self.true

    def of(self, users: NDArray[np.intp]) -> ChannelVectors:
        """Return the channels of some users, in that order."""
        true = self.true[users]
        return ChannelVectors(true, true if self.perfect else self.known[users])


@dataclass(frozen=True, eq=False)
class Cell:
    """A cell with a multi-antenna server in its centre.

    Attributes:
        model: the law of places and fading.
        stream: keyed random streams; "placement" and ("channel", round) are used.
        uplink: the link budget; None where only channel vectors are drawn.
        spread: gains as they are, relative to their mean over the devices, or all 1.
        error_variance: of the server's estimate of each antenna's channel, for `draw_vectors`.
    """

    model: ChannelModel
    stream: Streams
    uplink: Uplink | None = None
    spread: Spread = "absolute"
    error_variance: float = 0.0

    def __post_init__(self) -> None:
        choice("spread", self.spread, Spread)
        non_negative("error_variance", self.error_variance)

    @cached_property
    def _slow(self) -> tuple[FloatArray, FloatArray]:
        stream = self.stream("placement")
        distances = place_devices(self.model, stream)
        return distances, mean_gain(distances, self.model, stream)

    @property
    def distances(self) -> FloatArray:
        """Return how far each device is from the server, (K,) m."""
        return self._slow[0]

    @cached_property
    def mean_gain(self) -> FloatArray:
        """Return the mean power gain of one antenna, (K,), linear: path loss and shadowing."""
        if self.spread == "none":
            return np.ones(self.model.num_devices)
        gain = self._slow[1]
        return gain if self.spread == "absolute" else np.asarray(gain / gain.mean())

    def mean_state(self) -> ChannelState:
        """Return the round of mean gains: the limit without fading."""
        return self._state(self.mean_gain * self.model.antennas)

    def draw(self, server_round: int) -> ChannelState:
        """Return the gains of a round and their rates.

        Raises:
            ValueError: if the cell has no uplink.
        """
        return self._state(draw_gain(self.model, self.mean_gain, self.stream("channel", server_round)))

    def draw_vectors(self, server_round: int) -> ChannelVectors:
        """Return the channel vectors of a round, true and as the server knows them."""
        stream = self.stream("channel", server_round)
        true = draw_vectors(self.model, self.mean_gain, stream)
        if self.error_variance == 0:
            return ChannelVectors(true, true)
        return ChannelVectors(true, estimate_channels(true, self.error_variance, stream))

    def _state(self, gain: FloatArray) -> ChannelState:
        if self.uplink is None:
            raise ValueError("this cell has no uplink; give Cell(uplink=...) to draw rates")
        return ChannelState(gain, self.uplink.rates(gain))


def estimate_channels(
    channels: ComplexArray, error_variance: float, rng: np.random.Generator
) -> ComplexArray:
    """Return h + e with e ~ CN(0, error_variance I): what a noisy pilot shows of the channels (..., N).

    Raises:
        ValueError: if `error_variance` is negative or not finite.
    """
    non_negative("error_variance", error_variance)
    pair = rng.standard_normal((*channels.shape, 2)) * np.sqrt(0.5 * error_variance)
    return np.asarray(channels + pair[..., 0] + 1j * pair[..., 1])
