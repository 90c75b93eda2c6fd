"""Array types and argument checks that the radio modules share.

Every check raises a `ValueError` that names the parameter, the offending value and the limit.
"""

from __future__ import annotations

from typing import get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
ComplexArray = NDArray[np.complex128]
BoolArray = NDArray[np.bool_]


def _first(values: FloatArray, bad: BoolArray) -> str:
    """Describe the first bad entry: its index (for arrays) and value."""
    if values.ndim == 0:
        return f" = {values[()]!s}"
    index = tuple(int(i) for i in np.argwhere(bad)[0])
    return f"[{', '.join(map(str, index))}] = {values[index]!s}"


def finite(name: str, values: ArrayLike) -> FloatArray:
    """Return `values` as float64, refusing NaN and infinities."""
    array = np.asarray(values, dtype=np.float64)
    bad = ~np.isfinite(array)
    if bad.any():
        raise ValueError(f"{name}{_first(array, bad)} is not finite")
    return array


def positive(name: str, values: ArrayLike) -> FloatArray:
    """Return `values` as float64, refusing what is not finite and > 0."""
    array = finite(name, values)
    bad = array <= 0
    if bad.any():
        raise ValueError(f"{name}{_first(array, bad)} must be > 0")
    return array


def non_negative(name: str, values: ArrayLike) -> FloatArray:
    """Return `values` as float64, refusing what is not finite and >= 0."""
    array = finite(name, values)
    bad = array < 0
    if bad.any():
        raise ValueError(f"{name}{_first(array, bad)} must be >= 0")
    return array


def in_unit_interval(name: str, values: ArrayLike) -> FloatArray:
    """Return `values` as float64, refusing what is outside [0, 1]."""
    array = finite(name, values)
    bad = (array < 0) | (array > 1)
    if bad.any():
        raise ValueError(f"{name}{_first(array, bad)} must lie in [0, 1]")
    return array


def count(name: str, value: int, minimum: int = 0) -> int:
    """Return `value`, refusing what is not an integer >= `minimum`."""
    if isinstance(value, bool) or int(value) != value or value < minimum:
        raise ValueError(f"{name} = {value} must be an integer >= {minimum}")
    return int(value)


def choice(name: str, value: object, kind: object) -> None:
    """Refuse a `value` that is none of the literals of `kind`."""
    if value not in get_args(kind):
        valid = ", ".join(str(one) for one in get_args(kind))
        raise ValueError(f"{name} = {value!r} is unknown; valid: {valid}")
