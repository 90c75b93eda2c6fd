"""Elementwise roots of decreasing functions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from radio.arrays import FloatArray


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
    for _ in range(200):
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
