"""Small-scale fading: what changes from round to round around a device's mean gain.

A model is a function ``(scene, **options) -> Fading``; its name goes into ``channel.model``. Numbers of round
g come from the stream ("channel", g), so that any round can be drawn alone and in any order.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from radio.arrays import ComplexArray, FloatArray, choice, non_negative, positive
from radio.channel.fading import draw_gain, draw_vectors
from radio.channel.memory import Process
from radio.channel.path_loss import SPEED_OF_LIGHT
from radio.channel.scene import Scene
from registry import Registry


class Fading(Protocol):
    """The channels of a run; `mean` (K,) is the mean power gain of one antenna, linear."""

    def gain(self, mean: FloatArray, server_round: int) -> FloatArray:
        """Return (K,) power gains after maximum-ratio combining; their mean is N times `mean`."""
        ...

    def vectors(self, mean: FloatArray, server_round: int) -> ComplexArray:
        """Return (K, N) complex channels, E |h_kn|^2 = mean_k."""
        ...


FADINGS: Registry[Callable[..., Fading]] = Registry("channel model", key="channel.model")


@FADINGS.register("rayleigh")
@FADINGS.register("none")
class Independent:
    """Rayleigh fading, i.i.d. CN(0, 1) per antenna and round; or `none`, every antenna at its mean."""

    def __init__(self, scene: Scene) -> None:
        """Take the number of antennas and which of the two from the scene."""
        self._scene = scene

    def gain(self, mean: FloatArray, server_round: int) -> FloatArray:
        """Return (K,) power gains, drawn directly from their law."""
        return draw_gain(self._scene.model, mean, self._scene.stream("channel", server_round))

    def vectors(self, mean: FloatArray, server_round: int) -> ComplexArray:
        """Return (K, N) complex channels."""
        return draw_vectors(self._scene.model, mean, self._scene.stream("channel", server_round))


class Multipath:
    r"""Rician fading with correlation over antennas and over rounds.

    h = sqrt(g) (sqrt(kappa / (kappa + 1)) a(theta) + sqrt(1 / (kappa + 1)) R^(1/2) z), with kappa the
    power of the line of sight over that of the scattered waves, a(theta) the steering vector of a uniform
    linear array with half-wavelength spacing, R_ij = c^|i - j|, and z a first-order Gauss-Markov process over
    rounds, z' = a z + sqrt(1 - a^2) w, whose a = J0(2 pi f_d T) is Clarke's correlation after one round at
    the Doppler frequency f_d = v f_c / c0. E ||h||^2 = g N. Where all of it is 0 this is Rayleigh fading, bit
    for bit.

    Args:
        scene: places and streams.
        k_factor: kappa, linear, >= 0.
        spatial_correlation: c of neighbouring antennas, in [0, 1).
        speed_kmh: v of every device or of each (K,), km/h; None: rounds are independent.
        carrier_ghz: f_c, GHz.
    """

    def __init__(
        self,
        scene: Scene,
        *,
        k_factor: float = 0.0,
        spatial_correlation: float = 0.0,
        speed_kmh: float | list[float] | None = None,
        carrier_ghz: float = 3.5,
    ) -> None:
        """Check the options and prepare what does not change."""
        self._scene, model = scene, scene.model
        self._kappa = float(non_negative("k_factor", k_factor))
        self._memory = np.zeros((model.num_devices, 1))
        if speed_kmh is not None:
            speed = non_negative("speed_kmh", speed_kmh)
            if speed.shape not in ((), (model.num_devices,)):
                raise ValueError(
                    f"speed_kmh has {speed.size} entries; give one number, or one for each of the "
                    f"{model.num_devices} devices"
                )
            self._memory[:, 0] = clarke(
                speed / 3.6, float(positive("carrier_ghz", carrier_ghz)) * 1e9, model.step
            )
        if not 0 <= spatial_correlation < 1:
            raise ValueError(f"spatial_correlation = {spatial_correlation}; it must be in [0, 1)")
        order = np.arange(model.antennas)
        self._colour: FloatArray | None = None
        if spatial_correlation > 0:
            correlation = float(spatial_correlation) ** np.abs(order[:, None] - order)
            self._colour = np.linalg.cholesky(correlation).T
        self._remembers = bool(self._memory.any())
        self._plain = not (self._kappa or self._colour is not None or self._remembers)
        self._process = Process(lambda: self._fresh(1), self._step, scene.keep)

    def _fresh(self, server_round: int) -> ComplexArray:
        model = self._scene.model
        parts = self._scene.stream("channel", server_round).standard_normal(
            (model.num_devices, 2 * model.antennas)
        )
        return np.asarray(parts.view(np.complex128) * np.sqrt(0.5))

    def _step(self, state: ComplexArray, server_round: int) -> ComplexArray:
        return self._memory * state + np.sqrt(1 - self._memory**2) * self._fresh(server_round)

    def gain(self, mean: FloatArray, server_round: int) -> FloatArray:
        """Return (K,) power gains."""
        if self._plain:
            return draw_gain(self._scene.model, mean, self._scene.stream("channel", server_round))
        h = self.vectors(mean, server_round)
        return np.asarray((h.real**2 + h.imag**2).sum(axis=-1))

    def vectors(self, mean: FloatArray, server_round: int) -> ComplexArray:
        """Return (K, N) complex channels."""
        if self._plain:
            return draw_vectors(self._scene.model, mean, self._scene.stream("channel", server_round))
        z = self._process.at(server_round) if self._remembers else self._fresh(server_round)
        if self._colour is not None:
            z = z @ self._colour
        if self._kappa:
            direct = np.sqrt(self._kappa / (self._kappa + 1))
            sight = steering(self._scene.angle(server_round), self._scene.model.antennas)
            z = direct * sight + np.sqrt(1 / (self._kappa + 1)) * z
        return np.asarray(np.sqrt(mean)[:, np.newaxis] * z)


RICIAN_K = 4.0  # 6 dB

# One model under the names by which its parts are known, each with that part switched on.
FADINGS.register("multipath")(Multipath)
FADINGS.register("rician")(partial(Multipath, k_factor=RICIAN_K))
FADINGS.register("correlated")(partial(Multipath, spatial_correlation=0.7))
FADINGS.register("gauss_markov")(partial(Multipath, speed_kmh=3.0))


def clarke(speed: FloatArray, carrier_hz: float, seconds: float) -> FloatArray:
    """Return J0(2 pi f_d T), the correlation of Rayleigh fading after `seconds` at `speed` (m/s)."""
    from scipy.special import j0  # here: who only asks for settings need not wait for it

    return np.asarray(j0(2 * np.pi * speed * carrier_hz / SPEED_OF_LIGHT * seconds))


def steering(angle: FloatArray, antennas: int) -> ComplexArray:
    """Return (K, N) responses exp(j pi n sin(theta)) of a half-wavelength uniform linear array."""
    return np.exp(1j * np.pi * np.sin(angle)[:, np.newaxis] * np.arange(antennas))


AtEnd = Literal["wrap", "stop"]


@FADINGS.register("trace")
class Trace:
    """Recorded channels: ``.npz`` with `gains` (rounds, K) or `vectors` (rounds, K, N); ``.csv`` of gains.

    Row g - 1 is round g. What the file holds is the channel itself, path loss included; where a cell wants
    other mean gains (over the air, relative to the mean of the users) each device is scaled by its own mean
    over the file.

    Args:
        scene: numbers of devices and antennas.
        file: path; a CSV has one row per round and one column per device.
        at_end: whether the trace starts again after its last round, or no run may be longer.

    Attributes:
        mean_gain: (K,) mean power gain of one antenna over the file.
        rounds: how many rounds there are; None: any number.
    """

    def __init__(self, scene: Scene, *, file: str, at_end: AtEnd = "wrap") -> None:
        """Read the file and check that it fits."""
        choice("at_end", at_end, AtEnd)
        values, model = _read_trace(file), scene.model
        expected = (model.num_devices,) if values.ndim == 2 else (model.num_devices, model.antennas)
        if values.shape[1:] != expected:
            raise ValueError(
                f"file = {file}: a round has shape {values.shape[1:]}; with {model.num_devices} devices and "
                f"{model.antennas} antennas it must be {expected} (fleet.num_devices, channel.antennas)"
            )
        if not np.isfinite(values).all() or (values.ndim == 2 and (values.real < 0).any()):
            raise ValueError(f"file = {file} holds channels that are not finite, or gains below 0")
        self._file, self._wraps, self._values = file, at_end == "wrap", values
        self.rounds = None if self._wraps else len(values)
        self.mean_gain = np.asarray(_power(values).mean(axis=0) / model.antennas)
        if (self.mean_gain <= 0).any():
            device = int(np.flatnonzero(self.mean_gain <= 0)[0])
            raise ValueError(f"file = {file}: device {device} has no gain in any round")

    def gain(self, mean: FloatArray, server_round: int) -> FloatArray:
        """Return (K,) power gains."""
        return np.asarray(_power(self._row(server_round)[np.newaxis])[0] * (mean / self.mean_gain))

    def vectors(self, mean: FloatArray, server_round: int) -> ComplexArray:
        """Return (K, N) complex channels.

        Raises:
            ValueError: if the trace holds gains only.
        """
        row = self._row(server_round)
        if row.ndim == 1:
            raise ValueError(
                f"file = {self._file} holds gains; what the antennas see is needed here: an array `vectors` "
                "of shape (rounds, K, N)"
            )
        return np.asarray(row * np.sqrt(mean / self.mean_gain)[:, np.newaxis])

    def _row(self, server_round: int) -> ComplexArray:
        rounds = len(self._values)
        if server_round > rounds and not self._wraps:
            raise ValueError(
                f"file = {self._file} ends after {rounds} rounds; round {server_round} needs a longer "
                "one, or at_end=wrap"
            )
        row: ComplexArray = self._values[(server_round - 1) % rounds]
        return row


def _power(values: ComplexArray) -> FloatArray:
    """Return the power gains of rounds of gains (rounds, K) or of vectors (rounds, K, N)."""
    return np.asarray(values.real if values.ndim == 2 else (values.real**2 + values.imag**2).sum(axis=-1))


def _read_trace(file: str) -> ComplexArray:
    path = Path(file).expanduser()
    if not file or not path.is_file():
        raise ValueError(f"file = {file!r} is not there; give the path of a .npz or .csv file")
    if path.suffix == ".csv":
        try:
            return np.atleast_2d(np.loadtxt(path, delimiter=",", ndmin=2)).astype(np.complex128)
        except ValueError as error:
            raise ValueError(f"file = {file}: {error}") from error
    try:
        with np.load(path, allow_pickle=False) as archive:
            name = next((name for name in ("vectors", "gains") if name in archive.files), None)
            if name is None:
                raise ValueError(f"it has {', '.join(archive.files)}; `gains` or `vectors` is needed")
            values = np.asarray(archive[name], dtype=np.complex128)
    except Exception as error:  # a damaged archive fails in many ways
        raise ValueError(f"file = {file}: {error}") from error
    if values.ndim != (3 if name == "vectors" else 2) or not len(values):
        raise ValueError(f"file = {file}: `{name}` has shape {values.shape}")
    return values
