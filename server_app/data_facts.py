"""What every device of a run has to learn from, and what of the data set nobody uses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from protocol.messages import Introduction
from task.build import Task

_MUCH = 0.05  # of the training images: left out without anybody having asked for it

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class DataFacts:
    """The data of a run.

    Attributes:
        name: of the data set.
        train, test: each device's number of training and test images, (K,).
        labels: each device's labels.
        available: training images of each label, (C,).
        used: those of them that a device has, (C,).
        capped: whether the configuration limits what a device may take.
        own: devices with images of their own instead of a part of the data set.
    """

    name: str
    train: tuple[int, ...]
    test: tuple[int, ...]
    labels: tuple[tuple[int, ...], ...]
    available: tuple[int, ...]
    used: tuple[int, ...]
    capped: bool
    own: tuple[int, ...] = ()

    @classmethod
    def of(cls, name: str, task: Task, *, capped: bool) -> DataFacts:
        """Count the samples of a task."""
        labels, _ = task.data.dealt_by
        dealt = np.zeros(labels.size, dtype=np.bool_)
        for part in task.parts:
            dealt[part.train] = True
        labelled = task.data.classification
        classes = (task.data.num_classes or 1) if labelled else 1
        return cls(
            name=name,
            train=tuple(part.train.size for part in task.parts),
            test=tuple(part.test.size for part in task.parts),
            labels=tuple(part.labels if labelled else () for part in task.parts),
            available=tuple(np.bincount(labels, minlength=classes).tolist()),
            used=tuple(np.bincount(labels[dealt], minlength=classes).tolist()),
            capped=capped,
        )

    def with_own(self, devices: Mapping[int, Introduction]) -> DataFacts:
        """Return the facts with what devices say of images of their own."""
        own = {device: said for device, said in devices.items() if said.own_images}
        if not own:
            return self
        train, test, labels = list(self.train), list(self.test), list(self.labels)
        for device, said in own.items():
            train[device], test[device], labels[device] = said.train_samples, said.test_samples, said.labels
        return replace(
            self, train=tuple(train), test=tuple(test), labels=tuple(labels), own=tuple(sorted(own))
        )

    @property
    def unused_labels(self) -> tuple[int, ...]:
        """Labels of the data set of which no device has an image."""
        return tuple(
            label
            for label, (there, used) in enumerate(zip(self.available, self.used, strict=True))
            if there and not used
        )

    def line(self) -> str:
        """Return what a user reads before the first round."""
        return (
            f"data: {self.name}, {len(self.train)} devices with {_range(self.train)} training and "
            f"{_range(self.test)} test images of {_range([len(own) for own in self.labels])} labels each"
            + (f" ({len(self.own)} with images of their own)" if self.own else "")
            + f"; {sum(self.used)} of {sum(self.available)} training images are used"
        )

    def warning(self) -> str:
        """Return what a user may not expect of it, or ""."""
        left = sum(self.available) - sum(self.used)
        if not self.unused_labels and (self.capped or left <= _MUCH * sum(self.available)):
            return ""
        labels = ", ".join(map(str, self.unused_labels))
        nobody = f", among them all of label {labels}" if labels else ""
        return (
            f"data: {left} of {sum(self.available)} training images are left out{nobody}: with partition and "
            f"fleet.num_devices = {len(self.train)} as they are, no device takes them"
        )

    def summary(self) -> dict[str, Any]:
        """Return plain values for ``summary.json``."""
        return {
            "name": self.name,
            "train_samples": list(self.train),
            "test_samples": list(self.test),
            "labels": [list(own) for own in self.labels],
            "train_samples_available": sum(self.available),
            "train_samples_used": sum(self.used),
            "labels_of_no_device": list(self.unused_labels),
            "devices_with_own_images": list(self.own),
        }


def _range(values: list[int] | tuple[int, ...]) -> str:
    least, most = min(values), max(values)
    return str(least) if least == most else f"{least} to {most}"
