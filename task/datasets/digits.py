"""The 1 797 real 8x8 handwritten digits that come with scikit-learn: no file, no network."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from task.dataset import Dataset
from task.datasets.source import DATASETS

_SIZE = 28

Bytes = npt.NDArray[np.uint8]


@DATASETS.register("digits")
def digits() -> Dataset:
    """UCI's optical recognition of handwritten digits, resized to 28x28 (bilinear).

    Four fifths of each label are for training, in a split that never changes.
    """
    table = _digits_table()
    labels = table[:, -1]
    levels = torch.from_numpy(table[:, :-1].astype(np.float32)).view(-1, 1, 8, 8) * (255.0 / 16.0)
    resized = torch.nn.functional.interpolate(levels, size=(_SIZE, _SIZE), mode="bilinear")
    images = resized.round().to(torch.uint8).squeeze(1).numpy()
    test = _stratified_fifth(labels)
    train_images = images[~test]
    scaled = train_images / 255.0
    return Dataset(
        train=(train_images[:, None], labels[~test]),
        test=(images[test][:, None], labels[test]),
        num_classes=10,
        mean=(float(scaled.mean()),),
        std=(float(scaled.std()),),
    )


def _digits_table() -> Bytes:
    """Return scikit-learn's digits, one row each: 64 grey levels 0..16 and the label."""
    package = importlib.util.find_spec("sklearn")
    for folder in (package.submodule_search_locations or []) if package else []:
        # The file that `load_digits` reads; reading it here spares a second of imports in every process.
        file = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if file.is_file():
            return np.loadtxt(file, delimiter=",", dtype=np.uint8)
    from sklearn.datasets import load_digits  # slow import, only if the file has moved

    bunch: Any = load_digits()
    return np.column_stack([bunch.data, bunch.target]).astype(np.uint8)


def _stratified_fifth(labels: Bytes) -> npt.NDArray[np.bool_]:
    """Mark every fifth sample of each label, counting in a fixed shuffled order."""
    order = np.random.Generator(np.random.PCG64(0)).permutation(labels.size)
    order = order[np.argsort(labels[order], kind="stable")]
    start_of_label = np.searchsorted(labels[order], labels[order])
    chosen = np.zeros(labels.size, dtype=np.bool_)
    chosen[order] = (np.arange(labels.size) - start_of_label) % 5 == 0
    return chosen
