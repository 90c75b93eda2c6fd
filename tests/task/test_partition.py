import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from task.partition import PARTITIONERS, partition


def _labels(seed: int, num_train: int = 3000, num_test: int = 800):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 10, num_train), np.concatenate([np.arange(10), rng.integers(0, 10, num_test)])


@settings(deadline=None, max_examples=80)
@given(
    name=st.sampled_from(sorted(PARTITIONERS)),
    seed=st.integers(0, 2**32),
    num_devices=st.integers(1, 400),
    cap=st.none() | st.integers(1, 300),
    test_cap=st.none() | st.integers(10, 60),
)
def test_train_parts_are_disjoint_and_test_parts_have_their_label_set(name, seed, num_devices, cap, test_cap):
    train, test = _labels(seed)
    parts = partition(
        name,
        train,
        test,
        num_devices,
        np.random.default_rng(seed),
        groups=np.arange(train.size) % num_devices,
        samples_per_device=cap,
        test_samples_per_device=test_cap,
    )
    assert len(parts) == num_devices
    everyone = np.concatenate([part.train for part in parts])
    assert everyone.dtype == np.int64
    assert np.unique(everyone).size == everyone.size
    for part in parts:
        assert 1 <= part.train.size <= (cap or train.size)
        assert part.test.size <= (test_cap or test.size)
        assert np.unique(part.test).size == part.test.size
        assert set(train[part.train]) == set(test[part.test]) == set(part.labels)
    if cap is None and name != "labels":
        assert everyone.size == train.size


def test_label_partition_is_half_of_one_label_and_half_of_the_next():
    train, test = np.repeat(np.arange(10), 100), np.repeat(np.arange(10), 20)
    parts = partition("labels", train, test, 10, np.random.default_rng(0))
    for k, part in enumerate(parts):
        expected = np.zeros(10)
        expected[[k, (k + 1) % 10]] = 50
        np.testing.assert_array_equal(np.bincount(train[part.train], minlength=10), expected)
        np.testing.assert_array_equal(np.bincount(test[part.test], minlength=10), expected / 5)
    assert np.unique(np.concatenate([part.test for part in parts])).size == test.size


@pytest.mark.parametrize(("num_devices", "labels"), [(3, 1), (10, 5), (25, 3), (100, 2)])
def test_labels_per_device_is_kept_for_any_number_of_devices(num_devices, labels):
    train, test = _labels(1)
    parts = partition("labels", train, test, num_devices, np.random.default_rng(0), labels_per_device=labels)
    assert all(len(part.labels) == labels for part in parts)


def test_shards_give_few_labels_and_equal_sizes():
    train, test = np.repeat(np.arange(10), 200), np.repeat(np.arange(10), 20)
    parts = partition("shards", train, test, 50, np.random.default_rng(0))
    assert {part.train.size for part in parts} == {40}
    assert max(len(part.labels) for part in parts) == 2  # 200 is a multiple of the shard of 20


def test_iid_mixes_match_the_whole():
    train, test = _labels(2, num_train=20_000)
    for part in partition("iid", train, test, 10, np.random.default_rng(0)):
        share = np.bincount(train[part.train], minlength=10) / part.train.size
        np.testing.assert_allclose(share, 0.1, atol=0.03)


def _label_entropy(alpha: float) -> float:
    train, test = _labels(3, num_train=20_000)
    entropies = []
    for part in partition("dirichlet", train, test, 20, np.random.default_rng(0), alpha=alpha):
        share = np.bincount(train[part.train], minlength=10) / part.train.size
        entropies.append(-np.sum(share[share > 0] * np.log(share[share > 0])))
    return float(np.mean(entropies))


def test_dirichlet_goes_from_single_labels_to_iid():
    entropies = [_label_entropy(alpha) for alpha in (0.01, 0.1, 1.0, 1000.0)]
    assert entropies == sorted(entropies)
    assert entropies[0] < 0.6
    assert entropies[-1] == pytest.approx(np.log(10), abs=0.01)


def test_dirichlet_test_part_has_the_proportions_of_the_train_part():
    train, test = _labels(4, num_train=20_000, num_test=10_000)
    for part in partition("dirichlet", train, test, 10, np.random.default_rng(0), alpha=1.0):
        mine = np.bincount(train[part.train], minlength=10) / part.train.size
        tested = np.bincount(test[part.test], minlength=10) / part.test.size
        np.testing.assert_allclose(tested, mine, atol=0.03)


def test_a_cap_keeps_the_proportions():
    train, test = _labels(5, num_train=20_000)
    whole = partition("dirichlet", train, test, 10, np.random.default_rng(0))
    capped = partition("dirichlet", train, test, 10, np.random.default_rng(0), samples_per_device=100)
    for full, part in zip(whole, capped, strict=True):
        assert part.train.size == 100
        expected = np.bincount(train[full.train], minlength=10) / full.train.size
        np.testing.assert_allclose(np.bincount(train[part.train], minlength=10) / 100, expected, atol=0.0101)


def test_ten_thousand_devices_all_have_samples():
    train, test = _labels(6, num_train=60_000, num_test=10_000)
    for name in PARTITIONERS:
        parts = partition(
            name, train, test, 10_000, np.random.default_rng(0), groups=np.arange(train.size) % 10_000
        )
        assert min(part.train.size for part in parts) >= 1
        assert min(part.test.size for part in parts) >= 1


def test_same_generator_same_deal():
    train, test = _labels(7)
    deals = [partition("dirichlet", train, test, 30, np.random.default_rng(9)) for _ in range(2)]
    for one, other in zip(*deals, strict=True):
        np.testing.assert_array_equal(one.train, other.train)
        np.testing.assert_array_equal(one.test, other.test)


@pytest.mark.parametrize(
    ("name", "devices", "options", "text"),
    [
        ("label", 10, {}, "dirichlet, iid, labels, natural, quantity, shards"),
        ("labels", 10, {"alpha": 1.0}, "labels_per_device"),
        ("labels", 10, {"labels_per_device": 11}, "labels_per_device = 11"),
        ("labels", 5000, {}, "num_devices = 5000"),
        ("iid", 0, {}, "num_devices = 0"),
        ("dirichlet", 10, {"alpha": 0.0}, "alpha = 0"),
        ("dirichlet", 100, {"min_samples": 500}, "min_samples = 500"),
        ("iid", 10, {"test_samples_per_device": 3}, "test_samples_per_device = 3"),
    ],
)
def test_wrong_values_are_named(name, devices, options, text):
    train, test = _labels(8)
    with pytest.raises(ValueError, match=text):
        partition(name, train, test, devices, np.random.default_rng(0), **options)
