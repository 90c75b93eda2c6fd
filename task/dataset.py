"""What is learned from: two pairs of tensors, and what a run has to know of them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Pair = tuple[torch.Tensor, torch.Tensor]
_STATISTICS_AT_ONCE = 1 << 22  # entries: bounds the float64 copy while a mean is taken


class DatasetError(ValueError):
    """A data set contradicts itself; the text says which part, its value and what would do."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Dataset:
    """A data set: any tensors, with labels or with targets of a regression.

    Arrays may be NumPy's or torch's. Pictures are uint8 (n, channels, height, width); they stay bytes in
    memory and are scaled and normalised when a device takes its part (`task.transforms`).

    Attributes:
        train, test: inputs (n, ...) of any dtype and their targets: int64 (n,) labels (or (n, ...), one for
            each position of a sequence or a map) below `num_classes`, or real numbers (n, ...) to be
            predicted.
        num_classes: number of classes; None where the targets are real numbers.
        groups: whose each training sample is, (n,) of whole numbers or texts: what ``partition=natural``
            goes by.
        test_groups: the same for the test samples; None: they are dealt by the labels that a device has.
        label_names: a name for each class, or ().
        mean, std: by which pictures (scaled to 0..1) are normalised, one number for all channels or one for
            each; None: those of the training samples.
        notes: what a user is to know: files left out, detail that is lost.

    Raises:
        DatasetError: if a part contradicts another.
    """

    train: tuple[Any, Any]  # of tensors once it is made
    test: tuple[Any, Any]
    num_classes: int | None = None
    groups: Any = None  # an array once it is made
    test_groups: Any = None
    label_names: tuple[str, ...] = ()
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("train", "test"):
            object.__setattr__(self, name, self._pair(name, getattr(self, name)))
        for name, pair in (("groups", self.train), ("test_groups", self.test)):
            object.__setattr__(self, name, _groups(name, getattr(self, name), len(pair[1])))
        object.__setattr__(self, "label_names", tuple(str(name) for name in self.label_names))
        for name in ("mean", "std"):
            value = getattr(self, name)
            if value is not None:
                numbers = tuple(float(number) for number in np.atleast_1d(np.asarray(value, np.float64)))
                object.__setattr__(self, name, numbers)
        self._check()

    def _pair(self, name: str, pair: Any) -> Pair:
        if not isinstance(pair, Sequence) or len(pair) != 2:
            raise DatasetError(f"Dataset.{name} is a {type(pair).__name__}; give a pair (inputs, targets)")
        inputs, targets = (_tensor(f"Dataset.{name}", part) for part in pair)
        if inputs.ndim == 0 or targets.ndim == 0 or len(inputs) != len(targets):
            raise DatasetError(
                f"Dataset.{name}: inputs of shape {tuple(inputs.shape)} and targets of shape "
                f"{tuple(targets.shape)}; both need the same number of samples in front"
            )
        if len(targets) == 0:
            raise DatasetError(f"Dataset.{name} has no samples")
        if not targets.is_floating_point():
            targets = targets.to(torch.int64)
        elif self.num_classes is None:
            targets = targets.to(torch.float32)
        return inputs, targets

    def _check(self) -> None:
        (inputs, targets), (test_inputs, test_targets) = self.train, self.test
        if inputs.shape[1:] != test_inputs.shape[1:] or inputs.dtype != test_inputs.dtype:
            raise DatasetError(
                f"Dataset.train holds samples {tuple(inputs.shape[1:])} of {inputs.dtype}, Dataset.test "
                f"{tuple(test_inputs.shape[1:])} of {test_inputs.dtype}; they must be alike"
            )
        if self.num_classes is None:
            if not (targets.is_floating_point() and test_targets.is_floating_point()):
                raise DatasetError(
                    f"Dataset: the targets are {targets.dtype}, and num_classes is not given; give "
                    "num_classes "
                    "for labels, or float targets for a regression"
                )
            return
        if (
            not isinstance(self.num_classes, int)
            or isinstance(self.num_classes, bool)
            or self.num_classes < 2
        ):
            raise DatasetError(f"Dataset.num_classes = {self.num_classes!r}; it must be at least 2")
        for name, labels in (("train", targets), ("test", test_targets)):
            if labels.is_floating_point():
                raise DatasetError(
                    f"Dataset.{name} has targets of {labels.dtype} and num_classes = {self.num_classes}; "
                    "give "
                    "whole numbers as labels, or leave num_classes out for a regression"
                )
            least, most = int(labels.min()), int(labels.max())
            if least < 0 or most >= self.num_classes:
                raise DatasetError(
                    f"Dataset.{name} has labels from {least} to {most}; with num_classes = "
                    f"{self.num_classes} "
                    f"they must be in 0..{self.num_classes - 1}"
                )
        if self.label_names and len(self.label_names) != self.num_classes:
            raise DatasetError(
                f"Dataset.label_names has {len(self.label_names)} names; there are {self.num_classes} classes"
            )

    # What a sample is ----------------------------------------------------------------------------

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.train[0].shape[1:])

    @property
    def classification(self) -> bool:
        """Whether each sample has one label (not a sequence of them, nor real numbers)."""
        return self.num_classes is not None and self.train[1].ndim == 1

    @property
    def pictures(self) -> bool:
        """Whether samples are pictures: bytes, with channels, height and width."""
        return bool(self.train[0].dtype == torch.uint8 and self.train[0].ndim == 4)

    @property
    def dealt_by(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the labels by which training and test samples are dealt: all 0 where there is none each."""
        if self.classification:
            return self.train[1].numpy(), self.test[1].numpy()
        return np.zeros(len(self.train[1]), np.int64), np.zeros(len(self.test[1]), np.int64)

    @cached_property
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel (second dimension) of the training samples.

        Pictures are scaled to 0..1 first. A channel that never changes has a deviation of 1.
        """
        if self.mean is not None and self.std is not None:
            return self.mean, self.std
        inputs = self.train[0]
        scale = 1.0 / 255.0 if self.pictures else 1.0
        channels = inputs.shape[1] if inputs.ndim > 1 else 1
        each = max(1, _STATISTICS_AT_ONCE // max(1, math.prod(inputs.shape[1:])))
        total, squares = np.zeros(channels), np.zeros(channels)
        for chunk in torch.split(inputs, each):
            rows = chunk.reshape(len(chunk), channels, -1).to(torch.float64).mul_(scale)
            total += rows.sum(dim=(0, 2)).numpy()
            squares += rows.square().sum(dim=(0, 2)).numpy()
        number = inputs.numel() / channels
        mean = total / number
        std = np.sqrt(np.maximum(squares / number - mean**2, 0.0))
        std[std <= 1e-12 * np.maximum(np.abs(mean), 1.0)] = 1.0
        return tuple(mean.tolist()), tuple(std.tolist())

    def digest(self) -> str:
        """Return a digest of targets and groups, in order: equal for devices that deal the same samples."""
        found = hashlib.sha256(str((tuple(self.train[1].shape), tuple(self.test[1].shape))).encode())
        for _, targets in (self.train, self.test):
            few = self.num_classes is not None and self.num_classes <= 256
            found.update((targets.to(torch.uint8) if few else targets.contiguous()).numpy().tobytes())
        for groups in (self.groups, self.test_groups):
            if groups is not None:
                found.update("\n".join(map(str, groups.tolist())).encode())
        return found.hexdigest()[:16]


def _tensor(name: str, values: Any) -> torch.Tensor:
    if isinstance(values, torch.Tensor):
        return values.detach()
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise DatasetError(f"{name} holds {array.dtype}; numbers are expected, as an array or a tensor")
    if not array.flags.writeable or not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return torch.from_numpy(np.ascontiguousarray(array))


def _groups(name: str, values: Any, number: int) -> npt.NDArray[Any] | None:
    if values is None:
        return None
    groups = values.numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
    if groups.shape != (number,):
        raise DatasetError(
            f"Dataset.{name} has shape {groups.shape}; it must name the owner of each of {number} samples"
        )
    if groups.dtype.kind not in "iuUS":
        raise DatasetError(f"Dataset.{name} holds {groups.dtype}; whole numbers or texts are expected")
    return groups
