"""One .npz file of a user's own: inputs and targets, for training and for testing.

========================
===================================================================================== array
  what it holds ========================
===================================================================================== ``train_x``, ``test_x``
  inputs (n, ...) of any type; pictures as uint8 (n, channels, height, width) ``train_y``, ``test_y``
  labels 0, 1, ... (whole numbers), or real numbers of a regression
``groups``                optional, (n,): whose each training sample is, for ``partition=natural``
``test_groups``           optional, the same for the test samples
``label_names``           optional, texts: a name for each class
========================
=====================================================================================

What a node keeps as its own images goes by ``train_images``, ``train_labels``, ``test_images`` and
``test_labels``; these names are read as well. Nothing is unpickled.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from task.dataset import Dataset
from task.datasets.source import DATASETS, DatasetUnavailableError

_PARTS = {
    "train_x": "train_images",
    "train_y": "train_labels",
    "test_x": "test_images",
    "test_y": "test_labels",
}
_OPTIONAL = ("groups", "test_groups", "label_names")


@DATASETS.register("arrays")
def arrays(root: Path, *, file: str = "arrays.npz", num_classes: int | None = None) -> Dataset:
    """Read one .npz file.

    Args:
        root: the file, or the folder that it lies in.
        file: its name in the folder.
        num_classes: of labels; default: the largest label and one.
    """
    path = root if root.suffix == ".npz" else root / file
    found = read_arrays(path)
    targets, test_targets = found["train_y"], found["test_y"]
    if num_classes is None and targets.dtype.kind in "iu" and targets.size and test_targets.size:
        num_classes = max(int(targets.max()), int(test_targets.max()), 1) + 1
    names = found.get("label_names")
    return Dataset(
        train=(found["train_x"], targets),
        test=(found["test_x"], test_targets),
        num_classes=num_classes,
        groups=found.get("groups"),
        test_groups=found.get("test_groups"),
        label_names=() if names is None else tuple(names.tolist()),
    )


def read_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of a file under their names above.

    Raises:
        DatasetUnavailableError: if it is no such file, or one of the four is not in it.
    """
    if not path.is_file():
        raise DatasetUnavailableError(
            f"there is no file {path}; dataset.root is the .npz file or its folder (dataset.options.file)"
        )
    try:
        with np.load(path, allow_pickle=False) as archive:
            there = set(archive.files)
            found = {
                name: archive[name if name in there else other]
                for name, other in _PARTS.items()
                if there & {name, other}
            }
            found |= {name: archive[name] for name in _OPTIONAL if name in there}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DatasetUnavailableError(f"{path} is not usable: {error}") from error
    absent = [name for name in _PARTS if name not in found]
    if absent:
        raise DatasetUnavailableError(
            f"{path} is not usable: it lacks {', '.join(absent)}; it holds "
            f"{', '.join(sorted(there)) or 'nothing'}"
        )
    return found
