"""Deal a data set to devices: label sets per device, Dirichlet label mixes, i.i.d., shards.

A partitioner only says *how many* training samples of each label a device gets, as a (device, label) table
whose columns do not exceed what there is. Dealing the samples, capping them and finding a test part with the
same label mix is common to all of them, and vectorised: 10 000 devices take milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from registry import Registry

Ints = npt.NDArray[np.int64]
Partitioner = Callable[..., Ints]
PARTITIONERS: Registry[Partitioner] = Registry("partition", key="partition.name")


@dataclass(frozen=True, eq=False)
class DevicePart:
    """The samples of one device.

    Attributes:
        train: int64 (n,), positions in the training set; no two devices share one.
        test: int64 (m,), positions in the test set, same label set and (up to rounding) proportions as
            `train`. Devices share test samples only where there are fewer of a label than devices need.
        labels: the labels of both parts, ascending.
    """

    train: Ints
    test: Ints
    labels: tuple[int, ...]


def partition(
    name: str,
    train_labels: npt.ArrayLike,
    test_labels: npt.ArrayLike,
    num_devices: int,
    rng: np.random.Generator,
    *,
    samples_per_device: int | None = None,
    test_samples_per_device: int | None = None,
    **options: Any,
) -> list[DevicePart]:
    """Deal the samples to `num_devices` devices.

    Args:
        name: a key of `PARTITIONERS`.
        train_labels: int (n,), labels 0, 1, ... of the training set.
        test_labels: int (m,), those of the test set.
        num_devices: number of devices K.
        rng: generator of the deal.
        samples_per_device: at most this many training samples for each device, in its label proportions.
        test_samples_per_device: the same for test samples (each label of the device keeps at least one).
        **options: options of that partitioner, see the keyword arguments of its function.

    Returns:
        K parts.

    Raises:
        ValueError: if a name, option or number is not valid, or there are too few samples.
    """
    builder = PARTITIONERS.select(name, options)
    train, test = np.asarray(train_labels, dtype=np.int64), np.asarray(test_labels, dtype=np.int64)
    _at_least("num_devices", num_devices, 1)
    num_classes = int(max(train.max(initial=-1), test.max(initial=-1))) + 1
    available = np.bincount(train, minlength=num_classes)
    available_test = np.bincount(test, minlength=num_classes)

    counts = builder(available, num_devices, rng, **options)
    if not counts.any(axis=1).all():
        starved = int((~counts.any(axis=1)).sum())
        raise ValueError(
            f"num_devices = {num_devices} is too many for {train.size} training samples with partition "
            f"{name!r}: {starved} devices would have none"
        )
    taken = (
        counts if samples_per_device is None else _cap(counts, samples_per_device, "samples_per_device", 0)
    )
    held = taken > 0
    if (missing := np.flatnonzero(held.any(axis=0) & (available_test == 0))).size:
        raise ValueError(f"the test set has no sample of label {', '.join(map(str, missing))}")

    # A device's share of the test samples of a label is its share of the training samples, at least one.
    ends = np.cumsum(counts, axis=0) * available_test // np.maximum(available, 1)
    test_counts = np.where(held, np.maximum(np.diff(ends, axis=0, prepend=0), 1), 0)
    if test_samples_per_device is not None:
        test_counts = _cap(test_counts, test_samples_per_device, "test_samples_per_device", 1)

    train_parts = _deal(train, available, np.cumsum(counts, axis=0) - counts, taken, rng)
    test_parts = _deal(test, available_test, np.cumsum(test_counts, axis=0) - test_counts, test_counts, rng)
    return [
        DevicePart(mine, mine_test, tuple(np.flatnonzero(row).tolist()))
        for mine, mine_test, row in zip(train_parts, test_parts, held, strict=True)
    ]


def _at_least(name: str, value: float, least: float) -> None:
    if not value >= least:
        raise ValueError(f"partition option {name} = {value}; it must be at least {least}")


def _cap(counts: Ints, cap: int, name: str, least: int) -> Ints:
    """Scale rows whose sum exceeds `cap` down to it, keeping proportions (largest remainders)."""
    _at_least(name, cap, 1)
    floor = np.minimum(counts, least)
    if (floor.sum(axis=1) > cap).any():
        raise ValueError(
            f"{name} = {cap} is less than the {int(floor.sum(axis=1).max())} labels that a device holds"
        )
    total = counts.sum(axis=1, keepdims=True)
    ideal = np.minimum(cap / np.maximum(total, 1), 1.0) * counts
    capped: Ints = np.maximum(np.floor(ideal).astype(np.int64), floor)
    # Raising small labels to the floor may overshoot: take the excess from the largest, one at a time.
    while (over := np.flatnonzero(capped.sum(axis=1) > cap)).size:
        capped[over, np.argmax(capped[over], axis=1)] -= 1
    short = np.minimum(cap, total[:, 0]) - capped.sum(axis=1)
    while (under := np.flatnonzero(short > 0)).size:
        gap = np.where(capped[under] < counts[under], ideal[under] - capped[under], -np.inf)
        capped[under, np.argmax(gap, axis=1)] += 1
        short[under] -= 1
    return capped


def _deal(labels: Ints, available: Ints, starts: Ints, counts: Ints, rng: np.random.Generator) -> list[Ints]:
    """Give device k `counts[k, c]` samples from place `starts[k, c]` of label c's shuffled pile (cyclic)."""
    order = rng.permutation(labels.size)
    piles = order[np.argsort(labels[order], kind="stable")]
    pile_starts = np.cumsum(available) - available
    flat = counts.ravel()
    cell = np.repeat(np.arange(flat.size), flat)
    within = np.arange(cell.size) - (np.cumsum(flat) - flat)[cell]
    label = cell % available.size
    dealt = piles[pile_starts[label] + (starts.ravel()[cell] + within) % available[label]]
    return np.split(dealt, np.cumsum(counts.sum(axis=1))[:-1])


def _round_shares(shares: npt.NDArray[np.float64], available: Ints) -> Ints:
    """Turn shares (K, C) of each label, columns summing to 1, into whole counts that use every sample."""
    ends = np.rint(np.cumsum(shares, axis=0) * available).astype(np.int64)
    ends[-1] = available
    counts: Ints = np.diff(ends, axis=0, prepend=0)
    return counts


@PARTITIONERS.register("labels")
def labels_per_device(
    available: Ints, num_devices: int, rng: np.random.Generator, *, labels_per_device: int = 2
) -> Ints:
    """Device k holds labels k, k+1, ..., k + L - 1 (mod C); a label is divided evenly among its holders.

    With 10 devices and L = 2, device k gets half of label k and half of label k+1, our concrete form of the
    "several labels per device" of Liu et al. 2024.
    """
    num_classes = available.size
    if not 1 <= labels_per_device <= num_classes:
        raise ValueError(f"partition option labels_per_device = {labels_per_device}; valid: 1..{num_classes}")
    devices = np.arange(num_devices)
    holds = (np.arange(num_classes) - devices[:, None]) % num_classes < labels_per_device
    holders = np.maximum(holds.sum(axis=0), 1)
    ends = np.cumsum(holds, axis=0) * available // holders
    counts: Ints = np.diff(ends, axis=0, prepend=0)
    return counts


@PARTITIONERS.register("iid")
def iid(available: Ints, num_devices: int, rng: np.random.Generator) -> Ints:
    """Shuffle the samples and divide them evenly."""
    labels = rng.permutation(np.repeat(np.arange(available.size), available))
    device = np.arange(labels.size) * num_devices // max(labels.size, 1)
    table = np.bincount(device * available.size + labels, minlength=num_devices * available.size)
    return table.reshape(num_devices, available.size).astype(np.int64)


@PARTITIONERS.register("shards")
def shards(
    available: Ints, num_devices: int, rng: np.random.Generator, *, shards_per_device: int = 2
) -> Ints:
    """Sort the samples by label, cut them into equal shards, deal `shards_per_device` to each device.

    The non-i.i.d. split of McMahan et al. 2017 (FedAvg), with 2 shards per device.
    """
    _at_least("shards_per_device", shards_per_device, 1)
    num_shards = num_devices * shards_per_device
    cuts = np.arange(num_shards + 1) * int(available.sum()) // num_shards
    label_ends = np.cumsum(available)
    upper = np.minimum(cuts[1:, None], label_ends)
    lower = np.maximum(cuts[:-1, None], label_ends - available)
    table = np.maximum(upper - lower, 0)[rng.permutation(num_shards)]
    counts: Ints = table.reshape(num_devices, shards_per_device, -1).sum(axis=1)
    return counts


@PARTITIONERS.register("dirichlet")
def dirichlet(
    available: Ints, num_devices: int, rng: np.random.Generator, *, alpha: float = 0.5, min_samples: int = 2
) -> Ints:
    """Devices of (nearly) equal size with label mixes from Dirichlet(alpha * label frequencies * C).

    The mixes of Hsu et al. 2019, then fitted to the samples there are: rows and columns are scaled in turn
    (Sinkhorn) until the devices are of equal size and every sample is dealt once. Drawing mixes per device,
    instead of dividing each label by a draw over devices, works with any number of devices.

    Args:
        available: samples per label (C,).
        num_devices: number of devices K.
        rng: generator of the mixes.
        alpha: concentration, > 0; small: few labels per device, large: i.i.d.
        min_samples: every device gets at least this many samples.
    """
    if not (np.isfinite(alpha) and alpha > 0):
        raise ValueError(f"partition option alpha = {alpha}; it must be positive")
    _at_least("min_samples", min_samples, 1)
    total = int(available.sum())
    if total < num_devices * min_samples:
        raise ValueError(
            f"partition option min_samples = {min_samples}: {num_devices} devices need "
            f"{num_devices * min_samples} samples, there are {total}"
        )
    frequency = available / total
    present = available > 0
    mix = np.zeros((num_devices, available.size))
    concentration = alpha * frequency[present] * int(present.sum())
    mix[:, present] = np.maximum(rng.dirichlet(concentration, size=num_devices), 1e-12)
    for _ in range(50):
        mix *= (frequency / np.maximum(mix.sum(axis=0), 1e-300))[None, :]
        mix *= 1.0 / (num_devices * mix.sum(axis=1, keepdims=True))
    counts = _round_shares(mix / np.maximum(mix.sum(axis=0), 1e-300), available)
    # Rounding can leave a tiny device short: the largest ones give it samples of their largest label.
    sizes = counts.sum(axis=1)
    for needy in np.flatnonzero(sizes < min_samples):
        while sizes[needy] < min_samples:
            donor = int(np.argmax(sizes))
            label = int(np.argmax(counts[donor]))
            counts[donor, label] -= 1
            counts[needy, label] += 1
            sizes[donor] -= 1
            sizes[needy] += 1
    return counts
