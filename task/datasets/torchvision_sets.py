"""Data sets that torchvision's readers know: EMNIST, CIFAR-10 and CIFAR-100, in torchvision's folders."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch

from task.dataset import Dataset
from task.datasets.source import DATASETS, fetched

_EMNIST_FIRST_LABEL = {"letters": 1}  # the only split that does not start at 0


@DATASETS.register("emnist")
def emnist(root: Path, download: bool, *, split: str = "balanced") -> Dataset:
    """Handwritten letters and digits of NIST, in MNIST's sizes (Cohen et al. 2017).

    Args:
        root: folder of the data sets.
        download: whether missing files may be downloaded.
        split: "balanced" (47 classes), "byclass" (62), "bymerge" (47), "letters" (26), "digits" (10) or
        "mnist".
    """
    valid = ("balanced", "byclass", "bymerge", "letters", "digits", "mnist")
    if split not in valid:
        raise ValueError(f"dataset option split = {split!r}; valid: {', '.join(valid)}")
    train, test = _both("EMNIST", root, download, split=split)
    first = _EMNIST_FIRST_LABEL.get(split, 0)
    classes = list(train.classes)[first:]
    # The files hold each picture on its side and mirrored.
    pairs = [
        (part.data.transpose(1, 2).contiguous().unsqueeze(1), part.targets - first) for part in (train, test)
    ]
    return Dataset(
        train=pairs[0], test=pairs[1], num_classes=len(classes), label_names=tuple(map(str, classes))
    )


@DATASETS.register("cifar10")
def cifar10(root: Path, download: bool) -> Dataset:
    """60 000 colour pictures of 32x32 in 10 classes (Krizhevsky 2009)."""
    return _cifar("CIFAR10", root, download)


@DATASETS.register("cifar100")
def cifar100(root: Path, download: bool) -> Dataset:
    """60 000 colour pictures of 32x32 in 100 classes (Krizhevsky 2009)."""
    return _cifar("CIFAR100", root, download)


def _cifar(name: str, root: Path, download: bool) -> Dataset:
    train, test = _both(name, root, download)
    pairs = [
        (torch.from_numpy(np.ascontiguousarray(part.data.transpose(0, 3, 1, 2))), np.array(part.targets))
        for part in (train, test)
    ]
    return Dataset(
        train=pairs[0],
        test=pairs[1],
        num_classes=len(train.classes),
        label_names=tuple(map(str, train.classes)),
    )


def _both(name: str, root: Path, download: bool, **options: Any) -> tuple[Any, Any]:
    """Return torchvision's training and test set."""
    from task._torchvision import torchvision_datasets  # slow import

    reader = getattr(torchvision_datasets(), name)
    folder = getattr(reader, "base_folder", f"{name}/raw")

    def make(may_download: bool) -> tuple[Any, Any]:
        with contextlib.redirect_stdout(io.StringIO()):
            return tuple(
                reader(str(root), train=train, download=may_download, **options) for train in (True, False)
            )

    found: tuple[Any, Any] = fetched(name, folder, root, download, make)
    return found
