"""Path loss laws: how much of the power arrives, on average over fading, at a distance.

A law is a function ``(scene, **options) -> PathLoss``; its name goes into ``channel.path_loss``. A law may
tell devices that see the server from those that do not; which ones do is decided by the cell.

[1] 3GPP TR 38.901, tables 7.4.1-1 (path loss) and 7.4.2-1 (line-of-sight probability).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from radio.arrays import BoolArray, FloatArray, non_negative, positive
from registry import Registry

if TYPE_CHECKING:
    from radio.channel.fading import ChannelModel

SPEED_OF_LIGHT = 3e8  # m/s, as in TR 38.901


class PathLoss(Protocol):
    """Loss, spread of shadowing and chance of a line of sight; distances (K,) in m, in the plane."""

    def loss_db(self, distance: FloatArray, visible: BoolArray) -> FloatArray:
        """Return the loss, dB, of devices that do or do not see the server."""
        ...

    def shadowing_std_db(self, visible: BoolArray) -> FloatArray | float:
        """Return the standard deviation of log-normal shadowing, dB."""
        ...

    def visibility(self, distance: FloatArray) -> FloatArray | None:
        """Return the probability of a line of sight; None: the law makes no difference."""
        ...


PATH_LOSSES: Registry[Callable[..., PathLoss]] = Registry("path loss law", key="channel.path_loss")


@dataclass(frozen=True)
class LogDistance:
    """Loss of `intercept_db` at 1 km and `slope_db` per decade (3GPP TR 36.814 as the paper names it)."""

    intercept_db: float
    slope_db: float
    std_db: float

    def loss_db(self, distance: FloatArray, visible: BoolArray) -> FloatArray:
        """Return the loss, dB."""
        return np.asarray(self.intercept_db + self.slope_db * np.log10(distance / 1e3))

    def shadowing_std_db(self, visible: BoolArray) -> float:
        """Return the standard deviation of shadowing, dB."""
        return self.std_db

    def visibility(self, distance: FloatArray) -> None:
        """Return nothing: one law for all."""


@PATH_LOSSES.register("log_distance")
def log_distance(model: ChannelModel) -> LogDistance:
    """Return the law of ``channel.path_loss_intercept_db``, ``path_loss_slope_db``, ``shadowing_std_db``."""
    return LogDistance(model.path_loss_intercept_db, model.path_loss_slope_db, model.shadowing_std_db)


@dataclass(frozen=True, kw_only=True)
class Urban:
    """What both urban models of [1] share: two slopes with a break, and the larger loss out of sight.

    Attributes:
        carrier_hz: f_c.
        server_height, device_height: h_BS and h_UT, m.
        shadowing: whether there is any.
    """

    carrier_hz: float
    server_height: float
    device_height: float = 1.5
    shadowing: bool = True

    def __post_init__(self) -> None:
        positive("carrier_ghz", self.carrier_hz / 1e9)
        if self.device_height <= 1.0 or self.server_height <= 1.0:
            raise ValueError(
                f"heights of {self.server_height:g} m (server) and {self.device_height:g} m (devices); both "
                "must be above the effective environment height of 1 m"
            )

    @property
    def break_distance(self) -> float:
        """Return d_BP = 4 (h_BS - 1)(h_UT - 1) f_c / c, m."""
        heights = (self.server_height - 1.0) * (self.device_height - 1.0)
        return 4.0 * heights * self.carrier_hz / SPEED_OF_LIGHT

    def loss_db(self, distance: FloatArray, visible: BoolArray) -> FloatArray:
        """Return the loss, dB."""
        sight = self._sight(distance)
        without = np.maximum(sight, self._no_sight(self._slant(distance)))
        return np.asarray(np.where(visible, sight, without), dtype=np.float64)

    def _slant(self, distance: FloatArray) -> FloatArray:
        return np.asarray(np.hypot(distance, self.server_height - self.device_height))

    def _two_slopes(self, distance: FloatArray, at_one: float, slope: float, drop: float) -> FloatArray:
        d3, f = np.log10(self._slant(distance)), 20 * np.log10(self.carrier_hz / 1e9)
        beyond = drop * np.log10(self.break_distance**2 + (self.server_height - self.device_height) ** 2)
        near, far = at_one + slope * d3 + f, at_one + 40 * d3 + f - beyond
        return np.asarray(np.where(distance <= self.break_distance, near, far), dtype=np.float64)

    def _sight(self, distance: FloatArray) -> FloatArray:
        raise NotImplementedError

    def _no_sight(self, slant: FloatArray) -> FloatArray:
        raise NotImplementedError


class UrbanMicro(Urban):
    """UMi, street canyon [1]."""

    def _sight(self, distance: FloatArray) -> FloatArray:
        return self._two_slopes(distance, 32.4, 21.0, 9.5)

    def _no_sight(self, slant: FloatArray) -> FloatArray:
        f = np.log10(self.carrier_hz / 1e9)
        return np.asarray(35.3 * np.log10(slant) + 22.4 + 21.3 * f - 0.3 * (self.device_height - 1.5))

    def shadowing_std_db(self, visible: BoolArray) -> FloatArray:
        """Return 4 dB in sight and 7.82 dB out of it."""
        return np.asarray(np.where(visible, 4.0, 7.82) * self.shadowing)

    def visibility(self, distance: FloatArray) -> FloatArray:
        """Return the probability of a line of sight."""
        return _visibility(distance, 36.0)


class UrbanMacro(Urban):
    """UMa [1]."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.device_height > 13.0:
            raise ValueError(
                f"device_height_m = {self.device_height:g}; the line-of-sight law holds up to 13 m"
            )

    def _sight(self, distance: FloatArray) -> FloatArray:
        return self._two_slopes(distance, 28.0, 22.0, 9.0)

    def _no_sight(self, slant: FloatArray) -> FloatArray:
        f = np.log10(self.carrier_hz / 1e9)
        return np.asarray(13.54 + 39.08 * np.log10(slant) + 20 * f - 0.6 * (self.device_height - 1.5))

    def shadowing_std_db(self, visible: BoolArray) -> FloatArray:
        """Return 4 dB in sight and 6 dB out of it."""
        return np.asarray(np.where(visible, 4.0, 6.0) * self.shadowing)

    def visibility(self, distance: FloatArray) -> FloatArray:
        """Return the probability of a line of sight."""
        return _visibility(distance, 63.0)


def _visibility(distance: FloatArray, scale: float) -> FloatArray:
    near = np.maximum(non_negative("distance", distance), 18.0)
    return np.asarray(18.0 / near + np.exp(-near / scale) * (1.0 - 18.0 / near))


def _urban(
    law: type[Urban],
    model: ChannelModel,
    *,
    server_height_m: float,
    carrier_ghz: float = 3.5,
    device_height_m: float = 1.5,
    shadowing: bool = True,
) -> PathLoss:
    """Return an urban law with the options of ``channel.path_loss_options``."""
    built: Any = law(
        carrier_hz=carrier_ghz * 1e9,
        server_height=server_height_m,
        device_height=device_height_m,
        shadowing=shadowing,
    )
    found: PathLoss = built
    return found


PATH_LOSSES.register("umi")(partial(_urban, UrbanMicro, server_height_m=10.0))
PATH_LOSSES.register("uma")(partial(_urban, UrbanMacro, server_height_m=25.0))
