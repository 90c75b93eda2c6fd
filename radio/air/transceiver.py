"""Over-the-air averaging: from real update vectors to symbols, through the channel, and back.

All selected users send at once. The server receives y = sum_k h_k b_k s_k + n on N antennas and estimates
the weighted sum of the symbols by r = m^H y / sqrt(eta) (arXiv 2508.00341, Section II). Written with a
transmit amplitude w_k per user, so that r targets sum_k w_k s_k:

    b_k = w_k sqrt(eta) (m^H h_k)^* / |m^H h_k|^2      zero forcing: m^H h_k b_k / sqrt(eta) = w_k
    eta = P0 min_k |m^H h_k|^2 / w_k^2                 the weakest user sends with full power
    error variance per real entry = sigma^2 / eta ("iq")  or  sigma^2 / (2 eta) ("real")

Normalisation of the real payload g_k (mean mu_k, variance sigma_k^2, weights phi_k summing to 1):

* "per_user": u_k = (g_k - mu_k) / sigma_k, w_k = phi_k sigma_k, the server adds sum phi_k mu_k. Exact for
  users of unlike size; costs two error-free numbers per user.
* "common": u_k = (g_k - mu) / nu with mu = sum phi_k mu_k and nu^2 the *largest* mean of (g_k - mu)^2, so
  that every user keeps to its power; w_k = phi_k nu. The published setting of equal symbol variance.

Packing: "iq" puts two real entries on one complex symbol, (u_2i + j u_2i+1)/sqrt(2); "real" sends one and
keeps the real part: half the noise for twice the airtime.

With an imperfect channel estimate everything is designed from it while the signal passes the true channel:
user k arrives with a_k = m^H h_k b_k / (sqrt(eta) w_k) in place of 1. With d_k = w_k (a_k - 1) and symbols
u_k of mean m_k and deviation s_k that are independent over the users, this adds

    sum_k |d_k|^2 s_k^2 + |sum_k d_k m_k|^2            "iq"; "real" takes the real part of d_k

to the mean squared error per entry ("per_user": m_k = 0 and s_k = 1). Updates of one round are not
independent: `average` adds up the very misalignment of its updates.

Over F subcarriers (`radio.air.ofdm`) symbol i is sent on subcarrier i mod F: channels are (M, F, N), beams
(F, N), coefficients b_k and a_k (M, F), and means over the entries are means over the subcarriers too.

Memory is a few vectors of the model's size: users pass one at a time, in pieces.

One file, long as it is: the path of a sum through transmitters, air and receiver, in that order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from radio.air.packing import carriers, on_subcarriers, symbols, turn
from radio.air.zero_forcing import Packing, ZeroForcing, check_band, effective_gain, zero_forcing
from radio.arrays import choice, non_negative
from radio.beamforming.problem import Complex, Real

Mode = Literal["per_user", "common"]
Simulation = Literal["fast", "antennas"]
Vector = NDArray[np.floating]
Updates = NDArray[np.floating] | Sequence[Vector] | Callable[[int], Vector]
"""(M, d) array, a sequence of M vectors, or a function from the user's position to its vector (d,)."""

SILENT_STD = 1e-12  # a user of smaller deviation has nothing to send but its mean
_PIECE = 1 << 18  # entries handled at once, even


@dataclass(frozen=True)
class Statistics:
    """Mean and mean square of each user's update, (M,), and the number of entries d."""

    mean: Real
    mean_square: Real
    std: Real
    size: int


@dataclass(frozen=True)
class Link:
    """The analog uplink of one round, as the server designs it.

    Attributes:
        inverse: zero forcing of the channels that the design used.
        weights: (M,) aggregation weights phi_k, summing to 1.
        amplitude: (M,) w_k.
        shift: (M,) what user k subtracts before sending.
        divisor: (M,) what it divides by.
        offset: what the server adds back.
        power: P0 in watt.
        noise_power: sigma^2 per antenna in watt.
        packing: "iq" or "real".
        symbol_mean, symbol_std: (M,) mean and deviation of the normalised entries u_k.
    """

    inverse: ZeroForcing
    weights: Real
    amplitude: Real
    shift: Real
    divisor: Real
    offset: float
    power: float
    noise_power: float
    packing: Packing
    symbol_mean: Real
    symbol_std: Real

    @property
    def beam(self) -> Complex:
        """Return the (N,) unit-norm receive beam m; over subcarriers (F, N)."""
        return self.inverse.beam

    @property
    def transmit(self) -> Complex:
        """Return the (M,) complex transmit coefficients b_k; 0 for a silent user. Over subcarriers (M, F)."""
        return self.inverse.transmit

    @property
    def eta(self) -> float:
        """Return the receive scaling; infinite if all users are silent."""
        return self.inverse.eta

    @property
    def noise_variance(self) -> float:
        """Return the error variance per real entry due to receiver noise."""
        return self.inverse.noise_variance


@dataclass(frozen=True)
class AirAverage:
    """The server's estimate of sum_k phi_k g_k and how far off it is.

    Attributes:
        estimate: (d,) float64.
        realised_mse: mean over the entries of the squared error of this very round.
        predicted_mse: what `realised_mse` is in the mean over the receiver noise, given updates and channels:
            noise_variance + misalignment_variance.
        noise_variance: analytic, per real entry.
        misalignment_variance: mean over the entries of the squared error from arriving with a_k instead of 1;
            0 if the true channels are known.
        transmit_power: (M,) mean of |b_k s_k|^2 over the symbols, watt.
        symbols: channel uses.
    """

    estimate: Real
    realised_mse: float
    predicted_mse: float
    noise_variance: float
    misalignment_variance: float
    transmit_power: Real
    symbols: int


def _reader(updates: Updates) -> Callable[[int], Vector]:
    if callable(updates):
        return updates
    source = updates

    def read(user: int) -> Vector:
        vector: Vector = source[user]
        return vector

    return read


def _pieces(size: int) -> Iterator[slice]:
    for begin in range(0, size, _PIECE):
        yield slice(begin, min(begin + _PIECE, size))


def of_norm(norm: float, users: int, size: int) -> Statistics:
    """Return the statistics of updates of mean 0 and a certain Euclidean norm, whatever is sent."""
    mean_square = np.full(users, norm**2 / size)
    return Statistics(np.zeros(users), mean_square, np.sqrt(mean_square), size)


def measure(updates: Updates, users: int) -> Statistics:
    """Return each user's mean and mean square, (M,), reading one user at a time.

    Raises:
        ValueError: if an update is empty, not 1-D, not finite, or of another length than the first.
    """
    read = _reader(updates)
    mean = np.empty(users)
    spread = np.empty(users)
    size = -1
    for user in range(users):
        vector = np.asarray(read(user))
        if vector.ndim != 1 or vector.size == 0 or (size >= 0 and vector.size != size):
            wanted = f"({size},)" if size >= 0 else "(d,) with d >= 1"
            raise ValueError(f"update of user {user} has shape {vector.shape}; expected {wanted}")
        size = vector.size
        mean[user] = vector.mean(dtype=np.float64)
        total = 0.0
        for piece in _pieces(size):  # centred: mean_square - mean^2 would cancel
            centred = vector[piece].astype(np.float64)
            centred -= mean[user]
            total += float(centred @ centred)
        spread[user] = total / size
        if not np.isfinite(spread[user]):
            raise ValueError(f"update of user {user} is not finite; training diverged, or it was not checked")
    return Statistics(mean, spread + mean**2, np.sqrt(spread), size)


def check_weights(weights: ArrayLike | None, users: int) -> Real:
    """Return aggregation weights that sum to 1 (None: equal).

    Raises:
        ValueError: for a wrong length, a non-finite or non-positive weight.
    """
    if weights is None:
        return np.full(users, 1.0 / users)
    array = np.asarray(weights, dtype=np.float64)
    if array.shape != (users,) or not np.isfinite(array).all() or array.min() <= 0.0:
        raise ValueError(f"weights = {array!r} must be {users} finite positive numbers, one per user")
    return np.asarray(array / array.sum())


def _amplitudes(statistics: Statistics, weights: Real, mode: Mode) -> tuple[Real, Real, Real, float]:
    """Return (amplitude w_k, shift, divisor, offset)."""
    users = len(weights)
    offset = float(weights @ statistics.mean)
    if mode == "per_user":
        silent = statistics.std <= SILENT_STD
        divisor = np.where(silent, 1.0, statistics.std)
        return np.where(silent, 0.0, weights * statistics.std), statistics.mean, divisor, offset
    # (g - mu)^2 on average, written without cancellation
    around = statistics.std**2 + (statistics.mean - offset) ** 2
    scale = float(np.sqrt(around.max()))
    if scale <= SILENT_STD:
        return np.zeros(users), np.full(users, offset), np.ones(users), offset
    return weights * scale, np.full(users, offset), np.full(users, scale), offset


def effective_channels(
    channels: ArrayLike, statistics: Statistics, *, weights: ArrayLike | None = None, mode: Mode = "per_user"
) -> Complex:
    """Return h_k mean(w) / w_k of the users that send, (M', N) or (M', F, N); equal users keep theirs.

    The max-min beam of these rows minimises the error variance of the round; solve for it again once the
    users have reported their statistics.
    """
    checked = check_band(channels)
    choice("mode", mode, Mode)
    amplitude = _amplitudes(statistics, check_weights(weights, len(checked)), mode)[0]
    sending = amplitude > 0.0
    relative = amplitude[sending] / amplitude[sending].mean() if sending.any() else amplitude[sending]
    return np.asarray(checked[sending] / relative.reshape(-1, *[1] * (checked.ndim - 1)))


def design_link(
    channels: ArrayLike,
    beam: ArrayLike,
    statistics: Statistics,
    *,
    power: float,
    noise_power: float,
    weights: ArrayLike | None = None,
    mode: Mode = "per_user",
    packing: Packing = "iq",
    scaling: Callable[..., ZeroForcing] = zero_forcing,
    energy: Callable[[Real], Real] | None = None,
) -> Link:
    """Transmit coefficients, receive scaling and analytic noise variance of one round.

    Args:
        channels: (M, N) channels of the selected users as the server knows them; over subcarriers (M, F, N).
        beam: (N,) receive beam, or (F, N); scaled to unit norm.
        statistics: of the M updates.
        power: P0 per user, watt (mean over the symbols).
        noise_power: receiver noise per antenna and channel use, watt; 0 is noiseless.
        weights: (M,) aggregation weights; None: equal.
        mode: "per_user" or "common" normalisation.
        packing: "iq" or "real".
        scaling: how users meet at the receiver: `zero_forcing`, or `radio.air.regularised.regularised` (which
            sees the correlation between their symbols).
        energy: over subcarriers, from what the users subtract, (M,), to the share of each one's energy on
            each of them, (M, F): `energy_shares`. None: 1/F.

    Raises:
        ValueError: for bad channels, powers, weights or names, or a beam that a sending user cannot reach.
    """
    checked = check_band(channels)
    choice("mode", mode, Mode)
    phi = check_weights(weights, len(checked))
    amplitude, shift, divisor, offset = _amplitudes(statistics, phi, mode)
    more = {} if energy is None else {"energy": energy(shift)}
    inverse = scaling(checked, beam, amplitude, power=power, noise_power=noise_power, packing=packing, **more)
    return Link(
        inverse=inverse,
        weights=phi,
        amplitude=amplitude,
        shift=shift,
        divisor=divisor,
        offset=offset,
        power=power,
        noise_power=noise_power,
        packing=packing,
        symbol_mean=(statistics.mean - shift) / divisor,
        symbol_std=statistics.std / divisor,
    )


def arrival(link: Link, channels: ArrayLike | None) -> Complex:
    """Return a_k over the true channels, (M,) or (M, F); as designed, (M,), if `channels` is None (known)."""
    if channels is None:
        return link.inverse.share.astype(np.complex128)
    return link.inverse.arrival(channels)


def misalignment_variance(link: Link, channels: ArrayLike | None) -> float:
    """Return the mean squared error per real entry from arriving with a_k instead of 1.

    For given true channels and updates that are independent over the users: see the module text.
    `AirAverage.misalignment_variance` has that of the updates at hand.
    """
    deviation = (arrival(link, channels) - 1.0).T * link.amplitude  # (M,) or (F, M)
    if link.packing == "real":
        deviation = deviation.real.astype(np.complex128)
    spread = np.abs(deviation) ** 2 @ link.symbol_std**2
    return float((spread + np.abs(deviation @ link.symbol_mean) ** 2).mean())


def expected_misalignment_variance(link: Link, error_variance: float) -> float:
    """Return the mean of `misalignment_variance` over estimation errors that the server cannot see.

    E|m^H e_k|^2 = error_variance gives sum_k w_k^2 E[u_k^2] error_variance / |m^H h_k|^2 with the estimated
    h_k, whether or not the updates are independent. Exact for an error independent of the estimate (the MMSE
    estimator), first order for h + e.
    """
    non_negative("error_variance", error_variance)
    gain = effective_gain(np.abs(link.inverse.projected) ** 2)
    sending = link.amplitude > 0.0
    energy = link.amplitude**2 * (link.symbol_std**2 + link.symbol_mean**2)
    total = float((energy[sending] / gain[sending]).sum()) * error_variance
    return total if link.packing == "iq" else 0.5 * total


def combined_noise(
    size: int, link: Link, rng: np.random.Generator, simulation: Simulation = "fast", first: int = 0
) -> Real:
    """Return `size` real entries of m^H n / sqrt(eta) after de-mapping, from entry `first` on.

    "antennas" draws the noise of every antenna and combines it; "fast" draws the combined noise, which for a
    unit-norm beam has the same distribution.
    """
    choice("simulation", simulation, Simulation)
    if link.noise_variance == 0.0:
        return np.zeros(size)
    if simulation == "fast":
        return np.asarray(np.sqrt(link.noise_variance) * rng.standard_normal(size))
    uses = symbols(size, link.packing)
    pair = rng.standard_normal((2, uses, link.beam.shape[-1])) * np.sqrt(0.5 * link.noise_power / link.eta)
    combined = pair[0] + 1j * pair[1]
    if link.beam.ndim == 1:
        combined = combined @ link.beam.conj()
    else:
        beams = link.beam[carriers(uses, len(link.beam), link.packing, first)]
        combined = (combined * beams.conj()).sum(axis=1)
    if link.packing == "real":
        return np.asarray(combined.real)
    return np.asarray((combined * np.sqrt(2.0)).view(np.float64)[:size])


def energy_shares(updates: Updates, shift: Real, subcarriers: int, packing: Packing) -> Real:
    """Return the share of each user's energy that is on each subcarrier, (M, F), summing to 1.

    Args:
        updates: as given to `measure`.
        shift: (M,) what user k subtracts before sending.
        subcarriers: F.
        packing: "iq" or "real".
    """
    read = _reader(updates)
    found = np.zeros((len(shift), subcarriers))
    for user, own in enumerate(found):
        vector = np.asarray(read(user))
        for piece in _pieces(vector.size):
            values = vector[piece].astype(np.float64) - shift[user]
            own[:] = own + on_subcarriers(values, subcarriers, packing, piece.start)
        total = float(own.sum())
        own[:] = own / total if total > 0.0 else 1.0 / subcarriers
    return found


def average(
    updates: Updates,
    link: Link,
    rng: np.random.Generator,
    *,
    true_channels: ArrayLike | None = None,
    simulation: Simulation = "fast",
) -> AirAverage:
    """Send the updates through the air and return the server's estimate of sum_k phi_k g_k.

    Args:
        updates: as given to `measure`; user k is row k of the link.
        link: from `design_link`.
        rng: draws the receiver noise.
        true_channels: (M, N) or (M, F, N), channels the signal passes; None: those of the design.
        simulation: "fast" or "antennas" (see `combined_noise`).

    Raises:
        ValueError: if a user would exceed its power (the link was designed for other statistics).
    """
    read = _reader(updates)
    arrived = arrival(link, true_channels)
    users = len(link.transmit)
    sent_power = np.zeros(users)
    subcarriers = link.transmit.shape[1] if link.transmit.ndim == 2 else 0
    received = exact = misaligned = np.empty(0)
    for user in range(users):
        vector = np.asarray(read(user))
        if user == 0:
            received = np.full(vector.size, link.offset)
            exact = np.zeros(vector.size)
            misaligned = np.zeros(vector.size if (arrived != 1.0).any() else 0)
        if vector.shape != received.shape:
            raise ValueError(f"update of user {user} has shape {vector.shape}; expected {received.shape}")
        factor = link.amplitude[user] / link.divisor[user]
        uses = symbols(vector.size, link.packing)
        energy, carried = 0.0, np.zeros(subcarriers)
        for piece in _pieces(vector.size):
            values = vector[piece].astype(np.float64)
            exact[piece] += link.weights[user] * values
            if factor == 0.0:
                continue
            values -= link.shift[user]
            energy += float(values @ values)
            if subcarriers:
                carried += on_subcarriers(values, subcarriers, link.packing, piece.start)
            values *= factor
            received[piece] += turn(values, arrived[user], link.packing, piece.start)
            if misaligned.size:
                misaligned[piece] += turn(values, arrived[user] - 1.0, link.packing, piece.start)
        per_symbol = energy / link.divisor[user] ** 2 / uses / (2.0 if link.packing == "iq" else 1.0)
        sent_power[user] = link.inverse.power(user, per_symbol, carried / max(energy, 1e-300))
    if sent_power.max() > link.power * (1.0 + 1e-6):
        user = int(sent_power.argmax())
        raise ValueError(
            f"user {user} would send {sent_power[user]} W, above power = {link.power} W; "
            "the statistics given to design_link are not those of the updates"
        )
    for piece in _pieces(received.size):
        received[piece] += combined_noise(piece.stop - piece.start, link, rng, simulation, piece.start)
    total = 0.0
    for piece in _pieces(received.size):
        error = received[piece] - exact[piece]
        total += float(error @ error)
    off = float(misaligned @ misaligned) / max(misaligned.size, 1)
    return AirAverage(
        estimate=received,
        realised_mse=total / received.size,
        predicted_mse=link.noise_variance + off,
        noise_variance=link.noise_variance,
        misalignment_variance=off,
        transmit_power=sent_power,
        symbols=symbols(received.size, link.packing),
    )
