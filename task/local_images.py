"""A node's own images: a folder with one subfolder per label, or one .npz file.

===================================  ===============================================================
``<folder>/<label>/*``               every fifth image of a label (in order of name) is for testing
``<folder>/train/<label>/*``,        the split is given
``<folder>/test/<label>/*``
``<folder>/images.npz``, or a path   arrays ``train_images``, ``train_labels``, ``test_images``,
to an .npz file                      ``test_labels``: uint8 (n, 28, 28) and integers (n,), no pickle
===================================  ===============================================================

A label is the number of its class. Pictures are read as a person sees them (`task.pictures`), turned to grey
and resized; that colours or size went, and every file that was left out, is noted. What file managers,
notebooks and archives leave beside the pictures (hidden files, ``__MACOSX``, ``Thumbs.db``) is passed over.
"""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from task.datasets import DatasetUnavailableError, ImageData
from task.models import IMAGE_SIZE
from task.pictures import PictureError, read_picture

_LEFT_BEHIND = frozenset(
    {"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "lost+found"}
    | {"system volume information"}
)
_TEST_EVERY = 5
_NAMED = 5  # files that a note names, of all that it counts
_ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")

log = logging.getLogger(__name__)

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]


@dataclass
class _Found:
    """What reading a folder came across, beside the images."""

    left_out: list[str] = field(default_factory=list)
    shrunk: int = 0
    colour: int = 0
    dark: int = 0
    largest: tuple[int, int] = (0, 0)

    def notes(self) -> Iterator[str]:
        """Say what training does not see of the files."""
        if self.left_out:
            more = len(self.left_out) - _NAMED
            named = "; ".join(self.left_out[:_NAMED]) + (f"; and {more} more" if more > 0 else "")
            yield f"{len(self.left_out)} file(s) left out: {named}"
        if self.shrunk or self.colour:
            width, height = self.largest
            yield (
                f"{self.shrunk} image(s) of other sizes (up to {width} x {height}) are resized to "
                f"{IMAGE_SIZE} x {IMAGE_SIZE}, {self.colour} from colour to grey: training sees no more"
            )
        if self.dark:
            yield (
                f"{self.dark} image(s) of 16 bits use less than a sixteenth of their range and are nearly "
                "black; if they hold 8 or 12 bits, save them with their levels scaled"
            )


def load_images(path: str | Path, *, num_classes: int, mean: float, std: float) -> ImageData:
    """Load a node's own images.

    Args:
        path: the folder, or an .npz file; absolute.
        num_classes: labels are 0..num_classes-1.
        mean, std: normalisation that all devices of the run share.

    Returns:
        The images; `notes` says what was left out or is not as in the files, and is logged as a warning.

    Raises:
        DatasetUnavailableError: if there are no usable images; the text says what is wrong.
    """
    arrays, notes = _read(path)
    labels = np.concatenate([arrays[1], arrays[3]])
    if labels.max() >= num_classes:
        raise DatasetUnavailableError(
            f"data-dir = {path}: labels {labels.min()} to {labels.max()}; "
            f"the run has the classes 0 to {num_classes - 1}"
        )
    for note in notes:
        log.warning("data-dir = %s: %s", path, note)
    return ImageData(
        train_images=torch.from_numpy(arrays[0]).unsqueeze(1),
        train_labels=torch.from_numpy(arrays[1]),
        test_images=torch.from_numpy(arrays[2]).unsqueeze(1),
        test_labels=torch.from_numpy(arrays[3]),
        num_classes=num_classes,
        mean=mean,
        std=std,
        notes=notes,
    )


def describe_images(path: str | Path) -> str:
    """Read a node's own images as `load_images` does and say in a few lines what is there.

    For the start of a node, before any run: how many classes a run has is not known then.

    Raises:
        DatasetUnavailableError: if there are no usable images; the text says what is wrong.
    """
    (_, train_labels, _, test_labels), notes = _read(path)
    labels = ", ".join(map(str, np.unique(np.concatenate([train_labels, test_labels]))))
    found = f"{train_labels.size} training and {test_labels.size} test images with the labels {labels}"
    return "\n".join(f"data-dir = {path}: {line}" for line in (found, *notes))


def _read(path: str | Path) -> tuple[tuple[Images, Labels, Images, Labels], tuple[str, ...]]:
    place = Path(path)
    if not place.is_absolute():
        raise DatasetUnavailableError(f"data-dir = {str(path)!r}; it must be an absolute path")
    archive = place if place.suffix == ".npz" else place / "images.npz"
    found = _Found()
    try:
        if archive.is_file():
            arrays = _read_archive(archive)
        elif (place / "train").is_dir() and (place / "test").is_dir():
            arrays = (*_read_folder(place / "train", found), *_read_folder(place / "test", found))
        elif place.is_dir():
            arrays = _split(*_read_folder(place, found))
        else:
            raise DatasetUnavailableError(f"data-dir = {place}: there is no such folder or .npz file")
    except OSError as error:
        raise DatasetUnavailableError(f"data-dir = {place} cannot be read: {error}") from error
    notes = tuple(found.notes())
    for kind, images, labels in (("training", *arrays[:2]), ("test", *arrays[2:])):
        if not len(labels):
            raise DatasetUnavailableError(
                ". ".join((f"data-dir = {place}: there are no {kind} images", *notes))
            )
        if images.shape != (len(labels), IMAGE_SIZE, IMAGE_SIZE):
            raise DatasetUnavailableError(
                f"data-dir = {place}: {kind} images of shape {images.shape} for {len(labels)} labels; "
                f"{(len(labels), IMAGE_SIZE, IMAGE_SIZE)} is expected"
            )
        if labels.min() < 0:
            raise DatasetUnavailableError(f"data-dir = {place}: label {labels.min()}; labels start at 0")
    return arrays, notes


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


def _read_folder(folder: Path, found: _Found) -> tuple[Images, Labels]:
    images: list[Images] = []
    labels: list[int] = []
    for place in _visible(folder):
        if not place.is_dir():
            found.left_out.append(f"{place} (it lies in no folder of a label)")
            continue
        if not place.name.isdecimal():
            raise DatasetUnavailableError(
                f"{place}: a folder of images is named by the number of its class (0, 1, 2, ...); "
                "rename it, or move it out of data-dir"
            )
        for path in _visible(place):
            image = _read_image(path, found)
            if image is not None:
                images.append(image)
                labels.append(int(place.name))
    stacked = np.stack(images) if images else np.zeros((0, IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    return stacked, np.array(labels, dtype=np.int64)


def _read_image(path: Path, found: _Found) -> Images | None:
    """Return one file's image, or None with its name in `found`: it costs itself, not the others."""
    if not path.is_file():
        found.left_out.append(f"{path} (a folder below a label is not looked into)")
        return None
    try:
        picture = read_picture(path)
    except PictureError as error:
        found.left_out.append(f"{path} ({error})")
        return None
    height, width = picture.grey.shape
    found.shrunk += (width, height) != (IMAGE_SIZE, IMAGE_SIZE)
    found.largest = max(found.largest, (width, height), key=lambda size: size[0] * size[1])
    found.colour += picture.colour
    found.dark += picture.dark
    return picture.resized(IMAGE_SIZE)


def _visible(folder: Path) -> Iterable[Path]:
    """Return what a person put into a folder, in order of name."""
    return [
        path
        for path in sorted(folder.iterdir())
        if not path.name.startswith(".") and path.name.lower() not in _LEFT_BEHIND
    ]


def _split(images: Images, labels: Labels) -> tuple[Images, Labels, Images, Labels]:
    """Give every fifth image of each label to the test set."""
    order = np.empty(labels.size, np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        order[members] = np.arange(members.size)
    test = order % _TEST_EVERY == _TEST_EVERY - 1
    return images[~test], labels[~test], images[test], labels[test]
