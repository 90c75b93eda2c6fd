"""From samples as they are stored to what the network takes; and augmentation, of training batches only.

A transform is a function from a batch (n, ...) to a batch (n, ...), the same on every device of a run; an
augmentation is given the device's own generator, too, and nothing else that is random, so that runs repeat.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from registry import Registry
from task.dataset import Dataset, Pair

Transform = Callable[[torch.Tensor], torch.Tensor]
Augment = Callable[..., torch.Tensor]
Statistics = tuple[tuple[float, ...], tuple[float, ...]]

TRANSFORMS: Registry[Callable[..., Transform]] = Registry("transform", key="dataset.transform")
AUGMENTS: Registry[Augment] = Registry("augmentation", key="dataset.augment")


def make_transform(name: str, options: dict[str, Any], data: Dataset) -> Transform:
    """Return the transform called `name`.

    Args:
        name: "auto", "standard", "none", or ``package.module:function``, which is given a batch as stored.
        options: keyword arguments of that function.
        data: the data set, for its statistics.

    Raises:
        ValueError: if the name or an option is not valid, or does not fit the data.
    """
    builder: Callable[..., Any] = TRANSFORMS.select(name, options)
    if name in TRANSFORMS:
        found: Transform = builder(data, **options)
        return found
    return lambda inputs: builder(inputs, **options)


@TRANSFORMS.register("auto")
def auto(data: Dataset) -> Transform:
    """Pictures normalised by channel, real numbers as float32, whole numbers (tokens) as they are."""
    if data.pictures:
        return _Normalise(data.statistics, data.train[0].ndim, 255.0)
    if data.train[0].is_floating_point():
        return as_float32
    return as_it_is


@TRANSFORMS.register("standard")
def standard(data: Dataset) -> Transform:
    """Zero mean and unit variance of each channel (second dimension), over the training samples."""
    if data.pictures:
        return auto(data)
    if not data.train[0].is_floating_point():
        raise ValueError(
            f"dataset.transform = standard: the samples are {data.train[0].dtype}; it is for pictures and "
            "real "
            "numbers; use none"
        )
    return _Normalise(data.statistics, data.train[0].ndim, 1.0)


@TRANSFORMS.register("none")
def none(data: Dataset) -> Transform:
    """Samples as they are; pictures scaled to 0..1."""
    if data.pictures:
        return lambda inputs: inputs.to(torch.float32).mul_(1.0 / 255.0)
    return as_float32 if data.train[0].is_floating_point() else as_it_is


def as_float32(inputs: torch.Tensor) -> torch.Tensor:
    """Return float32."""
    return inputs.to(torch.float32)


def as_it_is(inputs: torch.Tensor) -> torch.Tensor:
    """Return what is given."""
    return inputs


class _Normalise:
    """(x / white - mean) / std, as one product and one difference."""

    def __init__(self, statistics: Statistics, dimensions: int, white: float) -> None:
        mean, std = statistics
        self._factor: float | torch.Tensor = 1.0 / (white * std[0])
        self._shift: float | torch.Tensor = mean[0] / std[0]
        if len(mean) > 1:  # numbers are several times as fast as tensors of one entry
            shape = (1, -1, *(1,) * (dimensions - 2))
            self._factor = torch.tensor([1.0 / (white * one) for one in std]).view(shape)
            self._shift = torch.tensor([m / s for m, s in zip(mean, std, strict=True)]).view(shape)

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return float32."""
        factor, shift = self._factor, self._shift
        if isinstance(factor, torch.Tensor) and factor.device != inputs.device:
            assert isinstance(shift, torch.Tensor)
            factor, shift = factor.to(inputs.device), shift.to(inputs.device)
        values = inputs.to(torch.float32)
        values = values.mul_(factor) if values is not inputs else values.mul(factor)
        return values.sub_(shift)


def make_augment(name: str | None, options: dict[str, Any]) -> Augment | None:
    """Return the augmentation called `name`, a function of a batch and a generator; None without one.

    Raises:
        ValueError: if the name or an option is not valid.
    """
    if name is None:
        return None
    function = AUGMENTS.select(name, options)
    return lambda inputs, generator: function(inputs, generator, **options)


@AUGMENTS.register("crop_flip")
def crop_flip(
    inputs: torch.Tensor, generator: torch.Generator, *, padding: int = 4, flip: bool = True
) -> torch.Tensor:
    """Cut each picture from itself padded by `padding` zeros on all sides, and mirror every other one.

    The usual augmentation of CIFAR (He et al. 2016). Zero is the mean of normalised pictures.

    Args:
        inputs: (n, channels, height, width), normalised.
        generator: CPU generator of the cuts.
        padding: >= 0.
        flip: whether half of them are mirrored left to right.
    """
    if inputs.ndim != 4:
        raise ValueError(
            f"dataset.augment = crop_flip: samples have shape {tuple(inputs.shape[1:])}; it is for "
            "pictures (channels, height, width)"
        )
    if padding < 0:
        raise ValueError(f"augment option padding = {padding}; it must be at least 0")
    number, _, height, width = inputs.shape
    padded = torch.nn.functional.pad(inputs, (padding,) * 4)
    places = torch.randint(0, 2 * padding + 1, (2, number), generator=generator)
    mirrored = (
        torch.rand(number, generator=generator) < 0.5 if flip else torch.zeros(number, dtype=torch.bool)
    )
    columns = torch.arange(width).expand(number, width)
    columns = torch.where(mirrored[:, None], columns.flip(1), columns) + places[1][:, None]
    rows = torch.arange(height) + places[0][:, None]
    where = inputs.device
    sample = torch.arange(number, device=where)[:, None, None]
    picked = padded.permute(0, 2, 3, 1)[sample, rows.to(where)[:, :, None], columns.to(where)[:, None, :]]
    return picked.permute(0, 3, 1, 2).contiguous()


def ready(data: Dataset, pair: Pair, indices: npt.NDArray[np.int64]) -> Pair:
    """Return samples of `data.train` or `data.test` as networks take them by default, and their targets."""
    index = torch.from_numpy(np.asarray(indices, dtype=np.int64))
    return make_transform("auto", {}, data)(pair[0][index]), pair[1][index]
