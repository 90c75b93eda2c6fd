"""Data sets by name, one file each; a user's own by ``package.module:function``.

A source is a function that returns a `task.Dataset`. It is given the folder of the data sets, and whether
missing files may be downloaded, as far as it has parameters for them; its keyword-only parameters are
``dataset.options``::

    def sensors(root, *, window: int = 128) -> Dataset: ...
"""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from task.dataset import Dataset, DatasetError
from task.datasets import arrays, digits, federated, idx, image_folder, torchvision_sets
from task.datasets.source import DATA_ROOT_VARIABLE, DATASETS, DatasetUnavailableError, default_root
from task.randomness import seeded

__all__ = [
    "DATASETS",
    "DATA_ROOT_VARIABLE",
    "DatasetUnavailableError",
    "arrays",
    "digits",
    "federated",
    "idx",
    "image_folder",
    "load_dataset",
    "node_root",
    "torchvision_sets",
]

_FOLDERS = {
    "mnist": "MNIST",
    "fashion_mnist": "FashionMNIST",
    "kmnist": "KMNIST",
    "emnist": "EMNIST",
    "cifar10": "cifar-10-batches-py",
    "cifar100": "cifar-100-python",
}


def load_dataset(
    name: str,
    root: str | os.PathLike[str] | None = None,
    download: bool = True,
    options: Mapping[str, Any] | None = None,
) -> Dataset:
    """Load a data set; a second call in the same process costs nothing.

    Args:
        name: of `DATASETS`, or ``package.module:function``.
        root: folder of the data sets; default: the environment variable AIRFLOWER_DATA_ROOT, else
            ~/.cache/airflower. Not used by "digits".
        download: whether missing files may be downloaded.
        options: keyword arguments of the source.

    Raises:
        ValueError: if the name or an option is not valid, or what the source returns is none.
        DatasetUnavailableError: if the files are missing and cannot be downloaded, or are damaged.
    """
    options = dict(options or {})
    source = DATASETS.select(name, options)
    folder = None
    if _positional(source):  # whoever has no home and no folder has `digits`, too
        folder = (Path(root).expanduser() if root else default_root(name)).absolute()
    return _load(name, folder, download, json.dumps(options, sort_keys=True, default=str))


def node_root(name: str, server_root: str) -> str | None:
    """Return the folder in which a node of a fleet looks for a data set; None: the default one.

    Where a node keeps its data is its own matter: its AIRFLOWER_DATA_ROOT goes first. Without one, the folder
    that the server uses is tried, for machines that are set up alike; nothing is downloaded to it.
    """
    if os.environ.get(DATA_ROOT_VARIABLE) or not server_root:
        return None
    place = Path(server_root).expanduser()
    there = (place / _FOLDERS[name]).is_dir() if name in _FOLDERS else place.exists()
    return server_root if there else None


@cache
def _load(name: str, root: Path | None, download: bool, options_json: str) -> Dataset:
    options = json.loads(options_json)
    source = DATASETS.select(name, options)
    positional: list[Any] = [root, download][: _positional(source)]
    try:
        with seeded(0):  # a source that draws gives every process the same
            found = source(*positional, **options)
    except (DatasetUnavailableError, DatasetError):
        raise
    except Exception as error:
        if name in DATASETS:
            raise
        raise ValueError(f"{name} failed: {type(error).__name__}: {error}") from error
    if not isinstance(found, Dataset):
        raise ValueError(f"{name} returned a {type(found).__name__}; a task.Dataset is expected")
    return found


def _positional(source: Any) -> int:
    """Return how many of root and download a source takes."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(one.kind in kinds for one in inspect.signature(source).parameters.values())
