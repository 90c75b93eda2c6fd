"""MNIST and the data sets that are made like it, in LeCun's idx files, mapped instead of read.

The worker processes of one machine share a single copy of the images.
"""

from __future__ import annotations

import contextlib
import io
import logging
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from task.dataset import Dataset
from task.datasets.source import DATA_ROOT_VARIABLE, DATASETS, DatasetUnavailableError

_SIZE = 28
_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
_log = logging.getLogger(__name__)

Bytes = npt.NDArray[np.uint8]


@DATASETS.register("mnist")
def mnist(root: Path, download: bool) -> Dataset:
    """Handwritten digits (LeCun et al. 1998): 60 000 training and 10 000 test images."""
    return _read("MNIST", root, download, mean=0.1307, std=0.3081)


@DATASETS.register("fashion_mnist")
def fashion_mnist(root: Path, download: bool) -> Dataset:
    """Articles of clothing (Xiao et al. 2017), in MNIST's sizes."""
    names = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
    return _read("FashionMNIST", root, download, mean=0.2860, std=0.3530, label_names=names)


@DATASETS.register("kmnist")
def kmnist(root: Path, download: bool) -> Dataset:
    """Cursive Japanese characters (Clanuwat et al. 2018), in MNIST's sizes."""
    names = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")
    return _read("KMNIST", root, download, mean=0.1918, std=0.3483, label_names=names)


def _read(
    folder: str, root: Path, download: bool, *, mean: float, std: float, label_names: tuple[str, ...] = ()
) -> Dataset:
    raw = root / folder / "raw"
    if not all((raw / file).is_file() for file in _FILES):
        _fetch(folder, root, raw, download)
    train_images, train_labels, test_images, test_labels = (_read_idx(raw / file) for file in _FILES)
    for images, labels, part in ((train_images, train_labels, "train"), (test_images, test_labels, "t10k")):
        if images.shape != (labels.size, _SIZE, _SIZE) or labels.max(initial=0) > 9:
            raise DatasetUnavailableError(
                f"{raw}: the {part} files hold images {images.shape} and {labels.size} labels up to "
                f"{labels.max(initial=0)}; expected (n, 28, 28), n labels, 0..9. "
                "Delete them to download anew"
            )
    return Dataset(
        train=(torch.from_numpy(train_images).unsqueeze(1), train_labels),
        test=(torch.from_numpy(test_images).unsqueeze(1), test_labels),
        num_classes=10,
        mean=(mean,),
        std=(std,),
        label_names=label_names,
    )


def _fetch(folder: str, root: Path, raw: Path, download: bool) -> None:
    """Have torchvision unpack or download the four files.

    Raises:
        DatasetUnavailableError: if they are not there afterwards.
    """
    remedy = (
        f"Either put the unpacked files {', '.join(_FILES)} into {raw}, or point the environment variable "
        f"{DATA_ROOT_VARIABLE} of this machine (on the server also: the config key dataset.root) at a folder "
        f"that has {folder}/raw/ with these files, or run once where there is a network"
    )
    if not download:
        raise DatasetUnavailableError(f"{folder} is not in {root}, and download is off. {remedy}.")
    from task._torchvision import torchvision_datasets  # slow import, for downloads only

    _log.info("downloading %s into %s", folder, raw)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            getattr(torchvision_datasets(), folder)(str(root), download=True)
    except (OSError, RuntimeError) as error:
        raise DatasetUnavailableError(
            f"{folder} is not in {root}, and downloading it failed ({error}). {remedy}."
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
