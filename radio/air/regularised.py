"""Receive scaling that trades bias against noise: not every user inverts its channel all the way.

Zero forcing scales by the weakest user and pays for it in noise. With 1/sqrt(eta) = x and reach
c_k = sqrt(P0) |m^H h_k|, user k can deliver up to x c_k of its amplitude w_k and delivers min(w_k, x c_k).
What is missing, d_k = max(0, w_k - x c_k), is an error too. For symbols u_k of unit power with pairwise
correlation r,

    MSE(x) = (1 - r) sum_k d_k^2 + r (sum_k d_k)^2 + sigma^2 x^2        per real entry, "iq"
                                                     (sigma^2 / 2 for "real")

is convex and piecewise quadratic in x; among the users A that fall short its minimum is at

    x = [(1 - r) sum_A c w + r (sum_A c) (sum_A w)] / [sigma^2 + (1 - r) sum_A c^2 + r (sum_A c)^2]

(or at the w_k / c_k of the next user, where the slope jumps), and A holds the users of the largest w_k / c_k.
For r = 0 this is Cao, Zhu, Xu and Huang, "Optimized power control for over-the-air computation in fading
channels", IEEE TWC 2020 (arXiv 1906.06858), Theorem 1; updates of one round are alike (r > 0), and then a
bias that all users share costs more.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from radio.air.zero_forcing import Packing, ZeroForcing, each, zero_forcing
from radio.arrays import non_negative
from radio.beamforming.problem import Complex, Real


@dataclass(frozen=True)
class Scaling:
    """The receive scaling of least mean squared error.

    Attributes:
        inverse_root: x = 1/sqrt(eta).
        share: (M,) what each user delivers of its amplitude, min(1, x c_k / w_k); 1 where w_k = 0.
        mse: per real entry.
        noise: the part of `mse` that is noise.
    """

    inverse_root: float
    share: Real
    mse: float
    noise: float


def mean_squared_error(
    inverse_root: float, reach: ArrayLike, amplitude: ArrayLike, noise: float, correlation: float = 0.0
) -> float:
    """Return MSE(x) of the module text; arguments as for `best_scaling`."""
    missing = np.maximum(0.0, np.asarray(amplitude) - inverse_root * np.asarray(reach))
    bias = (1.0 - correlation) * float(missing @ missing) + correlation * float(missing.sum()) ** 2
    return bias + noise * inverse_root**2


def best_scaling(reach: ArrayLike, amplitude: ArrayLike, noise: float, correlation: float = 0.0) -> Scaling:
    """Return the scaling that minimises the mean squared error, in closed form.

    Args:
        reach: (M,) c_k > 0, sqrt(W).
        amplitude: (M,) w_k >= 0.
        noise: what x^2 is multiplied by, watt: sigma^2 ("iq") or sigma^2 / 2 ("real").
        correlation: r in [0, 1] between the symbols of any two users.

    Raises:
        ValueError: for values outside these ranges.
    """
    c, w = np.asarray(reach, np.float64), np.asarray(amplitude, np.float64)
    non_negative("noise", noise)
    if not 0.0 <= correlation <= 1.0:
        raise ValueError(f"correlation = {correlation}; it must be between 0 and 1")
    if c.shape != w.shape or c.ndim != 1 or not (c > 0.0).all() or not (w >= 0.0).all():
        raise ValueError(f"reach = {c!r} must be positive and amplitude = {w!r} not negative, one per user")
    need = w / c  # the x from which on a user falls short no more
    order = np.argsort(-need, kind="stable")
    c_sum, w_sum = np.cumsum(c[order]), np.cumsum(w[order])
    cw, cc = np.cumsum(c[order] * w[order]), np.cumsum(c[order] ** 2)
    above = (1.0 - correlation) * cw + correlation * c_sum * w_sum
    below = noise + (1.0 - correlation) * cc + correlation * c_sum**2
    # The slope of the MSE grows with x, so the first set whose minimum is not below its own piece is the one.
    # For r > 0 the slope jumps where a user begins to fall short, and the minimum may be there.
    x, need = above / below, need[order]
    first = int(np.argmax(x >= np.append(need[1:], 0.0)))
    best = min(float(x[first]), float(need[first]))
    share = np.ones(len(c))
    short = (w > best * c) & (w > 0.0)
    share[short] = best * c[short] / w[short]
    return Scaling(best, share, mean_squared_error(best, c, w, noise, correlation), noise * best**2)


def regularised(
    channels: Complex,
    beam: ArrayLike,
    amplitude: Real,
    *,
    power: float,
    noise_power: float,
    packing: Packing,
    energy: Real | None = None,
    correlation: float = 0.0,
) -> ZeroForcing:
    """Return the transmit coefficients and the receive scaling of least mean squared error.

    Args:
        channels, beam, amplitude, power, noise_power, packing, energy: as for
            `radio.air.zero_forcing.zero_forcing`, which it equals without noise.
        correlation: r between the symbols of any two users.

    Raises:
        ValueError: as `zero_forcing` and `best_scaling`.
    """
    exact = zero_forcing(
        channels, beam, amplitude, power=power, noise_power=noise_power, packing=packing, energy=energy
    )
    sending = amplitude > 0.0
    if noise_power == 0.0 or not sending.any():
        return exact
    seen = exact.projected[sending]
    gain = np.abs(seen)
    reach = gain
    if gain.ndim == 2:  # as on the first subcarrier where all are alike
        first = np.ascontiguousarray(seen[:, 0])
        reach = np.abs(first) * np.sqrt(exact.gain[sending] / (first.real**2 + first.imag**2))
    noise = noise_power if packing == "iq" else 0.5 * noise_power
    found = best_scaling(np.sqrt(power) * reach, amplitude[sending], noise, correlation)
    eta = found.inverse_root**-2
    share = np.ones(len(channels))
    share[sending] = found.share
    transmit = exact.transmit.copy()
    level = share[sending] * amplitude[sending] * np.sqrt(eta)
    transmit[sending] = each(level, seen) * seen.conj() / gain**2
    return replace(exact, transmit=transmit, eta=eta, noise_variance=found.noise, share=share)
