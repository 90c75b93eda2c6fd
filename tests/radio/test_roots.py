"""Roots of many functions at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from radio.arrays import FloatArray
from radio.roots import decreasing_root, decreasing_root_in_rows


def test_a_root_that_rounding_meets_from_one_side_needs_no_halvings() -> None:
    """Newton arrives from one side alone: the other end of the bracket is still far away when it is there."""
    scale = np.linspace(0.3, 3.0, 2000)
    calls = 0

    def function(x: FloatArray, rows: NDArray[np.intp]) -> tuple[FloatArray, FloatArray]:
        nonlocal calls
        calls += 1
        value = scale[rows] * (0.7 / scale[rows] - x) - 0.1 * x * x  # concave and falling
        return value, -scale[rows] - 0.2 * x

    root = decreasing_root_in_rows(function, np.zeros(2000), np.full(2000, 10.0), np.full(2000, 10.0))
    np.testing.assert_allclose(function(root, np.arange(2000))[0], 0.0, atol=1e-14)
    assert calls <= 16


def test_a_smooth_function_takes_newtons_steps_and_no_halvings() -> None:
    """From ten times the root eight of Newton's steps do; halving the bracket would take fifty."""
    calls = 0

    def function(x: FloatArray) -> tuple[FloatArray, FloatArray]:
        nonlocal calls
        calls += 1
        return 2.0 - x - x**3, -1.0 - 3 * x * x

    root = decreasing_root(function, np.array([0.0]), np.array([10.0]))
    np.testing.assert_allclose(root, 1.0, rtol=1e-15)
    assert calls <= 12
