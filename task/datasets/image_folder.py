"""A folder of pictures with one subfolder per label: any size, grey or in colour, labels by name or number.

===================================  ===============================================================
``<folder>/<label>/*``               every fifth image of a label (in order of name) is for testing
``<folder>/train/<label>/*``,        the split is given
``<folder>/test/<label>/*``
``<folder>/images.npz``, or a path   arrays ``train_images``, ``train_labels``, ``test_images``,
to an .npz file                      ``test_labels`` (`task.datasets.arrays`): uint8 (n, height, width)
                                     or (n, channels, height, width) and whole numbers (n,), no pickle
===================================  ===============================================================

A label is the number of its class, or the name that the run's data set gives it. Pictures are read as a
person sees them (`task.pictures`) and brought to one size, and to grey where the run is grey; that colours
or size went, and every file that was left out, is noted. What file managers, notebooks and archives leave
beside the pictures (hidden files, ``__MACOSX``, ``Thumbs.db``) is passed over.

`image_folder` is a data set of a run; `load_images` reads what a node of a fleet keeps of its own
(``data-dir``), in the shape, with the labels and by the normalisation that the run has agreed on.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from task.dataset import Dataset
from task.datasets.arrays import read_arrays
from task.datasets.source import DATASETS, DatasetUnavailableError
from task.pictures import PictureError, read_picture

_LEFT_BEHIND = frozenset(
    {"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "lost+found"}
    | {"system volume information"}
)
_TEST_EVERY = 5
_NAMED = 5  # files that a note names, of all that it counts
_GREY_28 = (1, 28, 28)

log = logging.getLogger(__name__)

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]
Shape = tuple[int, int, int]
Parts = tuple[Images, Labels, Images, Labels]


@dataclass
class _Found:
    """What reading a folder came across, beside the images."""

    shape: Shape
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
        channels, height, width = self.shape
        if self.shrunk or (self.colour and channels == 1):
            wide, high = self.largest
            to_grey = f", {self.colour} from colour to grey" if channels == 1 else ""
            yield (
                f"{self.shrunk} image(s) of other sizes (up to {wide} x {high}) are resized to "
                f"{width} x {height}{to_grey}: training sees no more"
            )
        if self.dark:
            yield (
                f"{self.dark} image(s) of 16 bits use less than a sixteenth of their range and are nearly "
                "black; if they hold 8 or 12 bits, save them with their levels scaled"
            )


@DATASETS.register("image_folder")
def image_folder(
    root: Path, *, size: int | Sequence[int] = 32, channels: int = 3, folder: str = ""
) -> Dataset:
    """Read a folder of pictures; its subfolders are the labels, in order of number or of name.

    Args:
        root: the folder.
        size: height and width that all pictures are brought to; one number: both.
        channels: 3 (colour) or 1 (grey).
        folder: below `root`, where the pictures are.
    """
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    if min(height, width) < 1 or channels not in (1, 3):
        raise ValueError(
            f"dataset options size = {size}, channels = {channels}; the size must be at least 1, channels 1 "
            "or 3"
        )
    place = root / folder
    names = _label_names(place)
    arrays, notes = _read(place, (channels, height, width), names)
    for note in notes:
        log.warning("dataset.root = %s: %s", place, note)
    classes = len(names) if names else max(int(arrays[1].max()), int(arrays[3].max()), 1) + 1
    return Dataset(train=arrays[:2], test=arrays[2:], num_classes=classes, label_names=names, notes=notes)


def load_images(
    path: str | Path,
    *,
    num_classes: int,
    mean: Sequence[float] | float,
    std: Sequence[float] | float,
    shape: Sequence[int] = _GREY_28,
    label_names: Sequence[str] = (),
) -> Dataset:
    """Load a node's own images.

    Args:
        path: the folder, or an .npz file; absolute.
        num_classes: labels are 0..num_classes-1.
        mean, std: normalisation that all devices of the run share, a number or one for each channel.
        shape: channels, height and width of the run's pictures.
        label_names: of the run's data set: folders may be named by them.

    Returns:
        The images; `notes` says what was left out or is not as in the files, and is logged as a warning.

    Raises:
        DatasetUnavailableError: if there are no usable images; the text says what is wrong.
    """
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise DatasetUnavailableError(
            f"data-dir = {path}: the run's samples have shape {tuple(shape)}; a node can bring images of "
            "its own "
            "only where they are pictures, (1 or 3, height, width)"
        )
    arrays, notes = _read(path, (shape[0], shape[1], shape[2]), tuple(label_names))
    labels = np.concatenate([arrays[1], arrays[3]])
    if labels.max() >= num_classes:
        raise DatasetUnavailableError(
            f"data-dir = {path}: labels {labels.min()} to {labels.max()}; "
            f"the run has the classes 0 to {num_classes - 1}"
        )
    for note in notes:
        log.warning("data-dir = %s: %s", path, note)
    return Dataset(
        train=arrays[:2],
        test=arrays[2:],
        num_classes=num_classes,
        label_names=tuple(label_names),
        mean=tuple(np.atleast_1d(mean).tolist()),
        std=tuple(np.atleast_1d(std).tolist()),
        notes=notes,
    )


def describe_images(path: str | Path) -> str:
    """Read a node's own images as `load_images` does and say in a few lines what is there.

    For the start of a node, before any run: size, colours and names of the classes of a run are not known
    then, so that folders may have any name.

    Raises:
        DatasetUnavailableError: if there are no usable images; the text says what is wrong.
    """
    names = _label_names(Path(path))
    (_, train_labels, _, test_labels), notes = _read(path, None, names)
    there = np.unique(np.concatenate([train_labels, test_labels]))
    labels = ", ".join(names[label] if names else str(label) for label in there)
    found = f"{train_labels.size} training and {test_labels.size} test images with the labels {labels}"
    return "\n".join(f"data-dir = {path}: {line}" for line in (found, *notes))


def _label_names(place: Path) -> tuple[str, ...]:
    """Return the names of the label folders in order; () where one of them is a number."""
    parts = [place / "train", place / "test"]
    if not all(part.is_dir() for part in parts):
        parts = [place]
    names = {found.name for part in parts if part.is_dir() for found in _visible(part) if found.is_dir()}
    return () if any(name.isdecimal() for name in names) else tuple(sorted(names))


def _read(path: str | Path, shape: Shape | None, names: tuple[str, ...]) -> tuple[Parts, tuple[str, ...]]:
    """Return the arrays and the notes; without a shape pictures are looked at as 28 x 28 in grey."""
    place = Path(path)
    if not place.is_absolute():
        raise DatasetUnavailableError(f"data-dir = {str(path)!r}; it must be an absolute path")
    archive = place if place.suffix == ".npz" else place / "images.npz"
    found = _Found(shape or _GREY_28)
    try:
        if archive.is_file():
            parts = _read_archive(archive)
        elif (place / "train").is_dir() and (place / "test").is_dir():
            parts = (
                *_read_folder(place / "train", found, names),
                *_read_folder(place / "test", found, names),
            )
        elif place.is_dir():
            parts = _split(*_read_folder(place, found, names))
        else:
            raise DatasetUnavailableError(f"data-dir = {place}: there is no such folder or .npz file")
    except OSError as error:
        raise DatasetUnavailableError(f"data-dir = {place} cannot be read: {error}") from error
    if shape is None:
        found.shrunk = found.colour = 0  # what a run makes of them is not known yet
    notes = tuple(found.notes())
    for kind, images, labels in (("training", *parts[:2]), ("test", *parts[2:])):
        if not len(labels):
            raise DatasetUnavailableError(
                ". ".join((f"data-dir = {place}: there are no {kind} images", *notes))
            )
        expected = (len(labels), *(shape or images.shape[1:]))
        if images.ndim != 4 or images.shape != expected:
            raise DatasetUnavailableError(
                f"data-dir = {place}: {kind} images of shape {images.shape} for {len(labels)} labels; "
                f"{expected} is expected"
            )
        if labels.min() < 0:
            raise DatasetUnavailableError(f"data-dir = {place}: label {labels.min()}; labels start at 0")
    return parts, notes


def _read_archive(path: Path) -> Parts:
    found = read_arrays(path)
    parts = []
    for images, labels in ((found["train_x"], found["train_y"]), (found["test_x"], found["test_y"])):
        if images.dtype != np.uint8 or labels.dtype.kind not in "iu":
            raise DatasetUnavailableError(
                f"{path} holds images of {images.dtype} and labels of {labels.dtype}; "
                "uint8 and integers are expected"
            )
        parts += [images[:, None] if images.ndim == 3 else images, labels.astype(np.int64)]
    return parts[0], parts[1], parts[2], parts[3]


def _read_folder(folder: Path, found: _Found, names: tuple[str, ...]) -> tuple[Images, Labels]:
    images: list[Images] = []
    labels: list[int] = []
    for place in _visible(folder):
        if not place.is_dir():
            found.left_out.append(f"{place} (it lies in no folder of a label)")
            continue
        if place.name in names:
            label = names.index(place.name)
        elif place.name.isdecimal():
            label = int(place.name)
        else:
            known = f", or by its name ({', '.join(names)})" if names else ""
            raise DatasetUnavailableError(
                f"{place}: a folder of images is named by the number of its class (0, 1, 2, ...){known}; "
                "rename it, or move it out of data-dir"
            )
        for path in _visible(place):
            image = _read_image(path, found)
            if image is not None:
                images.append(image)
                labels.append(label)
    stacked = np.stack(images) if images else np.zeros((0, *found.shape), np.uint8)
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
    channels, *size = found.shape
    found.shrunk += [height, width] != size
    found.largest = max(found.largest, (width, height), key=lambda size: size[0] * size[1])
    found.colour += picture.colour
    found.dark += picture.dark
    return picture.resized(size[0], size[1], channels)


def _visible(folder: Path) -> Iterable[Path]:
    """Return what a person put into a folder, in order of name."""
    return [
        path
        for path in sorted(folder.iterdir())
        if not path.name.startswith(".") and path.name.lower() not in _LEFT_BEHIND
    ]


def _split(images: Images, labels: Labels) -> Parts:
    """Give every fifth image of each label to the test set."""
    order = np.empty(labels.size, np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        order[members] = np.arange(members.size)
    test = order % _TEST_EVERY == _TEST_EVERY - 1
    return images[~test], labels[~test], images[test], labels[test]
