"""A box's own images: a folder with one subfolder per label, or one .npz file.

===================================  ===============================================================
``<folder>/<label>/*``               every fifth image of a label (in order of name) is for testing
``<folder>/train/<label>/*``,        the split is given
``<folder>/test/<label>/*``
``<folder>/images.npz``, or a path   arrays ``train_images``, ``train_labels``, ``test_images``,
to an .npz file                      ``test_labels``: uint8 (n, 28, 28) and integers (n,), no pickle
===================================  ===============================================================

A label is the number of its class. Images of any size and colour are turned to grey and resized.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from task.datasets import DatasetUnavailableError, ImageData
from task.models import IMAGE_SIZE

_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".pgm", ".tif", ".tiff")
_TEST_EVERY = 5
_ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]


def load_images(path: str | Path, *, num_classes: int, mean: float, std: float) -> ImageData:
    """Load a box's own images.

    Args:
        path: the folder, or an .npz file; absolute.
        num_classes: labels are 0..num_classes-1.
        mean, std: normalisation that all devices of the run share.

    Raises:
        DatasetUnavailableError: if there are no usable images; the text says what is wrong.
    """
    place = Path(path)
    if not place.is_absolute():
        raise DatasetUnavailableError(f"data-dir = {str(path)!r}; it must be an absolute path")
    archive = place if place.suffix == ".npz" else place / "images.npz"
    if archive.is_file():
        arrays = _read_archive(archive)
    elif (place / "train").is_dir() and (place / "test").is_dir():
        arrays = (*_read_folder(place / "train"), *_read_folder(place / "test"))
    elif place.is_dir():
        arrays = _split(*_read_folder(place))
    else:
        raise DatasetUnavailableError(f"data-dir = {place}: there is no such folder or .npz file")
    for kind, images, labels in (("training", *arrays[:2]), ("test", *arrays[2:])):
        if not len(labels):
            raise DatasetUnavailableError(f"data-dir = {place}: there are no {kind} images")
        if images.shape != (len(labels), IMAGE_SIZE, IMAGE_SIZE):
            raise DatasetUnavailableError(
                f"data-dir = {place}: {kind} images of shape {images.shape} for {len(labels)} labels; "
                f"{(len(labels), IMAGE_SIZE, IMAGE_SIZE)} is expected"
            )
        if labels.min() < 0 or labels.max() >= num_classes:
            raise DatasetUnavailableError(
                f"data-dir = {place}: labels {labels.min()} to {labels.max()}; "
                f"the run has the classes 0 to {num_classes - 1}"
            )
    return ImageData(
        train_images=torch.from_numpy(arrays[0]).unsqueeze(1),
        train_labels=torch.from_numpy(arrays[1]),
        test_images=torch.from_numpy(arrays[2]).unsqueeze(1),
        test_labels=torch.from_numpy(arrays[3]),
        num_classes=num_classes,
        mean=mean,
        std=std,
    )


def _read_archive(path: Path) -> tuple[Images, Labels, Images, Labels]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            train, train_labels, test, test_labels = (archive[name] for name in _ARRAYS)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DatasetUnavailableError(f"{path} is not usable: {error}") from error
    for images, labels in ((train, train_labels), (test, test_labels)):
        if images.dtype != np.uint8 or labels.dtype.kind not in "iu":
            raise DatasetUnavailableError(
                f"{path} holds images of {images.dtype} and labels of {labels.dtype}; "
                "uint8 and integers are expected"
            )
    return train, train_labels.astype(np.int64), test, test_labels.astype(np.int64)


def _read_folder(folder: Path) -> tuple[Images, Labels]:
    from PIL import Image

    images, labels = [], []
    for label in sorted(path for path in folder.iterdir() if path.is_dir()):
        if not label.name.isdecimal():
            raise DatasetUnavailableError(f"{label}: a folder of images is named by the number of its class")
        for path in sorted(label.iterdir()):
            if path.suffix.lower() not in _SUFFIXES:
                continue
            try:
                with Image.open(path) as image:
                    grey = image.convert("L").resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BILINEAR)
                    images.append(np.asarray(grey, dtype=np.uint8))
            except OSError as error:
                raise DatasetUnavailableError(f"{path} is not a readable image: {error}") from error
            labels.append(int(label.name))
    stacked = np.stack(images) if images else np.zeros((0, IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    return stacked, np.array(labels, dtype=np.int64)


def _split(images: Images, labels: Labels) -> tuple[Images, Labels, Images, Labels]:
    """Give every fifth image of each label to the test set."""
    order = np.empty(labels.size, np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        order[members] = np.arange(members.size)
    test = order % _TEST_EVERY == _TEST_EVERY - 1
    return images[~test], labels[~test], images[test], labels[test]
