"""Elementwise roots of decreasing functions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from radio.arrays import FloatArray

_STEPS = 200
_REST = 1e-15


def decreasing_root(
    function: Callable[[FloatArray], tuple[FloatArray, FloatArray]], low: FloatArray, high: FloatArray
) -> FloatArray:
    """Solve elementwise for the root of a decreasing function: Newton, else bisection.

    Args:
        function: from (n,) points to values and slopes there.
        low: (n,) lower ends; where the function is negative there, the result tends to it.
        high: (n,) upper ends, where the iteration starts.

    Returns:
        (n,) roots, to the last bit or so.
    """
    low, high = low.copy(), high.copy()
    x = high.copy()
    for _ in range(_STEPS):
        value, slope = function(x)
        low, high = np.where(value >= 0, x, low), np.where(value <= 0, x, high)
        with np.errstate(divide="ignore", invalid="ignore"):
            proposal = x - value / slope
        inside = (proposal > low) & (proposal < high)
        following = np.where(inside, proposal, 0.5 * (low + high))
        moved = np.abs(following - x) > 1e-15 * np.maximum(1.0, np.abs(x))
        x = following
        if not moved.any():
            break
    return x


def decreasing_root_in_rows(
    function: Callable[[FloatArray, NDArray[np.intp]], tuple[FloatArray, FloatArray]],
    low: FloatArray,
    high: FloatArray,
    start: FloatArray,
) -> FloatArray:
    """Solve for many roots that differ in difficulty: who has converged is not computed any further.

    Args:
        function: from points and their rows to values and slopes there; may be flat, jump or be NaN.
        low, high: (n,) ends of the brackets; where there is no change of sign, the result tends to an end.
        start: (n,) first points; one outside its bracket starts in the middle.

    Returns:
        (n,) roots, to 1e-15 of max(1, |root|).
    """
    root = np.where((start >= low) & (start <= high), start, 0.5 * (low + high))
    rows = np.arange(root.size)
    low, high, x = low.copy(), high.copy(), root.copy()
    for step in range(_STEPS):
        value, slope = function(x, rows)
        low, high = np.where(value >= 0, x, low), np.where(value <= 0, x, high)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            proposal = x - value / slope
            proposal = np.where(np.isfinite(proposal), proposal, np.nan)
        # A step below rounding has arrived; one that rounding put outside of its bracket would else be
        # answered by halving a bracket whose other end may still be far away.
        there = np.abs(proposal - x) <= _REST * np.maximum(1.0, np.abs(x))
        inside = (proposal > low) & (proposal < high)
        if step % 4 == 3:  # a step that leaves most of the bracket may be one of many
            inside &= np.abs(proposal - x) < 0.5 * (high - low)
        following = np.where(inside, proposal, 0.5 * (low + high))
        following = np.where((value == 0) | there, x, following)
        moving = np.abs(following - x) > _REST * np.maximum(1.0, np.abs(x))
        root[rows] = following
        if not moving.any():
            break
        if moving.all():
            x = following
        else:
            rows, low, high, x = rows[moving], low[moving], high[moving], following[moving]
    return root
