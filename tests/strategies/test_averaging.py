"""The mean of each weight over the devices that kept it."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies.aggregation import masked_mean
from strategies.aggregation.masked_mean import MaskedAverage, Positions


@pytest.fixture(scope="module", params=[0, 1 << 40], ids=["rows", "add_at"], autouse=True)
def _many_values_and_few(request):
    """Whatever is said here of the mean holds for both ways to add."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masked_mean, "_SPARSE", request.param)
        yield


def _average(previous, uploads, shares=None):
    average = MaskedAverage(previous.size)
    for i, (values, mask) in enumerate(uploads):
        average.add(values[mask], mask, 1.0 if shares is None else shares[i])
    return average.result(previous)


def test_hand_made_masks():
    """Three devices, four weights: kept by all, by two, by one, by nobody.

    (1 + 2 + 6) / 3 = 3; (4 + 8) / 2 = 6; 5 as its only holder sent it; 0.1 as it was, bit for bit.
    """
    previous = np.array([9, 9, 9, 0.1], np.float32)
    masks = np.array([[1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 0, 0]], bool)
    values = np.array([[1, 4, 0, 0], [2, 0, 5, 0], [6, 8, 0, 0]], np.float32)
    result = _average(previous, zip(values, masks, strict=True))
    assert result.weights.tolist() == [3.0, 6.0, 5.0, previous[3]]
    assert result.counts.tolist() == [3, 2, 1, 0]
    assert result.uncovered_share == 0.25


def test_a_weight_is_never_divided_by_the_number_of_devices():
    """One holder among a hundred devices: its value stands, it is not a hundredth of it."""
    masks = np.zeros((100, 2), bool)
    masks[:, 0] = True
    masks[42, 1] = True
    result = _average(np.zeros(2, np.float32), ((np.full(2, 7, np.float32), mask) for mask in masks))
    assert result.weights.tolist() == [7.0, 7.0]


def test_full_masks_give_the_plain_average():
    rng = np.random.default_rng(0)
    values = rng.standard_normal((5, 1000)).astype(np.float32)
    result = _average(np.zeros(1000, np.float32), ((row, np.ones(1000, bool)) for row in values))
    np.testing.assert_array_equal(result.weights, values.mean(axis=0, dtype=np.float64).astype(np.float32))


@pytest.mark.parametrize("shares", [(1.0, 1.0, 1.0), (3.0, 3.0, 3.0), (2.0, 1.0, 5.0)])
def test_a_device_that_kept_everything_counts_as_one_with_a_full_mask(shares):
    rng = np.random.default_rng(1)
    values = rng.standard_normal((3, 1000)).astype(np.float32)
    masks = rng.random((3, 1000)) < np.array([[0.5], [1.0], [0.3]])
    expected = _average(values[0], zip(values, masks, strict=True), shares)
    average = MaskedAverage(1000)
    average.add(values[0][masks[0]], masks[0], shares[0])
    average.add_dense(values[1], shares[1])
    average.add(values[2][masks[2]], masks[2], shares[2])
    result = average.result(values[0])
    np.testing.assert_array_equal(result.weights, expected.weights)
    np.testing.assert_array_equal(result.counts, expected.counts)
    with pytest.raises(ValueError, match="do not fit"):
        average.add_dense(values[1, :-1])
    with pytest.raises(ValueError, match="device_weight"):
        average.add_dense(values[1], 0.0)


def test_sample_weights_are_relative_to_the_contributors():
    masks = np.array([[1, 1], [1, 0]], bool)
    values = np.array([[1, 3], [5, 0]], np.float32)
    result = _average(np.zeros(2, np.float32), zip(values, masks, strict=True), shares=[3.0, 1.0])
    assert result.weights.tolist() == [2.0, 3.0]


@given(seed=st.integers(0, 2**32 - 1), devices=st.integers(1, 8), kept=st.floats(0, 1))
def test_the_order_of_devices_is_irrelevant_and_the_mean_lies_between_its_values(seed, devices, kept):
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((devices, 50)).astype(np.float32)
    masks = rng.random((devices, 50)) < kept
    previous = rng.standard_normal(50).astype(np.float32)
    order = rng.permutation(devices)
    result = _average(previous, zip(values, masks, strict=True))
    shuffled = _average(previous, zip(values[order], masks[order], strict=True))
    np.testing.assert_array_equal(result.weights, shuffled.weights)
    covered = masks.any(axis=0)
    np.testing.assert_array_equal(result.weights[~covered], previous[~covered])
    low = np.where(masks, values, np.inf).min(axis=0)[covered]
    high = np.where(masks, values, -np.inf).max(axis=0)[covered]
    assert ((result.weights[covered] >= low) & (result.weights[covered] <= high)).all()


def test_uploads_that_do_not_fit_are_refused():
    average = MaskedAverage(3)
    mask = np.array([True, False, True])
    for number in (0, 1, 3):
        with pytest.raises(ValueError, match=f"{number} values do not fit a mask with 2 kept"):
            average.add(np.zeros(number, np.float32), mask)
    with pytest.raises(ValueError, match="device_weight = 0"):
        average.add(np.zeros(2, np.float32), mask, 0.0)
    with pytest.raises(ValueError, match="do not fit 3 weights"):
        average.add(np.zeros(5, np.float32), Positions(np.ones(5, np.bool_)))


@pytest.mark.parametrize("share", [1.0, 3.0])
def test_known_positions_change_nothing(share):
    rng = np.random.default_rng(1)
    previous = rng.standard_normal(200_000).astype(np.float32)
    found, known = MaskedAverage(previous.size), MaskedAverage(previous.size)
    for device_weight in (1.0, share):
        mask = rng.random(previous.size) < 0.5
        values = rng.standard_normal(np.count_nonzero(mask)).astype(np.float32)
        found.add(values, mask, device_weight)
        positions = Positions(mask)
        np.testing.assert_array_equal(positions.take(previous), previous[mask])
        known.add(values, positions, device_weight)
    np.testing.assert_array_equal(found.result(previous).weights, known.result(previous).weights)


@pytest.mark.parametrize("uploads", [254, 255, 256, 600])
@pytest.mark.parametrize("shares", [(1.0, 1.0), (2.0, 5.0)])
def test_more_uploads_than_a_byte_counts(uploads, shares):
    """Weight 0 is kept by all, weight 1 by every third, weight 2 by the few that keep everything."""
    rng = np.random.default_rng(uploads)
    previous = np.array([1, 2, 3], np.float32)
    average, total, weight, count = MaskedAverage(3), np.zeros(3), np.zeros(3), np.zeros(3, int)
    for number in range(uploads):
        share = shares[number % 2]
        mask = np.array([True, number % 3 == 0, False]) | (number % 100 == 7)
        values = rng.standard_normal(3).astype(np.float32)
        if mask.all():
            average.add_dense(values, share)
        else:
            average.add(values[mask], mask, share)
        total += np.where(mask, share * values.astype(np.float64), 0)
        weight += share * mask
        count += mask
    result = average.result(previous)
    assert result.counts.tolist() == count.tolist()
    assert count[0] == uploads
    np.testing.assert_allclose(result.weights, total / weight, rtol=1e-6)


@pytest.mark.parametrize("shares", [(1.0,) * 4, (3.0, 1.0, 2.0, 0.7)])
def test_both_ways_to_add_make_the_same_bits(monkeypatch, shares):
    rng = np.random.default_rng(5)
    num_weights = masked_mean._BLOCK + 1000  # more than one block
    values = rng.standard_normal((4, num_weights)).astype(np.float32) * 10 ** rng.uniform(-9, 9, (4, 1))
    values = values.astype(np.float32)
    masks = rng.random((4, num_weights)) < np.array([[0.5], [0.0], [1.0], [0.3]])
    sums = []
    for limit in (0, 1 << 40):
        monkeypatch.setattr(masked_mean, "_SPARSE", limit)
        average = MaskedAverage(num_weights)
        for row, mask, share in zip(values, masks, shares, strict=True):
            average.add(row[mask], mask, share)
        sums.append(average._sum)
    assert sums[0].tobytes() == sums[1].tobytes()


def test_adding_says_nothing_of_sparse_matrices():
    """torch warns of its matrices by rows when it makes the first one."""
    code = (
        "import numpy as np; from strategies.aggregation import masked_mean as m; m._SPARSE = 0;"
        "a = m.MaskedAverage(8); a.add(np.ones(8, np.float32), np.ones(8, bool)); print(a._sum.sum())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("8.0\n", "")
