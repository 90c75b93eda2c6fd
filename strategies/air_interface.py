"""The analog uplink of the over-the-air schemes, as a strategy is given it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from radio.air.ofdm import Ofdm
from radio.air.packing import symbols
from radio.air.transceiver import Mode
from radio.air.zero_forcing import Packing
from radio.channel import Cell, ChannelModel
from radio.channel.scene import Streams
from radio.channel.taps import TappedCell, tapped_cell
from radio.settings import Payload
from strategies.energy import Energy

FloatVector = npt.NDArray[np.float64]


@dataclass(frozen=True)
class AirInterface:
    """The analog uplink, in SI and linear units.

    Attributes:
        channel: places and fading, with the number of receive antennas N.
        path_loss: whether users differ in mean gain; gains are relative to their mean over the users.
        snr: P0 / sigma^2 per antenna at the mean channel gain.
        noise: False removes the receiver noise (the error-free reference).
        num_selected: M, users that send.
        method: scheduling policy, a name or ``package.module:function``.
        scheduler_options: passed to the policy.
        beamformer: solver of the beam of a user set.
        mode: normalisation of the updates.
        packing: real entries per channel use.
        payload: what is sent, updates or weights.
        channel_error_variance: of the server's channel estimate, relative to a gain of 1.
        csi_delay: rounds by which the channels that the server knows are old.
        recompute_beam: solve for the beam again once the sizes of the updates are known.
        certificate: also bound the joint optimum of every round.
        bandwidth: Hz, channel uses per second.
        fixed_time, compute_time: T0 and G of each user, s, (K,).
        latency_threshold: T_th, s.
        energy: what devices may spend; None: nothing is known of joules. Devices of unlike power arrive with
            gains that differ as their powers, relative to the mean, do.
        charge_side_information: whether pilots, statistics, coefficients and masks take time on the band, as
            `radio.air.side_information` says.
        ofdm: subcarriers, taps and offsets; None: one carrier over a flat channel, all users in time.
        clip_norm: to which the users clip their updates, or None. The analog uplink is then designed for
            updates of that norm, not for those that there are: it shows nothing of them but their noisy sum.
    """

    channel: ChannelModel
    path_loss: bool
    snr: float
    noise: bool
    num_selected: int
    method: str
    beamformer: str
    mode: Mode
    packing: Packing
    payload: Payload
    channel_error_variance: float
    csi_delay: int
    recompute_beam: bool
    certificate: bool
    bandwidth: float
    fixed_time: FloatVector
    compute_time: FloatVector
    latency_threshold: float
    scheduler_options: Mapping[str, Any] = field(default_factory=dict)
    energy: Energy | None = None
    charge_side_information: bool = False
    clip_norm: float | None = None
    ofdm: Ofdm | None = None

    @property
    def noise_power(self) -> float:
        """Receiver noise per antenna, for unit transmit power."""
        return 1.0 / self.snr if self.noise else 0.0

    @cached_property
    def amplitude(self) -> FloatVector | None:
        """Return each device's amplitude relative to that of the mean power, (K,); None: all alike."""
        power = None if self.energy is None else self.energy.power
        if power is None or bool((power == power[0]).all()):
            return None
        return np.asarray(np.sqrt(power / power.mean()))

    def cell(self, stream: Streams) -> Cell:
        """Return the emulated channels of one tap; `stream` as for `radio.channel.Cell`."""
        return Cell(self.channel, stream, error_variance=self.channel_error_variance, **self._knowledge)

    def band(self, stream: Streams) -> TappedCell | None:
        """Return the emulated channels of all taps; None without subcarriers."""
        if self.ofdm is None:
            return None
        return tapped_cell(
            self.channel,
            stream,
            taps=self.ofdm.taps,
            decay=self.ofdm.tap_decay,
            error_variance=self.channel_error_variance,
            **self._knowledge,
        )

    @property
    def _knowledge(self) -> dict[str, Any]:
        return {"spread": "relative" if self.path_loss else "none", "delay": self.csi_delay}

    # What an upload takes ------------------------------------------------------------------------

    def uses(self, size: int) -> int:
        """Return the channel uses of so many weights."""
        return symbols(size, self.packing) if self.ofdm is None else self.ofdm.uses(size, self.packing)

    @property
    def useful_band(self) -> float:
        """Return the channel uses per second, Hz."""
        return self.bandwidth if self.ofdm is None else self.ofdm.useful(self.bandwidth)

    def airtime(self, size: int) -> float:
        """Return the time of an analog upload of so many weights, s."""
        return self.uses(size) / self.useful_band

    @property
    def taps(self) -> int:
        """Return L: 1 on a flat channel."""
        return 1 if self.ofdm is None else self.ofdm.taps

    @property
    def coefficients(self) -> int:
        """Return the complex numbers from which a user knows what to send with on every subcarrier.

        Of the L taps that a beam makes of its channel, or of the subcarriers, whichever are fewer.
        """
        if self.ofdm is None or self.taps == 1:
            return 1
        return sum(min(self.taps, members.size) for members in self.ofdm.group)
