"""The limit on an update's norm follows the fleet and not one device."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies.limits import NormHistory, NormLimit, UploadError, update_norm

# What the settings promise: six times the median of the rounds that together hold twenty updates.
FACTOR, FLOOR, POOL = 6.0, 0.5, 20

NORMS = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=60)


@given(st.integers(1, 200_000), st.integers(0, 100))
def test_the_norm_is_that_of_the_difference(size, seed):
    rng = np.random.default_rng(seed)
    values, base = rng.standard_normal((2, size)).astype(np.float32)
    exact = np.linalg.norm(values.astype(np.float64) - base)
    assert update_norm(values, base) == pytest.approx(exact, rel=1e-10)
    assert update_norm(values) == pytest.approx(np.linalg.norm(values.astype(np.float64)), rel=1e-10)


def test_it_is_exact_where_float32_would_overflow():
    huge = np.full(10, 3e38, np.float32)
    assert update_norm(huge, -huge) == pytest.approx(6e38 * math.sqrt(10), rel=1e-6)
    for odd in (np.nan, np.inf, -np.inf):
        huge[3] = odd
        with pytest.raises(UploadError, match="not finite"):
            update_norm(huge)


def test_a_fixed_limit():
    reject, clip = NormLimit(10.0), NormLimit(10.0, "clip")
    assert reject.scale(10.0, 10.0) == clip.scale(3.0, 10.0) == 1.0
    assert clip.scale(40.0, 10.0) == 0.25
    with pytest.raises(UploadError, match=r"norm 10\.1, above 10, fleet\.upload_norm_limit"):
        reject.scale(10.1, 10.0)
    with pytest.raises(UploadError, match=r"times the median .*\(fleet\.upload_norm_limit = auto"):
        NormLimit(None).scale(5.0, 4.0)
    for wrong in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="norm"):
            NormLimit(wrong)


@given(NORMS, st.data())
def test_a_minority_neither_raises_nor_lowers_it_beyond_the_others(honest, data):
    """With fewer hostile devices than honest ones the limit stays between FACTOR times their extremes."""
    hostile = data.draw(st.lists(st.floats(0, 1e30), max_size=(len(honest) - 1) // 2))
    history = NormHistory()
    limit = history.limit(data.draw(st.permutations([*honest, *hostile])))
    assert FACTOR * min(honest) <= limit <= FACTOR * max(honest)
    for _ in range(3):
        history.close([*honest, *hostile])
    assert FACTOR * min(honest) <= history.limit([*honest, *hostile]) <= FACTOR * max(honest)


def test_of_two_devices_the_larger_is_the_suspect():
    assert NormHistory().limit([1.0, 1000.0]) == FACTOR * 1.0


def test_it_follows_the_latest_rounds_but_not_below_half_of_the_largest():
    """Ten devices: two rounds make the pool."""
    history = NormHistory()
    assert history.limit() is None
    for norm in (1.0, 1.0, 3.0, 3.0):
        history.close([norm] * 10)
    assert history.limit() == FACTOR * 3.0
    for _ in range(5):
        history.close([0.01] * 10)
    assert history.limit() == FACTOR * FLOOR * 3.0


def test_few_devices_in_a_round_pool_more_rounds():
    history = NormHistory()
    for number in range(POOL):
        assert history.limit() is None
        assert history.limit([1.0]) == FACTOR
        history.close([1e9] if number == 0 else [1.0])
    assert history.limit() == FACTOR  # although the first was hostile, and alone in its round
    history.close([])  # nobody answered
    assert history.limit() == FACTOR


@given(st.lists(st.lists(st.floats(0, 1e6), max_size=30), max_size=8))
def test_a_resumed_run_has_the_same_limit(rounds):
    history, other = NormHistory(), NormHistory()
    for norms in rounds:
        history.close(norms)
    other.restore(history.state())
    assert other.limit() == history.limit()
    assert other.limit([1.0, 2.0]) == history.limit([1.0, 2.0])
    history.close([7.0] * 5)
    other.close([7.0] * 5)
    assert other.limit([1.0]) == history.limit([1.0])
