"""What every aggregation must hold to, and what each is for."""

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.aggregation import AGGREGATIONS, ChosenAggregation, choose, store
from strategies.aggregation.masked_mean import Positions

ROBUST = ("median", "trimmed_mean", "clipped_mean")
NAMES = tuple(AGGREGATIONS)


def _round(seed, devices, size=40, kept=0.7):
    """Random uploads, on a grid that sums of float64 hold exactly."""
    rng = np.random.default_rng(seed)
    current = rng.integers(-999, 999, size).astype(np.float32) / 64
    masks = rng.random((devices, size)) < kept
    uploads = np.where(masks, rng.integers(-999, 999, (devices, size)).astype(np.float32) / 64, current)
    return current, uploads, masks


def _stream(chosen, current, uploads, masks, weights):
    aggregator = chosen.start(current)
    for values, mask, weight in zip(uploads, masks, weights, strict=True):
        if not mask.any():
            aggregator.add_nothing(weight)
        else:
            aggregator.add(values[mask], None if mask.all() else Positions(mask), weight)
    return aggregator.finish()


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), devices=st.integers(1, 9), equal=st.booleans())
def test_the_order_of_devices_does_not_show_in_a_bit(name, seed, devices, equal):
    chosen = choose(name, {})
    current, uploads, masks = _round(seed, devices)
    rng = np.random.default_rng(seed + 1)
    weights = np.ones(devices) if equal else rng.integers(1, 5, devices).astype(float)
    order = rng.permutation(devices)
    found = chosen(current, uploads, masks, weights)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, chosen(current, uploads[order], masks[order], weights[order]))


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), devices=st.integers(1, 9))
def test_a_weight_that_nobody_kept_stays_and_equal_uploads_are_what_comes_out(name, seed, devices):
    chosen = choose(name, {})
    rng = np.random.default_rng(seed)
    current = rng.standard_normal(40).astype(np.float32)
    upload = rng.standard_normal(40).astype(np.float32)
    masks = np.repeat(rng.random((1, 40)) < 0.7, devices, 0)  # kept by all or by nobody
    uploads = np.where(masks, upload, current)
    found = chosen(current, uploads, masks, rng.uniform(0.5, 3.0, devices))
    np.testing.assert_array_equal(found, np.where(masks[0], upload, current))


@pytest.mark.parametrize("name", ["keepers_mean", *ROBUST])
@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), devices=st.integers(2, 9))
def test_what_stands_outside_the_masks_means_nothing(name, seed, devices):
    chosen = choose(name, {})
    current, uploads, masks = _round(seed, devices)
    other = np.where(masks, uploads, np.float32(77))
    ones = np.ones(devices)
    np.testing.assert_array_equal(chosen(current, uploads, masks, ones), chosen(current, other, masks, ones))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("equal", [True, False])
@pytest.mark.parametrize("in_memory", [True, False])
def test_one_upload_at_a_time_gives_the_same(name, equal, in_memory, monkeypatch):
    """Whatever the size of a block, and whether values lie in memory or in a file."""
    monkeypatch.setattr(store, "BLOCK_BYTES", 500)
    if not in_memory:
        monkeypatch.setattr(store, "MEMORY_BYTES", 100)
    chosen = choose(name, {})
    current, uploads, masks = _round(3, 7, size=1001)
    masks[2] = True
    masks[4] = False
    uploads = np.where(masks, uploads, current)
    weights = np.ones(7) if equal else np.arange(1.0, 8.0)
    found = _stream(chosen, current, uploads, masks, weights)
    np.testing.assert_array_equal(found.weights, chosen(current, uploads, masks, weights))
    np.testing.assert_array_equal(found.counts, masks.sum(0))


@pytest.mark.parametrize("name", ["median", "trimmed_mean"])
@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), honest=st.integers(1, 8), data=st.data())
def test_hostile_values_leave_a_weight_between_honest_ones(name, seed, honest, data):
    """With f of c keepers hostile: f < c / 2 for the median, f <= ceil(share c) for the trimmed mean."""
    share = 0.3
    most = honest - 1
    hostile = data.draw(st.integers(0, most))
    keepers = honest + hostile
    if name == "trimmed_mean":
        hostile = min(hostile, int(np.ceil(share * keepers)))
        while hostile > min(np.ceil(share * (honest + hostile)), (honest + hostile - 1) // 2):
            hostile -= 1
    rng = np.random.default_rng(seed)
    good = rng.standard_normal((honest, 20)).astype(np.float32)
    bad = rng.choice(np.array([-1e30, 1e30, 0.3], np.float32), (hostile, 20))
    uploads = rng.permutation(np.concatenate([good, bad]))
    found = choose(name, {"share": share} if name == "trimmed_mean" else {})(
        np.zeros(20, np.float32), uploads, np.ones(uploads.shape, bool), np.ones(len(uploads))
    )
    assert (good.min(0) <= found).all()
    assert (found <= good.max(0)).all()


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), honest=st.integers(3, 8), factor=st.sampled_from([0.5, 1.0, 2.0]))
def test_a_clipped_device_moves_the_mean_no_further_than_an_honest_one(seed, honest, factor):
    """Hostile devices below one half: the mean moves by at most factor x the longest honest update."""
    rng = np.random.default_rng(seed)
    hostile = int(rng.integers(0, honest))
    current = rng.standard_normal(30).astype(np.float32)
    updates = rng.standard_normal((honest + hostile, 30))
    updates[honest:] *= 1e6
    found = choose("clipped_mean", {"factor": factor, "times": 1})(
        current, (current + updates).astype(np.float32), np.ones(updates.shape, bool), np.ones(len(updates))
    )
    longest = np.linalg.norm(updates[:honest], axis=1).max()
    assert np.linalg.norm(found - current) <= factor * longest * (1 + 1e-5)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), hostile=st.integers(0, 4), times=st.integers(1, 5))
def test_honest_devices_that_agree_are_followed_whatever_the_others_send(seed, hostile, times):
    """The error shrinks by 2 q each time, q the hostile share: q of them pull by no more than it is long."""
    rng = np.random.default_rng(seed)
    current = rng.standard_normal(20).astype(np.float32)
    uploads = np.repeat(current[None] + rng.standard_normal(20).astype(np.float32), 10, 0)
    wanted = uploads[-1].copy()
    uploads[:hostile] += (rng.choice([0.1, 1.0, 1e6]) * rng.standard_normal((hostile, 20))).astype(np.float32)
    found = choose("clipped_mean", {"times": times})(
        current, uploads, np.ones(uploads.shape, bool), np.ones(10)
    )
    most = (0.2 * hostile) ** times * np.linalg.norm(wanted - current)
    assert np.linalg.norm(found - wanted) <= most + 1e-4


def test_by_hand():
    """Weight 0 is kept by all four, weight 1 by the first two, weight 2 by nobody; the update of 9 is cut."""
    current = np.array([1, 2, 3], np.float32)
    masks = np.array([[1, 1, 0], [1, 1, 0], [1, 0, 0], [1, 0, 0]], bool)
    uploads = np.where(masks, np.array([[2, 4, 0], [3, 8, 0], [4, 0, 0], [11, 0, 0]]), current)
    uploads = uploads.astype(np.float32)

    def result(name, weights=(1, 1, 1, 1), **options):
        return choose(name, options)(current, uploads, masks, np.array(weights, float)).tolist()

    assert result("keepers_mean") == [5, 6, 3]
    assert result("keepers_mean", (3, 1, 1, 1)) == [4, 5, 3]
    assert result("all_devices_mean") == [5, 4, 3]  # 2 + (2 + 6) / 4
    assert result("trimmed_mean", share=0.25) == [3.5, 6, 3]  # (3 + 4) / 2; of two keepers none is left out
    assert result("trimmed_mean", share=0.0) == [5, 6, 3]
    assert result("trimmed_mean", (1, 3, 1, 1), share=0.25) == [3.25, 7, 3]
    assert result("median") == [3.5, 6, 3]
    assert result("median", (4, 1, 1, 1)) == [2, 4, 3]
    # Norms: sqrt(1 + 4), sqrt(4 + 36), 3, 10; the lower median is 3.
    short = 3 / np.sqrt(40)
    expected = [1 + (1 + 2 * short + 3 + 3) / 4, 2 + (2 + 6 * short) / 2, 3]
    np.testing.assert_allclose(result("clipped_mean", times=1), expected, rtol=1e-6)
    # About that mean the distances are again over what each kept; its third is the median.
    found = np.array(expected)
    far = [np.linalg.norm((row - found)[mask]) for row, mask in zip(uploads, masks, strict=True)]
    part = np.minimum(1.0, sorted(far)[1] / np.array(far))
    moved = [row - found for row in uploads]
    first = found[0] + sum(p * m[0] for p, m in zip(part, moved, strict=True)) / 4
    second = found[1] + (part[0] * moved[0][1] + part[1] * moved[1][1]) / 2
    np.testing.assert_allclose(result("clipped_mean", times=2), [first, second, 3], rtol=1e-5)


def test_memory_of_held_uploads_is_a_block_not_a_matrix(monkeypatch):
    """60 devices x 200 000 weights make 48 MB; in blocks, with the values in a file, a quarter does."""
    import tracemalloc

    monkeypatch.setattr(store, "BLOCK_BYTES", 1 << 18)
    monkeypatch.setattr(store, "MEMORY_BYTES", 1 << 20)
    current = np.zeros(200_000, np.float32)
    values = np.ones(200_000, np.float32)
    aggregator = choose("median", {}).start(current)
    tracemalloc.start()
    for _ in range(60):
        aggregator.add(values, None, 1.0)
    assert aggregator.finish().weights.tolist()[:2] == [1.0, 1.0]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12e6, f"{peak / 1e6:.0f} MB"


OWN = """
import numpy as np

def halfway(current, uploads, masks, weights, *, step=0.5):
    mean = np.where(masks, uploads, 0).sum(0) / np.maximum(masks.sum(0), 1)
    return (current + step * (mean - current)).astype(np.float32)

def explodes(current, uploads, masks, weights):
    return current / 0

def short(current, uploads, masks, weights):
    return current[:-1]

def fails(current, uploads, masks, weights):
    raise KeyError("no such thing")
"""


def test_one_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "own_aggregation.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_aggregation", raising=False)
    current, uploads, masks = _round(0, 4)
    chosen = choose("own_aggregation:halfway", {"step": 0.25})
    mean = choose("keepers_mean", {})(current, uploads, masks, np.ones(4))
    found = _stream(chosen, current, uploads, masks, np.ones(4)).weights
    np.testing.assert_allclose(found, current + 0.25 * (mean - current), rtol=1e-5)
    for name, words in [
        ("explodes", "must be finite"),
        ("short", "float32 of shape"),
        ("fails", "KeyError: 'no such thing'"),
    ]:
        with pytest.raises(ValueError, match=words):
            choose(f"own_aggregation:{name}", {})


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("mean", {}, "scheme.aggregation = 'mean' is unknown.*keepers_mean"),
        ("median", {"share": 0.1}, "has no option 'share'"),
        ("trimmed_mean", {"share": 0.5}, r"share = 0\.5; it must be at least 0 and below 0\.5"),
        ("clipped_mean", {"factor": 0}, "factor = 0; it must be positive"),
        ("clipped_mean", {"times": 0}, "times = 0; it must be a whole number"),
    ],
)
def test_names_and_options_are_checked(name, options, words):
    with pytest.raises(ValueError, match=words):
        choose(name, options)


def test_more_devices_than_the_trial_has():
    """A chosen aggregation is data: it can be compared, and starts as many rounds as it likes."""
    chosen = choose("median", {})
    assert isinstance(chosen, ChosenAggregation)
    first, second = chosen.start(np.zeros(1, np.float32)), chosen.start(np.zeros(1, np.float32))
    first.add(np.ones(1, np.float32), None)
    second.add(np.full(1, 2, np.float32), None)
    assert (first.finish().weights[0], second.finish().weights[0]) == (1, 2)
