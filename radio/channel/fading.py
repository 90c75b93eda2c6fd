"""Block-fading uplink channels of one cell: places, path loss, shadowing, Rayleigh fading.

Two time scales. *Slow*: places and shadowing are drawn once and stay for a run (`place_devices`,
`mean_gain`). *Fast*: small-scale fading is drawn anew for every round (`draw_gain`, `draw_vectors`)
and constant within it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from radio.arrays import ComplexArray, FloatArray, choice, count, finite, non_negative, positive

Placement = Literal["rings", "random"]


@dataclass(frozen=True)
class ChannelModel:
    """One cell with a multi-antenna server in its centre.

    Path loss in dB is `path_loss_intercept_db + path_loss_slope_db * log10(distance in km)`; the
    defaults are the 3GPP macro-cell law (TR 36.814) that the paper's experiments name.

    Attributes:
        num_devices: K.
        antennas: N, receive antennas of the server.
        path_loss_intercept_db: loss at 1 km, dB.
        path_loss_slope_db: dB per decade of distance.
        cell_radius: outer radius R, m.
        min_distance: inner radius d_min, m.
        shadowing_std_db: standard deviation of log-normal shadowing, dB; 0 turns it off.
        placement: `rings` puts device k in the middle (by area) of the k-th of K rings of equal area,
            the same in every run; `random` draws places uniformly in the annulus.
        distances: of every device at the start, m, in place of those; None: as the placement says.
        fading, fading_options: what changes from round to round, a name of `radio.channel.small_scale`:
            `rayleigh` (i.i.d. CN(0, 1) per antenna), `none` (every antenna at its mean), ...
        path_loss, path_loss_options: a name of `radio.channel.path_loss`.
        mobility, mobility_options: a name of `radio.channel.mobility`.
        shadowing_distance: over which shadowing of a moving device decorrelates, m (Gudmundson 1991).
        step: time from one round to the next, s, by which devices move and channels age.
    """

    num_devices: int
    antennas: int
    path_loss_intercept_db: float = 128.1
    path_loss_slope_db: float = 37.6
    cell_radius: float = 500.0
    min_distance: float = 80.0
    shadowing_std_db: float = 0.0
    placement: Placement = "rings"
    distances: tuple[float, ...] | None = None
    fading: str = "rayleigh"
    fading_options: Mapping[str, Any] = field(default_factory=dict)
    path_loss: str = "log_distance"
    path_loss_options: Mapping[str, Any] = field(default_factory=dict)
    mobility: str = "static"
    mobility_options: Mapping[str, Any] = field(default_factory=dict)
    shadowing_distance: float = 50.0
    step: float = 25e-3

    def __post_init__(self) -> None:
        count("num_devices", self.num_devices, 1)
        count("antennas", self.antennas, 1)
        finite("path_loss_intercept_db", self.path_loss_intercept_db)
        non_negative("path_loss_slope_db", self.path_loss_slope_db)
        positive("cell_radius", self.cell_radius)
        positive("min_distance", self.min_distance)
        non_negative("shadowing_std_db", self.shadowing_std_db)
        if self.min_distance > self.cell_radius:
            raise ValueError(
                f"min_distance = {self.min_distance} m must not exceed cell_radius = {self.cell_radius} m"
            )
        choice("placement", self.placement, Placement)
        if self.distances is not None:
            positive("distances", self.distances)
            if len(self.distances) != self.num_devices:
                raise ValueError(
                    f"distances has {len(self.distances)} numbers for {self.num_devices} devices"
                )
        positive("shadowing_distance", self.shadowing_distance)
        positive("step", self.step)


def place_devices(model: ChannelModel, rng: np.random.Generator) -> FloatArray:
    """Return the distance of every device from the server.

    `rings`: d_k = sqrt(d_min^2 + (R^2 - d_min^2)(k - 1/2)/K), k = 1..K. `random`: the same law with
    (k - 1/2)/K replaced by a uniform variate, i.e. uniform over the annulus. Distances that the model names
    take their place.

    Returns:
        (K,) distances, m; draw them once and keep them for the run.
    """
    if model.distances is not None:
        return np.array(model.distances)
    k = model.num_devices
    area = rng.random(k) if model.placement == "random" else (np.arange(k) + 0.5) / k
    inner, outer = model.min_distance**2, model.cell_radius**2
    return np.asarray(np.sqrt(inner + (outer - inner) * area), dtype=np.float64)


def mean_gain(
    distances: ArrayLike, model: ChannelModel, rng: np.random.Generator | None = None
) -> FloatArray:
    """Return the large-scale power gain per antenna (path loss, and shadowing if the model has any).

    Shadowing is slow fading: it belongs to a place, so call this once per placement, not per round.

    Args:
        distances: (..., K) distances, m.
        model: the cell.
        rng: needed only where `model.shadowing_std_db` > 0.

    Returns:
        (..., K) mean power gain of one antenna, linear.

    Raises:
        ValueError: if a distance is not positive, or shadowing is asked for without `rng`.
    """
    metres = positive("distances", distances)
    loss_db = model.path_loss_intercept_db + model.path_loss_slope_db * np.log10(metres / 1e3)
    if model.shadowing_std_db > 0:
        if rng is None:
            raise ValueError(f"shadowing_std_db = {model.shadowing_std_db} > 0 needs a generator (rng)")
        loss_db = loss_db + model.shadowing_std_db * rng.standard_normal(metres.shape)
    return np.asarray(10.0 ** (-loss_db / 10), dtype=np.float64)


def draw_gain(
    model: ChannelModel,
    mean_gain: ArrayLike,
    rng: np.random.Generator,
    size: int | tuple[int, ...] = (),
) -> FloatArray:
    """Draw the channel gain after maximum-ratio combining over the antennas, one per round.

    The squared norm of N i.i.d. CN(0, g) entries is g * Gamma(N, 1), drawn directly; without fading
    it is its mean g N.

    Args:
        model: the cell.
        mean_gain: (..., K) mean gain of one antenna (`mean_gain`).
        rng: the generator of this round's channel.
        size: leading batch dimensions, e.g. the number of rounds.

    Returns:
        (*size, ..., K) power gains, linear.
    """
    mean = non_negative("mean_gain", mean_gain)
    shape = (*_shape(size), *mean.shape)
    if model.fading == "none":
        return np.broadcast_to(mean * model.antennas, shape).copy()
    return np.asarray(rng.standard_gamma(model.antennas, shape) * mean, dtype=np.float64)


def draw_vectors(
    model: ChannelModel,
    mean_gain: ArrayLike,
    rng: np.random.Generator,
    size: int | tuple[int, ...] = (),
) -> ComplexArray:
    """Draw the complex channel vectors h_k ~ CN(0, g_k I), as beamforming needs them.

    The squared norm has the law of `draw_gain`. Without fading every entry is sqrt(g_k).

    Args:
        model: the cell.
        mean_gain: (..., K) mean gain g of one antenna (`mean_gain`).
        rng: the generator of this round's channel.
        size: leading batch dimensions, e.g. the number of rounds.

    Returns:
        (*size, ..., K, N) complex channel vectors.
    """
    mean = non_negative("mean_gain", mean_gain)
    amplitude = np.sqrt(mean)[..., np.newaxis]
    shape = (*_shape(size), *mean.shape, model.antennas)
    if model.fading == "none":
        return np.broadcast_to(amplitude, shape).astype(np.complex128)
    # Real and imaginary parts lie next to each other, so the draw itself is the complex array.
    parts = rng.standard_normal((*shape[:-1], 2 * model.antennas))
    return np.asarray(parts.view(np.complex128) * (amplitude * np.sqrt(0.5)))


def _shape(size: int | tuple[int, ...]) -> tuple[int, ...]:
    return (size,) if isinstance(size, int) else tuple(size)
