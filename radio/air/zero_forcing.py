"""Zero forcing over the air: every user inverts its own channel towards one receive beam.

With an amplitude w_k per user (arXiv 2508.00341, eqs. (5)-(7)),

    b_k = w_k sqrt(eta) (m^H h_k)^* / |m^H h_k|^2      so that m^H h_k b_k / sqrt(eta) = w_k
    eta = P0 min_k |m^H h_k|^2 / w_k^2                 the weakest user sends with full power
    error variance per real entry = sigma^2 / eta ("iq")  or  sigma^2 / (2 eta) ("real").

Over F subcarriers, user k inverts its channel h_k(f) on each of them towards the beam m(f) there. One receive
scaling for all of them leaves equal noise on every entry. A user's power is its mean over the symbols: with
the share e_k(f) of its energy that is on subcarrier f (1/F if its symbols are alike), |m^H h_k|^2 becomes

    g_k = 1 / sum_f e_k(f) / |m(f)^H h_k(f)|^2

which is no less than what a power limit on each subcarrier would leave (a mean of maxima is no less than the
maximum of means), and on a flat channel the same, bit for bit.
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
    """What the users send with, and what the receiver divides by; over F subcarriers, on each of them.

    Attributes:
        beam: (N,) unit-norm receive beam m; or (F, N).
        projected: (M,) m^H h_k of the channels that the design used; or (M, F).
        gain: (M,) |m^H h_k|^2, or g_k of the module text.
        transmit: (M,) complex b_k; 0 for a silent user; or (M, F).
        eta: receive scaling; infinite if all users are silent.
        noise_variance: error variance per real entry due to receiver noise.
        share: (M,) what each user delivers of its amplitude; 1 with zero forcing (`radio.air.regularised` has
            other ways).
    """

    beam: Complex
    projected: Complex
    gain: Real
    transmit: Complex
    eta: float
    noise_variance: float
    share: Real

    def arrival(self, true_channels: ArrayLike) -> Complex:
        """Return a_k = m^H h_k b_k / (sqrt(eta) w_k) over the true channels; 1 if silent."""
        passed = project(check_band(true_channels), self.beam)
        heard = np.where(self.projected == 0.0, 1.0, self.projected)
        return np.asarray(np.where(self.transmit != 0.0, each(self.share, passed) * passed / heard, 1.0))

    def power(self, user: int, mean_square: float, share: Real) -> float:
        """Return the mean of |b_k s_k|^2 over the symbols of a user.

        Args:
            user: k.
            mean_square: of its symbols s_k.
            share: (F,) of their energy that is on each subcarrier; not read without them.
        """
        sent = self.transmit[user]
        if sent.ndim == 0:
            return float(abs(sent) ** 2 * mean_square)
        first = abs(sent[0]) ** 2
        if first == 0.0:  # silent
            return 0.0
        level = np.abs(sent) ** 2
        return float(first * mean_square * (1.0 + float((level / level[0] - 1.0) @ share)))


def each(of_users: Real, like: Complex | Real) -> Real:
    """Return (M,) as it is, or as (M, 1) where `like` has subcarriers."""
    return of_users if like.ndim == 1 else of_users[:, np.newaxis]


def check_band(channels: ArrayLike) -> Complex:
    """Return `channels` as a complex array of shape (M, N) or, with subcarriers, (M, F, N).

    Raises:
        ValueError: as `radio.beamforming.problem.check_channels`.
    """
    array = np.asarray(channels)
    if array.ndim != 3:
        return check_channels(array)
    return check_channels(array.reshape(-1, array.shape[2])).reshape(array.shape)


def project(channels: Complex, beam: Complex) -> Complex:
    """Return m^H h_k, (M,) for channels (M, N); (M, F) for channels (M, F, N) and beams (F, N)."""
    if channels.ndim == 2:
        return np.asarray(channels @ beam.conj())
    # One product for each subcarrier, as there is one without subcarriers: equal channels, equal bits.
    parts = [np.ascontiguousarray(channels[:, f]) @ beam[f].conj() for f in range(channels.shape[1])]
    return np.stack(parts, axis=1)


def effective_gain(gain: Real, energy: Real | None = None) -> Real:
    """Return g_k of the module text, (M,), from |m(f)^H h_k(f)|^2, (M, F); of a flat channel (M,) itself.

    Args:
        gain: all > 0, or g_k is 0.
        energy: (M, F) share of each user's energy on each subcarrier; None: 1/F.
    """
    if gain.ndim == 1:
        return gain
    share = np.full(gain.shape, 1.0 / gain.shape[1]) if energy is None else energy
    with np.errstate(divide="ignore", invalid="ignore"):
        excess = (share * (gain[:, :1] / gain - 1.0)).sum(axis=1)
        return np.asarray(np.where((gain > 0.0).all(axis=1), gain[:, 0] / (1.0 + excess), 0.0))


def beamed_gain(channels: Complex, beam: Complex) -> Real:
    """Return the effective gain of each user, (M,), over channels (M, N) or (M, F, N)."""
    return effective_gain(np.asarray(np.abs(project(channels, beam)) ** 2))


def mean_over_band(values: Real) -> Real:
    """Return the mean over the subcarriers, (M,), of (M, F); of a flat channel (M,) itself."""
    if values.ndim == 1:
        return values
    return np.asarray(values[:, 0] + (values - values[:, :1]).mean(axis=1))


def zero_forcing(
    channels: Complex,
    beam: ArrayLike,
    amplitude: Real,
    *,
    power: float,
    noise_power: float,
    packing: Packing,
    energy: Real | None = None,
) -> ZeroForcing:
    """Design the transmit coefficients and the receive scaling (arXiv 2508.00341, eqs. (5)-(7)).

    Args:
        channels: (M, N), checked; as the server knows them. Over subcarriers (M, F, N).
        beam: (N,) receive beam, or (F, N); scaled to unit norm.
        amplitude: (M,) w_k >= 0; 0 for a silent user.
        power: P0 per user, watt (mean over the symbols).
        noise_power: receiver noise per antenna and channel use, watt; 0 is noiseless.
        packing: "iq" or "real".
        energy: (M, F) share of each user's energy on each subcarrier; None: 1/F.

    Raises:
        ValueError: for bad powers or names, or a beam of the wrong shape or orthogonal to a sending user.
    """
    choice("packing", packing, Packing)
    positive("power", power)
    non_negative("noise_power", noise_power)
    receive = _unit(beam, channels.shape[1:])
    sending = amplitude > 0.0
    projected = project(channels, receive)
    gain = projected.real**2 + projected.imag**2
    if not (gain[sending] > 0.0).all():
        deaf = (gain <= 0.0) if gain.ndim == 1 else (gain <= 0.0).any(axis=1)
        user = int(np.flatnonzero(sending & deaf)[0])
        raise ValueError(f"beam is orthogonal to the channel of user {user}; no power can invert a gain of 0")
    reach = effective_gain(gain, energy)
    transmit = np.zeros(projected.shape, dtype=np.complex128)
    eta = np.inf
    if sending.any():
        eta = float(power * (reach[sending] / amplitude[sending] ** 2).min())
        level = each(amplitude[sending] * np.sqrt(eta), projected)
        transmit[sending] = level * projected[sending].conj() / gain[sending]
    variance = noise_power / eta / (1.0 if packing == "iq" else 2.0)
    return ZeroForcing(receive, projected, reach, transmit, eta, variance, np.ones(len(channels)))


def _unit(beam: ArrayLike, shape: tuple[int, ...]) -> Complex:
    """Return beams of norm 1 in the last of these dimensions, (N,) or (F, N)."""
    receive = np.asarray(beam, dtype=np.complex128)
    norm = np.array([np.linalg.norm(one) for one in np.atleast_2d(receive)])
    if receive.shape != shape or not np.isfinite(norm).all() or not norm.all():
        worst = norm[np.argmin(np.where(np.isfinite(norm), norm, -1.0))]
        raise ValueError(f"beam has shape {receive.shape}, norm {worst}; expected {shape}, norm > 0")
    return np.asarray(receive / (norm[0] if receive.ndim == 1 else norm[:, np.newaxis]))
