"""Conversions between the decibel scales of configuration files and the SI units used everywhere else."""

from __future__ import annotations

import math
from typing import overload

import numpy as np
from numpy.typing import ArrayLike

from radio.arrays import FloatArray, finite, positive
from schema import Unit


@overload
def db_to_linear(decibel: float) -> float: ...
@overload
def db_to_linear(decibel: ArrayLike) -> FloatArray | float: ...
def db_to_linear(decibel: ArrayLike) -> FloatArray | float:
    """Convert dB to a power ratio, 10^(dB/10). Any shape.

    Raises:
        ValueError: if a value is not finite.
    """
    return _unwrap(np.asarray(10.0 ** (finite("decibel", decibel) / 10)))


@overload
def linear_to_db(ratio: float) -> float: ...
@overload
def linear_to_db(ratio: ArrayLike) -> FloatArray | float: ...
def linear_to_db(ratio: ArrayLike) -> FloatArray | float:
    """Convert a power ratio to dB, 10 log10(ratio). Any shape.

    Raises:
        ValueError: if a ratio is not finite and > 0.
    """
    return _unwrap(np.asarray(10 * np.log10(positive("ratio", ratio))))


@overload
def dbm_to_watt(power_dbm: float) -> float: ...
@overload
def dbm_to_watt(power_dbm: ArrayLike) -> FloatArray | float: ...
def dbm_to_watt(power_dbm: ArrayLike) -> FloatArray | float:
    """Convert dBm (dB relative to a milliwatt) to watts. Any shape.

    Raises:
        ValueError: if a value is not finite.
    """
    return _unwrap(np.asarray(1e-3 * 10.0 ** (finite("power_dbm", power_dbm) / 10)))


@overload
def watt_to_dbm(power: float) -> float: ...
@overload
def watt_to_dbm(power: ArrayLike) -> FloatArray | float: ...
def watt_to_dbm(power: ArrayLike) -> FloatArray | float:
    """Convert watts to dBm. Any shape.

    Raises:
        ValueError: if a power is not finite and > 0.
    """
    return _unwrap(np.asarray(10 * np.log10(positive("power", power)) + 30))


def ms_to_s(milliseconds: float) -> float:
    """Convert milliseconds to seconds."""
    return milliseconds * 1e-3


def s_to_ms(seconds: float) -> float:
    """Convert seconds to milliseconds."""
    return seconds * 1e3


# Units in which keys are set.
DB = Unit("dB", "", db_to_linear)
DBM = Unit("dBm", "W", dbm_to_watt)
MS = Unit("ms", "s", ms_to_s)
DEG = Unit("deg", "rad", math.radians)


def _unwrap(values: FloatArray) -> FloatArray | float:
    return float(values) if values.ndim == 0 else values
