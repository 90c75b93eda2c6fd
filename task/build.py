"""The learning task put together: data, parts, network, split, loss; for server and devices alike."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from task.dataset import Dataset, DatasetError, Pair
from task.datasets import DatasetUnavailableError, load_dataset
from task.layers import SELECTORS
from task.losses import Loss, make_loss
from task.metrics import Metric, make_metrics
from task.models import build_model
from task.partition import DevicePart, partition
from task.split import Buffers, Split, split_parameters
from task.transforms import Augment, Transform, make_augment, make_transform


class TaskError(ValueError):
    """A part of the task cannot be built; the text starts with the configuration key that names the part."""


@dataclass(frozen=True, kw_only=True)
class Learning:
    """What is done with samples, and what is measured: names, and options of each.

    Attributes:
        transform, transform_options: from stored samples to what the network takes.
        augment, augment_options: what is done to training batches; None: nothing.
        loss, loss_options: what training minimises; None: what fits the targets.
        metrics: what a test reports; None: what fits the targets.
        buffers: whether running statistics stay on the device or are averaged.
    """

    transform: str = "auto"
    transform_options: Mapping[str, Any] = field(default_factory=dict)
    augment: str | None = None
    augment_options: Mapping[str, Any] = field(default_factory=dict)
    loss: str | None = None
    loss_options: Mapping[str, Any] = field(default_factory=dict)
    metrics: Sequence[str] | None = None
    buffers: Buffers = "personal"


@dataclass(frozen=True, eq=False)
class Task:
    """What is learned, and from what.

    Attributes:
        data: the samples.
        parts: each device's samples.
        model: the network with its initial weights.
        split: its personal and its global part.
        transform: from stored samples to what the network takes.
        augment: of training batches, or None.
        loss: what training minimises.
        metrics: what a test reports.
    """

    data: Dataset
    parts: list[DevicePart]
    model: nn.Module
    split: Split
    transform: Transform
    augment: Augment | None
    loss: Loss
    metrics: tuple[Metric, ...]

    def train(self, indices: npt.NDArray[np.int64]) -> Pair:
        """Return training samples as the network takes them (n, ...), and their targets."""
        return self._take(self.data.train, indices)

    def test(self, indices: npt.NDArray[np.int64]) -> Pair:
        """Return test samples as the network takes them (n, ...), and their targets."""
        return self._take(self.data.test, indices)

    def _take(self, pair: Pair, indices: npt.NDArray[np.int64]) -> Pair:
        index = torch.from_numpy(np.asarray(indices, dtype=np.int64))
        return self.transform(pair[0][index]), pair[1][index]


def build_task(
    *,
    dataset: Mapping[str, Any] | Dataset,
    parts: Mapping[str, Any] | None,
    num_devices: int,
    model: Mapping[str, Any],
    personal: Sequence[str] | None,
    deal: np.random.Generator,
    init: torch.Generator,
    learning: Learning | None = None,
) -> Task:
    """Build the task; equal arguments give equal tasks.

    Args:
        dataset: keyword arguments of `load_dataset`, or a data set that is there already.
        parts: keyword arguments of `partition` (without labels and generator); None: each device has all.
        num_devices: K.
        model: keyword arguments of `build_model` (without classes, shape and generator).
        personal: patterns of the names of personal parameters and buffers; None: the user is to choose.
        deal: generator of the partition.
        init: generator of the initial weights.
        learning: what is done with samples; default: what fits them.

    Raises:
        TaskError: if a name, an option or a number is not valid, or the data are not there.
    """
    how = learning or Learning()
    data = dataset if isinstance(dataset, Dataset) else _load(**dataset)
    dealt = _deal(data, parts, num_devices, deal)
    with _named("dataset.transform"):
        transform = make_transform(how.transform, dict(how.transform_options), data)
    with _named("dataset.augment"):
        augment = make_augment(how.augment, dict(how.augment_options))
    with _named("task.loss"):
        loss = make_loss(how.loss, how.loss_options, data)
    with _named("task.metrics"):
        metrics = make_metrics(how.metrics, data)
    outputs = data.num_classes or math.prod(data.train[1].shape[1:])
    with _named("model"):
        module = build_model(**model, num_classes=outputs, sample_shape=data.sample_shape, generator=init)
        _finish(module, transform(data.train[0][:2]))
    with _named("model.personal"):
        if personal is None:
            raise ValueError(
                f"which parameters of model.name = {model['name']} are personal is to be chosen: patterns of "
                f"{', '.join(name for name, _ in module.named_parameters())}, or {SELECTORS}; []: none is"
            )
        split = split_parameters(module, personal, how.buffers)
    return Task(data, dealt, module, split, transform, augment, loss, metrics)


def _deal(
    data: Dataset, parts: Mapping[str, Any] | None, num_devices: int, deal: np.random.Generator
) -> list[DevicePart]:
    train, test = data.dealt_by
    if parts is None:
        everything = DevicePart(
            np.arange(train.size), np.arange(test.size), tuple(sorted({*train.tolist(), *test.tolist()}))
        )
        return [everything] * num_devices
    with _named("partition", f" (fleet.num_devices = {num_devices})"):
        options = dict(parts)
        name = options.pop("name")
        if not data.classification and name in ("labels", "dirichlet", "shards"):
            raise ValueError(
                f"name = {name} goes by labels, and the samples of the data set have none each; valid: iid, "
                "quantity, natural, or your own"
            )
        return partition(
            name,
            train,
            test,
            num_devices,
            deal,
            groups=data.groups,
            test_groups=data.test_groups,
            **options,
        )


def _finish(module: nn.Module, samples: torch.Tensor) -> None:
    """Give lazy layers their sizes, from a sample."""
    if any(isinstance(one, UninitializedParameter) for one in module.parameters()):
        with torch.no_grad():
            module(samples)


def _load(name: str, **options: Any) -> Dataset:
    try:
        return load_dataset(name, **options)
    except DatasetUnavailableError as error:
        raise TaskError(f"dataset.name = {name}: {error}") from error
    except DatasetError as error:
        raise TaskError(f"dataset.name = {name}: {error}") from error
    except (ValueError, TypeError) as error:
        raise TaskError(f"dataset: {error}") from error


@contextmanager
def _named(key: str, remark: str = "") -> Iterator[None]:
    """Say which part of the configuration an error belongs to."""
    try:
        yield
    except (ValueError, TypeError, RuntimeError) as error:
        text = str(error)
        if not text.startswith((f"{key} =", f"{key}.", f"{key}:")):
            text = f"{key}: {text}"
        raise TaskError(f"{text}{remark}") from error
