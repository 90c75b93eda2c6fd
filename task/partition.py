"""Deal a data set to devices: label sets per device, Dirichlet label mixes, i.i.d., shards, sizes, owners.

A partitioner says *how many* training samples of each label a device gets, as a (device, label) table whose
columns do not exceed what there is, or names each device's samples itself, as a list of K index arrays. It is
given what its positional parameters name: `available` (samples of each label), `labels` and `groups` (of each
sample), `num_devices`, `rng`; its keyword-only parameters are ``partition.options``. Dealing the samples,
capping
them and finding a test part with the same label mix is common to all of them, and vectorised: 10 000 devices
take milliseconds.

One file, long as it is: what all partitions share, and the built-in ones, of twenty lines each.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from registry import Registry

Ints = npt.NDArray[np.int64]
Groups = npt.NDArray[Any]
Partitioner = Callable[..., Ints | Sequence[Ints]]
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
    groups: Groups | None = None,
    test_groups: Groups | None = None,
    samples_per_device: int | None = None,
    test_samples_per_device: int | None = None,
    **options: Any,
) -> list[DevicePart]:
    """Deal the samples to `num_devices` devices.

    Args:
        name: a key of `PARTITIONERS`, or ``package.module:function``.
        train_labels: int (n,), labels 0, 1, ... of the training set.
        test_labels: int (m,), those of the test set.
        num_devices: number of devices K.
        rng: generator of the deal.
        groups, test_groups: whose each training and test sample is, (n,) and (m,), where that is known.
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

    facts = {
        "available": available,
        "labels": train,
        "groups": groups,
        "num_devices": num_devices,
        "rng": rng,
    }
    found = builder(*(facts[one] for one in _asked_for(name, builder, facts)), **options)
    named: list[Ints] | None = None
    if isinstance(found, np.ndarray):
        counts = _checked_table(name, found, available, num_devices)
    else:
        named = _checked_lists(name, found, train.size, num_devices)
        counts = np.stack([np.bincount(train[mine], minlength=num_classes) for mine in named])
    if not counts.any(axis=1).all():
        starved = int((~counts.any(axis=1)).sum())
        raise ValueError(
            f"num_devices = {num_devices} is too many for {train.size} training samples with partition "
            f"{name!r}: {starved} devices would have none"
        )
    taken = (
        counts if samples_per_device is None else _cap(counts, samples_per_device, "samples_per_device", 0)
    )
    if named is None:
        train_parts = _deal(train, available, np.cumsum(counts, axis=0) - counts, taken, rng)
    else:
        train_parts = [_some(mine, train, row, rng) for mine, row in zip(named, taken, strict=True)]
    if named is not None and groups is not None and test_groups is not None and name == "natural":
        test_parts = _tests_of_owners(groups, test_groups, named, test_samples_per_device, rng)
    else:
        test_parts = _tests_by_label(
            test, available, available_test, counts, taken > 0, test_samples_per_device, rng
        )
    return [
        DevicePart(mine, theirs, tuple(np.unique(np.concatenate([train[mine], test[theirs]])).tolist()))
        for mine, theirs in zip(train_parts, test_parts, strict=True)
    ]


def _asked_for(name: str, builder: Partitioner, facts: dict[str, Any]) -> list[str]:
    """Return the names of what a partitioner is given.

    Raises:
        ValueError: if it asks for something that there is not.
    """
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    asked = [one.name for one in inspect.signature(builder).parameters.values() if one.kind in kinds]
    for one in asked:
        if one not in facts:
            raise ValueError(
                f"partition {name!r} has a parameter {one!r}; valid: {', '.join(facts)}, and keyword-only "
                "options"
            )
    if "groups" in asked and facts["groups"] is None:
        raise ValueError(
            f"partition {name!r} goes by whose each sample is, which the data set does not tell: give "
            "Dataset(groups=...), or another partition"
        )
    return asked


def _checked_table(name: str, table: npt.NDArray[Any], available: Ints, num_devices: int) -> Ints:
    if table.shape != (num_devices, available.size) or table.dtype.kind not in "iu" or (table < 0).any():
        raise ValueError(
            f"partition {name!r} returned {table.dtype} {table.shape}; counts of shape "
            f"{(num_devices, available.size)} (device, label) are expected"
        )
    if (table.sum(axis=0) > available).any():
        label = int(np.argmax(table.sum(axis=0) - available))
        raise ValueError(
            f"partition {name!r} deals {int(table[:, label].sum())} samples of label {label}; there are "
            f"{int(available[label])}"
        )
    return table.astype(np.int64)


def _checked_lists(name: str, lists: Sequence[Any], number: int, num_devices: int) -> list[Ints]:
    if len(lists) != num_devices:
        raise ValueError(f"partition {name!r} returned {len(lists)} parts; num_devices = {num_devices}")
    parts = [np.asarray(mine, dtype=np.int64).ravel() for mine in lists]
    everyone = np.concatenate(parts)
    if everyone.size and (everyone.min() < 0 or everyone.max() >= number):
        raise ValueError(f"partition {name!r} names sample {int(everyone.max())}; there are {number}")
    if np.unique(everyone).size != everyone.size:
        raise ValueError(f"partition {name!r} gives a sample to more than one device")
    return parts


def _some(mine: Ints, labels: Ints, wanted: Ints, rng: np.random.Generator) -> Ints:
    """Return so many of each label of one's own samples, in a shuffled order."""
    order = rng.permutation(mine)
    if order.size == int(wanted.sum()):
        return order
    piles = [order[labels[order] == label][: int(number)] for label, number in enumerate(wanted) if number]
    return np.concatenate(piles)


def _tests_by_label(
    test: Ints,
    available: Ints,
    available_test: Ints,
    counts: Ints,
    held: npt.NDArray[np.bool_],
    cap: int | None,
    rng: np.random.Generator,
) -> list[Ints]:
    """Deal test samples: a device's share of a label is that of its training samples, at least one."""
    if (missing := np.flatnonzero(held.any(axis=0) & (available_test == 0))).size:
        raise ValueError(f"the test set has no sample of label {', '.join(map(str, missing))}")
    ends = np.cumsum(counts, axis=0) * available_test // np.maximum(available, 1)
    test_counts = np.where(held, np.maximum(np.diff(ends, axis=0, prepend=0), 1), 0)
    if cap is not None:
        test_counts = _cap(test_counts, cap, "test_samples_per_device", 1)
    return _deal(test, available_test, np.cumsum(test_counts, axis=0) - test_counts, test_counts, rng)


def _tests_of_owners(
    groups: Groups, test_groups: Groups, named: Sequence[Ints], cap: int | None, rng: np.random.Generator
) -> list[Ints]:
    """Return the test samples of each device's own group."""
    parts = []
    for mine in named:
        owner = groups[mine[0]]
        found = rng.permutation(np.flatnonzero(test_groups == owner))[:cap]
        if not found.size:
            raise ValueError(
                f"group {owner} has training samples and no test samples; leave Dataset(test_groups=...) "
                "out to "
                "deal test samples by label"
            )
        parts.append(found)
    return parts


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


@PARTITIONERS.register("natural")
def natural(groups: Groups, num_devices: int, rng: np.random.Generator) -> list[Ints]:
    """A device is an owner: each gets the samples of one group, as the data set tells them (LEAF, Caldas
    2018).

    Groups are in order of number or name; of more groups than devices, so many are drawn. Group -1 is
    nobody's.
    """
    owners, member = np.unique(groups, return_inverse=True)
    valid = np.flatnonzero(owners != -1) if owners.dtype.kind in "iu" else np.arange(owners.size)
    if valid.size < num_devices:
        raise ValueError(
            f"num_devices = {num_devices} is too many for partition 'natural': the data set has "
            f"{valid.size} groups"
        )
    chosen = np.sort(rng.choice(valid, num_devices, replace=False)) if valid.size > num_devices else valid
    order = np.argsort(member, kind="stable")
    starts = np.searchsorted(member[order], chosen)
    ends = np.searchsorted(member[order], chosen, side="right")
    return [order[start:end] for start, end in zip(starts, ends, strict=True)]


@PARTITIONERS.register("quantity")
def quantity(
    available: Ints,
    num_devices: int,
    rng: np.random.Generator,
    *,
    exponent: float = 1.0,
    min_samples: int = 2,
) -> Ints:
    """Devices of unequal size with the same label mix: sizes fall with rank to a power (Zipf).

    Which device has which rank is drawn.

    Args:
        available: samples per label (C,).
        num_devices: number of devices K.
        rng: generator.
        exponent: sizes are proportional to rank^-exponent; 0: equal.
        min_samples: every device gets at least this many samples.
    """
    if not (np.isfinite(exponent) and exponent >= 0):
        raise ValueError(f"partition option exponent = {exponent}; it must be at least 0")
    _at_least("min_samples", min_samples, 1)
    total = int(available.sum())
    if total < num_devices * min_samples:
        raise ValueError(
            f"partition option min_samples = {min_samples}: {num_devices} devices need "
            f"{num_devices * min_samples} samples, there are {total}"
        )
    shares = rng.permutation(np.arange(1, num_devices + 1) ** -float(exponent))
    shares /= shares.sum()
    # The least is set aside for everybody, the rest shared out by rank.
    ends = np.rint(np.cumsum(shares) * (total - num_devices * min_samples)).astype(np.int64)
    sizes = np.diff(ends, prepend=0) + min_samples
    labels = rng.permutation(np.repeat(np.arange(available.size), available))
    device = np.repeat(np.arange(num_devices), sizes)
    table = np.bincount(device * available.size + labels, minlength=num_devices * available.size)
    return table.reshape(num_devices, available.size).astype(np.int64)
