"""The learning task put together: data, parts, network and split, for the server and every device alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from task.datasets import DatasetUnavailableError, ImageData, load_dataset
from task.models import build_model
from task.partition import DevicePart, partition
from task.split import Split, split_parameters


class TaskError(ValueError):
    """A part of the task cannot be built; the text starts with the configuration key that names the part."""


@dataclass(frozen=True, eq=False)
class Task:
    """What is learned, and from what.

    Attributes:
        data: the images.
        parts: each device's samples.
        model: the network with its initial weights.
        split: its personal and its global part.
    """

    data: ImageData
    parts: list[DevicePart]
    model: nn.Sequential
    split: Split


def build_task(
    *,
    dataset: Mapping[str, Any] | ImageData,
    parts: Mapping[str, Any] | None,
    num_devices: int,
    model: Mapping[str, Any],
    personal: Sequence[str],
    deal: np.random.Generator,
    init: torch.Generator,
) -> Task:
    """Build the task; equal arguments give equal tasks.

    Args:
        dataset: keyword arguments of `load_dataset`, or images that are there already.
        parts: keyword arguments of `partition` (without labels and generator); None: each device has all.
        num_devices: K.
        model: keyword arguments of `build_model` (without classes and generator).
        personal: glob patterns of the personal parameters' names.
        deal: generator of the partition.
        init: generator of the initial weights.

    Raises:
        TaskError: if a name, an option or a number is not valid, or the data are not there.
    """
    data = dataset if isinstance(dataset, ImageData) else _load(**dataset)
    if parts is None:
        everything = DevicePart(
            np.arange(len(data.train_labels)),
            np.arange(len(data.test_labels)),
            tuple(sorted({*data.train_labels.tolist(), *data.test_labels.tolist()})),
        )
        dealt = [everything] * num_devices
    else:
        with _named("partition", f" (fleet.num_devices = {num_devices})"):
            options = dict(parts)
            dealt = partition(
                options.pop("name"),
                data.train_labels.numpy(),
                data.test_labels.numpy(),
                num_devices,
                deal,
                **options,
            )
    with _named("model"):
        module = build_model(**model, num_classes=data.num_classes, generator=init)
    with _named("model.personal"):
        split = split_parameters(module, personal)
    return Task(data, dealt, module, split)


def _load(name: str, **options: Any) -> ImageData:
    try:
        return load_dataset(name, **options)
    except DatasetUnavailableError as error:
        raise TaskError(f"dataset.name = {name}: {error}") from error
    except ValueError as error:
        raise TaskError(f"dataset: {error}") from error


@contextmanager
def _named(key: str, remark: str = "") -> Iterator[None]:
    """Say which part of the configuration an error belongs to."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise TaskError(f"{key}: {error}{remark}") from error
