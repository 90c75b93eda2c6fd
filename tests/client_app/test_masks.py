from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from client_app.masks import select_mask, select_masks


def _by_full_sort(importance, weights, num_pruned, protected=None):
    """The tie rule as it reads: importance, then magnitude, then higher index first."""
    last = np.zeros(importance.size, dtype=bool) if protected is None else protected
    order = np.lexsort((-np.arange(importance.size), np.abs(weights), importance, last))
    keep = np.ones(importance.size, dtype=bool)
    keep[order[:num_pruned]] = False
    return keep


_few_values = st.sampled_from([0.0, -0.0, 1e-45, 1e-30, 0.5, 0.5000001, 1.0, 3e38, np.inf])


@st.composite
def _cases(draw):
    size = draw(st.integers(1, 40))
    importance = draw(hnp.arrays(np.float32, size, elements=_few_values.map(lambda x: np.float32(x).item())))
    weights = draw(
        hnp.arrays(np.float32, size, elements=st.sampled_from([0.0, -0.0, 0.25, -0.25, 1.0, -2.0]))
    )
    return importance, weights, draw(st.integers(0, size))


@settings(deadline=None, max_examples=200)
@given(case=_cases(), with_protection=st.booleans())
def test_mask_equals_that_of_a_full_sort(case, with_protection):
    importance, weights, num_pruned = case
    protected = np.arange(importance.size) % 3 == 0 if with_protection else None
    keep = select_mask(importance, weights, num_pruned, protected=protected)
    assert int((~keep).sum()) == num_pruned
    np.testing.assert_array_equal(keep, _by_full_sort(importance, weights, num_pruned, protected))


@pytest.mark.parametrize("zero_share", [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("share", [0.0, 1e-4, 0.475, 0.9, 1.0])
def test_mask_of_a_large_vector_equals_that_of_a_full_sort(zero_share, share):
    """Dead units make most importances exactly zero."""
    rng = np.random.default_rng(1)
    size = 50_000
    importance = np.abs(rng.standard_normal(size) * 1e-5).astype(np.float32)
    importance[rng.random(size) < zero_share] = 0.0
    weights = rng.choice(np.linspace(-0.02, 0.02, 2000), size).astype(np.float32)
    num_pruned = int(share * size)
    expected = _by_full_sort(importance, weights, num_pruned)
    np.testing.assert_array_equal(select_mask(importance, weights, num_pruned), expected)


def test_masks_are_nested_in_the_number_pruned():
    rng = np.random.default_rng(2)
    importance = rng.integers(0, 3, 500).astype(np.float32)
    weights = rng.integers(-2, 3, 500).astype(np.float32)
    masks = [select_mask(importance, weights, n) for n in range(0, 501, 7)]
    assert all((smaller <= larger).all() for larger, smaller in pairwise(masks))


@pytest.mark.parametrize(
    ("importance", "num_pruned", "text"),
    [
        ([1.0, np.nan], 1, "NaN"),
        ([1.0, -1.0], 1, "negative"),
        ([1.0, 2.0], 3, "num_pruned = 3"),
        ([1.0, 2.0], -1, "num_pruned = -1"),
        ([1.0], 0, "must be"),
    ],
)
def test_bad_input_is_refused(importance, num_pruned, text):
    with pytest.raises(ValueError, match=text):
        select_mask(np.array(importance, dtype=np.float32), np.zeros(2, dtype=np.float32), num_pruned)


@settings(deadline=None, max_examples=60)
@given(cases=st.lists(_cases(), min_size=1, max_size=4), with_protection=st.booleans())
def test_masks_of_many_devices_equal_those_of_each(cases, with_protection):
    """The tensor version is made for GPUs; what it computes does not depend on where."""
    size = min(importance.size for importance, _, _ in cases)
    importance = np.stack([row[:size] for row, _, _ in cases])
    weights = cases[0][1][:size]
    numbers = [min(num_pruned, size) for _, _, num_pruned in cases]
    protected = np.arange(size) % 3 == 0 if with_protection else None
    masks = select_masks(
        torch.from_numpy(importance),
        torch.from_numpy(weights),
        torch.tensor(numbers),
        protected=None if protected is None else torch.from_numpy(protected),
    )
    for mask, row, num_pruned in zip(masks.numpy(), importance, numbers, strict=True):
        expected = select_mask(row, weights, num_pruned, protected=protected)
        np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize("zero_share", [0.0, 0.5, 1.0])
def test_masks_of_many_devices_with_many_weights(zero_share):
    rng = np.random.default_rng(3)
    importance = np.abs(rng.standard_normal((3, 20_000)) * 1e-5).astype(np.float32)
    importance[rng.random(importance.shape) < zero_share] = 0.0
    weights = rng.choice(np.linspace(-0.02, 0.02, 2000), 20_000).astype(np.float32)
    numbers = [20_000, 9_500, 1]
    masks = select_masks(torch.from_numpy(importance), torch.from_numpy(weights), torch.tensor(numbers))
    for mask, row, num_pruned in zip(masks.numpy(), importance, numbers, strict=True):
        np.testing.assert_array_equal(mask, select_mask(row, weights, num_pruned))


def test_a_row_that_is_not_a_number_spoils_no_other():
    rng = np.random.default_rng(4)
    importance = rng.random((3, 500), dtype=np.float32)
    importance[1, ::2] = np.nan
    weights = rng.random(500, dtype=np.float32)
    masks = select_masks(torch.from_numpy(importance), torch.from_numpy(weights), torch.tensor([100] * 3))
    for row in (0, 2):
        np.testing.assert_array_equal(masks[row].numpy(), select_mask(importance[row], weights, 100))
