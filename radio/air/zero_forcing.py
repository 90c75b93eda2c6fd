"""Zero forcing over the air: every user inverts its own channel towards one receive beam.

With an amplitude w_k per user (arXiv 2508.00341, eqs. (5)-(7)),

    b_k = w_k sqrt(eta) (m^H h_k)^* / |m^H h_k|^2      so that m^H h_k b_k / sqrt(eta) = w_k
    eta = P0 min_k |m^H h_k|^2 / w_k^2                 the weakest user sends with full power
    error variance per real entry = sigma^2 / eta ("iq")  or  sigma^2 / (2 eta) ("real").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from radio.arrays import choice, non_negative, positive
from radio.beamforming.problem import Complex, Real, check_channels

Packing = Literal["iq", "real"]


@dataclass(frozen=True)
class ZeroForcing:
    """What the users send with, and what the receiver divides by.

    Attributes:
        beam: (N,) unit-norm receive beam m.
        projected: (M,) m^H h_k of the channels that the design used.
        transmit: (M,) complex b_k; 0 for a silent user.
        eta: receive scaling; infinite if all users are silent.
        noise_variance: error variance per real entry due to receiver noise.
        share: (M,) what each user delivers of its amplitude; 1 with zero forcing (`radio.air.regularised` has
            other ways).
    """

    beam: Complex
    projected: Complex
    transmit: Complex
    eta: float
    noise_variance: float
    share: Real

    def arrival(self, true_channels: ArrayLike) -> Complex:
        """Return a_k = m^H h_k b_k / (sqrt(eta) w_k), (M,), over the true channels (M, N); 1 if silent."""
        passed = check_channels(true_channels) @ self.beam.conj()
        heard = np.where(self.projected == 0.0, 1.0, self.projected)
        return np.asarray(np.where(self.transmit != 0.0, self.share * passed / heard, 1.0))


def zero_forcing(
    channels: Complex, beam: ArrayLike, amplitude: Real, *, power: float, noise_power: float, packing: Packing
) -> ZeroForcing:
    """Design the transmit coefficients and the receive scaling (arXiv 2508.00341, eqs. (5)-(7)).

    Args:
        channels: (M, N), checked; as the server knows them.
        beam: (N,) receive beam; scaled to unit norm.
        amplitude: (M,) w_k >= 0; 0 for a silent user.
        power: P0 per user, watt (mean over the symbols).
        noise_power: receiver noise per antenna and channel use, watt; 0 is noiseless.
        packing: "iq" or "real".

    Raises:
        ValueError: for bad powers or names, or a beam of the wrong shape or orthogonal to a sending user.
    """
    choice("packing", packing, Packing)
    positive("power", power)
    non_negative("noise_power", noise_power)
    receive = np.asarray(beam, dtype=np.complex128)
    norm = float(np.linalg.norm(receive))
    if receive.shape != (channels.shape[1],) or not np.isfinite(norm) or norm == 0.0:
        raise ValueError(
            f"beam has shape {receive.shape}, norm {norm}; expected ({channels.shape[1]},), norm > 0"
        )
    receive = receive / norm
    sending = amplitude > 0.0
    projected = channels @ receive.conj()
    gain = projected.real**2 + projected.imag**2
    if not (gain[sending] > 0.0).all():
        user = int(np.flatnonzero(sending & (gain <= 0.0))[0])
        raise ValueError(f"beam is orthogonal to the channel of user {user}; no power can invert a gain of 0")
    transmit = np.zeros(len(channels), dtype=np.complex128)
    eta = np.inf
    if sending.any():
        eta = float(power * (gain[sending] / amplitude[sending] ** 2).min())
        transmit[sending] = amplitude[sending] * np.sqrt(eta) * projected[sending].conj() / gain[sending]
    variance = noise_power / eta / (1.0 if packing == "iq" else 2.0)
    return ZeroForcing(receive, projected, transmit, eta, variance, np.ones(len(channels)))
