"""One emulated cell: where its devices are, and what their uplinks are in any round.

What changes slowly (places, path loss, shadowing) is `radio.channel.scene`, what changes from round to round
`radio.channel.small_scale`; both draw round g from streams of that round, so that any round can be drawn
alone and in any order. A round's channels bring their rate model: what shares out the band
and what accounts for the latency are given the same object.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from radio.arrays import ComplexArray, FloatArray, choice, count, non_negative, positive
from radio.channel.fading import ChannelModel
from radio.channel.rates import RateModel, fixed_noise, proportional_noise
from radio.channel.scene import Scene, Streams
from radio.channel.small_scale import FADINGS, Fading

NoiseModel = Literal["fixed", "proportional"]
Spread = Literal["absolute", "relative", "none"]


@dataclass(frozen=True)
class Uplink:
    """The link budget that turns gains into rates.

    Attributes:
        bandwidth: B, Hz, shared by all devices.
        transmit_power: p, W; a number or (K,).
        noise_power: sigma^2 over the whole band, W.
        noise_model: the same noise power for every share of the band, or proportional to the share.
    """

    bandwidth: float
    transmit_power: float | FloatArray
    noise_power: float
    noise_model: NoiseModel = "fixed"

    def __post_init__(self) -> None:
        for name in ("bandwidth", "transmit_power", "noise_power"):
            positive(name, getattr(self, name))
        choice("noise_model", self.noise_model, NoiseModel)

    def rates(self, gain: FloatArray, transmit_power: ArrayLike | None = None) -> RateModel:
        """Return the rates over channels of these power gains, (..., K), at these powers if given."""
        power = self.transmit_power if transmit_power is None else transmit_power
        if self.noise_model == "proportional":
            density = self.noise_power / self.bandwidth
            return proportional_noise(gain, self.bandwidth, power, density)
        return fixed_noise(gain, self.bandwidth, power, self.noise_power)


@dataclass(frozen=True)
class ChannelState:
    """The uplinks of one round.

    Attributes:
        gain: (K,) power gain after combining over the antennas, linear.
        rates: of these gains: what the uploads take.
        known: the uplinks as the server knows them when it plans; None: as they are.
    """

    gain: FloatArray
    rates: RateModel
    known: ChannelState | None = None

    @property
    def planned(self) -> ChannelState:
        """Return the uplinks that a plan goes by."""
        return self if self.known is None else self.known

    def of(self, devices: NDArray[np.intp]) -> ChannelState:
        """Return the uplinks of some devices, in that order."""
        known = None if self.known is None else self.known.of(devices)
        return ChannelState(self.gain[devices], self.rates.of(devices), known)

    def within(self, share: float) -> ChannelState:
        """Return the uplinks where only so much of the band is to be shared out, in (0, 1]."""
        known = None if self.known is None else self.known.within(share)
        return ChannelState(self.gain, self.rates.within(share), known)


@dataclass(frozen=True)
class ChannelVectors:
    """The uplinks of one round at every antenna.

    Attributes:
        true: (K, N) complex channels that signals pass; of several taps or subcarriers (K, L, N).
        known: the server's estimate; `true` itself where it is perfect.
    """

    true: ComplexArray
    known: ComplexArray

    @property
    def perfect(self) -> bool:
        """Whether the server knows the channels."""
        return self.known is self.true

    def scaled(self, amplitude: FloatArray) -> ChannelVectors:
        """Return the channels of users that send with these amplitudes, (K,)."""
        level = amplitude.reshape(-1, *[1] * (self.true.ndim - 1))
        true = self.true * level
        return ChannelVectors(true, true if self.perfect else self.known * level)

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
        error_variance: of the server's estimate of each antenna's channel.
        relative_error: the same, relative to the device's mean gain; the two add up.
        delay: rounds by which the server's knowledge is old; in the first rounds it knows the first.
        margin: by which a plan divides the gains that it knows, linear.
    """

    model: ChannelModel
    stream: Streams
    uplink: Uplink | None = None
    spread: Spread = "absolute"
    error_variance: float = 0.0
    relative_error: float = 0.0
    delay: int = 0
    margin: float = 1.0

    def __post_init__(self) -> None:
        choice("spread", self.spread, Spread)
        non_negative("error_variance", self.error_variance)
        non_negative("relative_error", self.relative_error)
        count("delay", self.delay)
        positive("margin", self.margin)

    @cached_property
    def scene(self) -> Scene:
        """Return places, path loss and shadowing."""
        return Scene(self.model, self.stream, keep=self.delay + 2)

    @cached_property
    def fading(self) -> Fading:
        """Return what changes from round to round."""
        options = dict(self.model.fading_options)
        fading: Fading = FADINGS.select(self.model.fading, options)(self.scene, **options)
        return fading

    @property
    def _noisy(self) -> bool:
        return self.error_variance > 0 or self.relative_error > 0

    @property
    def distances(self) -> FloatArray:
        """Return how far each device is from the server at the start, (K,) m."""
        return self.scene.distance()

    @cached_property
    def mean_gain(self) -> FloatArray:
        """Return the mean power gain of one antenna at the start, (K,), linear: path loss and shadowing."""
        return self._mean_gain(1)

    def _mean_gain(self, server_round: int) -> FloatArray:
        if self.spread == "none":
            return np.ones(self.model.num_devices)
        own = getattr(self.fading, "mean_gain", None)  # of recorded channels
        gain: FloatArray = self.scene.mean_gain(server_round) if own is None else own
        return gain if self.spread == "absolute" else np.asarray(gain / gain.mean())

    def mean_state(self) -> ChannelState:
        """Return the round of mean gains: the limit without fading."""
        return self._state(self.mean_gain * self.model.antennas)

    def draw(self, server_round: int) -> ChannelState:
        """Return the gains of a round and their rates, true and as the server knows them.

        Raises:
            ValueError: if the cell has no uplink.
        """
        if self._noisy:  # an estimate is made of what each antenna sees
            vectors = self.draw_vectors(server_round)
            true, known = (
                np.asarray((h.real**2 + h.imag**2).sum(axis=-1)) for h in (vectors.true, vectors.known)
            )
        else:
            known = self._gain(max(server_round - self.delay, 1))
            true = known if self.delay == 0 or server_round == 1 else self._gain(server_round)
        state = self._state(true)
        if known is true and self.margin == 1.0:
            return state
        return ChannelState(state.gain, state.rates, self._state(known / self.margin))

    def _gain(self, server_round: int) -> FloatArray:
        return self.fading.gain(self._mean_gain(server_round), server_round)

    def draw_vectors(self, server_round: int) -> ChannelVectors:
        """Return the channel vectors of a round, true and as the server knows them."""
        earlier = max(server_round - self.delay, 1)
        known = self.fading.vectors(self._mean_gain(earlier), earlier)
        true = known
        if earlier != server_round:
            true = self.fading.vectors(self._mean_gain(server_round), server_round)
        if not self._noisy:
            return ChannelVectors(true, known)
        rng = self.stream("channel", earlier)
        rng.standard_normal((*known.shape, 2))  # what the channel itself was made from
        variance = self.error_variance + self.relative_error * self._mean_gain(earlier)[:, np.newaxis]
        return ChannelVectors(true, estimate_channels(known, variance, rng))

    def _state(self, gain: FloatArray) -> ChannelState:
        if self.uplink is None:
            raise ValueError("this cell has no uplink; give Cell(uplink=...) to draw rates")
        return ChannelState(gain, self.uplink.rates(gain))


def estimate_channels(
    channels: ComplexArray, error_variance: ArrayLike, rng: np.random.Generator
) -> ComplexArray:
    """Return h + e with e ~ CN(0, error_variance): what a noisy pilot shows of the channels (..., N).

    Raises:
        ValueError: if `error_variance` is negative or not finite.
    """
    variance = non_negative("error_variance", error_variance)
    pair = rng.standard_normal((*channels.shape, 2))
    return np.asarray(channels + (pair[..., 0] + 1j * pair[..., 1]) * np.sqrt(0.5 * variance))
