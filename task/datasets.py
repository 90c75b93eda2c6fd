"""Image data sets by name, kept as bytes and normalised when a device takes its part.

Images stay uint8 (MNIST: 55 MB; in float32 220 MB per process) and the idx files are mapped, not read, so the
worker processes of one machine share a single copy. A device's few hundred images are turned into normalised
float32 on demand, which costs well under a thousandth of training on them.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from task.models import IMAGE_SIZE

DATA_ROOT_VARIABLE = "AIRFLOWER_DATA_ROOT"
_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
_log = logging.getLogger(__name__)

Bytes = npt.NDArray[np.uint8]


class DatasetUnavailableError(RuntimeError):
    """The files of a data set are neither on disk nor downloadable; the text says what to do."""


@dataclass(frozen=True, eq=False)
class ImageData:
    """A labelled image data set.

    Attributes:
        train_images, test_images: uint8 (n, 1, 28, 28), grey levels 0..255.
        train_labels, test_labels: int64 (n,).
        num_classes: number of labels.
        mean, std: of the grey levels scaled to 0..1, over all training images; used to normalise.
        notes: what a user is to know of them: files left out, detail that is lost.
    """

    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor
    num_classes: int
    mean: float
    std: float
    notes: tuple[str, ...] = ()

    def digest(self) -> str:
        """Return a digest of the labels, in order: equal for devices that deal the same samples."""
        found = hashlib.sha256(str((self.train_labels.shape, self.test_labels.shape)).encode())
        for labels in (self.train_labels, self.test_labels):
            found.update(labels.to(torch.uint8).numpy().tobytes())
        return found.hexdigest()[:16]

    def train(self, indices: npt.NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return normalised float32 images (n, 1, 28, 28) and labels (n,) of the training set."""
        return self._take(self.train_images, self.train_labels, indices)

    def test(self, indices: npt.NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return normalised float32 images (n, 1, 28, 28) and labels (n,) of the test set."""
        return self._take(self.test_images, self.test_labels, indices)

    def _take(
        self, images: torch.Tensor, labels: torch.Tensor, indices: npt.NDArray[np.int64]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        index = torch.from_numpy(np.asarray(indices, dtype=np.int64))
        pixels = images[index].to(torch.float32)
        return pixels.mul_(1.0 / (255.0 * self.std)).sub_(self.mean / self.std), labels[index]


def load_dataset(name: str, root: str | os.PathLike[str] | None = None, download: bool = True) -> ImageData:
    """Load "digits", "mnist" or "fashion_mnist"; a second call in the same process costs nothing.

    "digits" is the 1 797 real 8x8 handwritten digits that come with scikit-learn (UCI optical recognition),
    resized to 28x28 (bilinear), with a stratified 80/20 split that never changes. The other two are idx files
    in torchvision's folder layout, downloaded by torchvision where they are missing.

    Args:
        name: the data set.
        root: folder of the data sets; default: the environment variable AIRFLOWER_DATA_ROOT, else
            ~/.cache/airflower. Not used by "digits".
        download: whether missing files may be downloaded.

    Raises:
        ValueError: if the name is unknown.
        DatasetUnavailableError: if the files are missing and cannot be downloaded, or are damaged.
    """
    if name not in _LOADERS:
        raise ValueError(f"unknown dataset {name!r}; valid: {', '.join(sorted(_LOADERS))}")
    if name == "digits":  # in scikit-learn: whoever has no home and no folder has it, too
        return _load(name, Path(), download)
    try:
        folder = root or os.environ.get(DATA_ROOT_VARIABLE) or Path.home() / ".cache" / "airflower"
        absolute = Path(folder).expanduser().absolute()
    except RuntimeError as error:
        raise DatasetUnavailableError(
            f"there is no home folder for {name} ({error}); set dataset.root or {DATA_ROOT_VARIABLE}"
        ) from error
    return _load(name, absolute, download)


def node_root(name: str, server_root: str) -> str | None:
    """Return the folder in which a node of a fleet looks for a data set; None: the default one.

    Where a node keeps its data is its own matter: its AIRFLOWER_DATA_ROOT goes first. Without one, the folder
    that the server uses is tried, for machines that are set up alike; nothing is downloaded to it.
    """
    if os.environ.get(DATA_ROOT_VARIABLE):
        return None
    folders = _FOLDERS.get(name)
    if server_root and folders and (Path(server_root).expanduser() / folders).is_dir():
        return server_root
    return None


@cache
def _load(name: str, root: Path, download: bool) -> ImageData:
    return _LOADERS[name](root, download)


def _image_data(train: tuple[Bytes, Bytes], test: tuple[Bytes, Bytes], mean: float, std: float) -> ImageData:
    def images(array: Bytes) -> torch.Tensor:
        return torch.from_numpy(array).unsqueeze(1)

    def labels(array: Bytes) -> torch.Tensor:
        return torch.from_numpy(array.astype(np.int64))

    return ImageData(
        train_images=images(train[0]),
        train_labels=labels(train[1]),
        test_images=images(test[0]),
        test_labels=labels(test[1]),
        num_classes=10,
        mean=mean,
        std=std,
    )


def _digits(root: Path, download: bool) -> ImageData:
    table = _digits_table()
    labels = table[:, -1]
    levels = torch.from_numpy(table[:, :-1].astype(np.float32)).view(-1, 1, 8, 8) * (255.0 / 16.0)
    resized = torch.nn.functional.interpolate(levels, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bilinear")
    images = resized.round().to(torch.uint8).squeeze(1).numpy()
    test = _stratified_fifth(labels)
    train_images = images[~test]
    scaled = train_images / 255.0
    return _image_data(
        (train_images, labels[~test]), (images[test], labels[test]), float(scaled.mean()), float(scaled.std())
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


def _idx_loader(torchvision_name: str, mean: float, std: float) -> Callable[[Path, bool], ImageData]:
    def load(root: Path, download: bool) -> ImageData:
        raw = root / torchvision_name / "raw"
        if not all((raw / file).is_file() for file in _FILES):
            _fetch(torchvision_name, root, raw, download)
        train_images, train_labels, test_images, test_labels = (_read_idx(raw / file) for file in _FILES)
        for images, labels, part in (
            (train_images, train_labels, "train"),
            (test_images, test_labels, "t10k"),
        ):
            if images.shape != (labels.size, IMAGE_SIZE, IMAGE_SIZE) or labels.max(initial=0) > 9:
                raise DatasetUnavailableError(
                    f"{raw}: the {part} files hold images {images.shape} and {labels.size} labels up to "
                    f"{labels.max(initial=0)}; expected (n, 28, 28), n labels, 0..9. "
                    "Delete them to download anew"
                )
        return _image_data((train_images, train_labels), (test_images, test_labels), mean, std)

    return load


def _fetch(torchvision_name: str, root: Path, raw: Path, download: bool) -> None:
    """Have torchvision unpack or download the four files.

    Raises:
        DatasetUnavailableError: if they are not there afterwards.
    """
    remedy = (
        f"Either put the unpacked files {', '.join(_FILES)} into {raw}, or point the environment variable "
        f"{DATA_ROOT_VARIABLE} of this machine (on the server also: the config key dataset.root) at a folder "
        f"that has {torchvision_name}/raw/ with these files, or run once where there is a network"
    )
    if not download:
        raise DatasetUnavailableError(f"{torchvision_name} is not in {root}, and download is off. {remedy}.")
    from task._torchvision import torchvision_datasets  # slow import, for downloads only

    _log.info("downloading %s into %s", torchvision_name, raw)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            getattr(torchvision_datasets(), torchvision_name)(str(root), download=True)
    except (OSError, RuntimeError) as error:
        raise DatasetUnavailableError(
            f"{torchvision_name} is not in {root}, and downloading it failed ({error}). {remedy}."
        ) from error


def _read_idx(path: Path) -> Bytes:
    """Map a file of unsigned bytes in LeCun's idx format.

    Raises:
        DatasetUnavailableError: if the header is not that of such a file, or the size does not match it.
    """
    with path.open("rb") as file:
        head = file.read(4)
        dimensions = head[3] if len(head) == 4 else 0
        sizes = np.frombuffer(file.read(4 * dimensions), dtype=">u4")
    shape = tuple(int(n) for n in sizes)
    offset = 4 + 4 * dimensions
    if head[:3] != b"\x00\x00\x08" or len(shape) != dimensions or not 1 <= dimensions <= 3:
        raise DatasetUnavailableError(f"{path} is not an idx file of bytes; delete it to download it anew")
    if path.stat().st_size != offset + int(np.prod(shape)):
        raise DatasetUnavailableError(
            f"{path} is truncated or has trailing bytes; delete it to download it anew"
        )
    # Copy-on-write: torch wants a writable array, and nothing ever reaches the file.
    return np.memmap(path, dtype=np.uint8, mode="c", offset=offset, shape=shape)


_FOLDERS = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}
_LOADERS: dict[str, Callable[[Path, bool], ImageData]] = {
    "digits": _digits,
    "mnist": _idx_loader(_FOLDERS["mnist"], mean=0.1307, std=0.3081),
    "fashion_mnist": _idx_loader(_FOLDERS["fashion_mnist"], mean=0.2860, std=0.3530),
}
DATASETS = tuple(_LOADERS)
