"""What every source of data shares: where it looks, and the error that says what is missing."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from registry import Registry
from task.dataset import Dataset

DATA_ROOT_VARIABLE = "AIRFLOWER_DATA_ROOT"

DATASETS: Registry[Callable[..., Dataset]] = Registry("data set", key="dataset.name")


class DatasetUnavailableError(RuntimeError):
    """The files of a data set are neither on disk nor downloadable; the text says what to do."""


def default_root(name: str) -> Path:
    """Return the folder of the data sets that is used where none is named.

    Raises:
        DatasetUnavailableError: if there is none because the user has no home.
    """
    try:
        return Path(os.environ.get(DATA_ROOT_VARIABLE) or Path.home() / ".cache" / "airflower").expanduser()
    except RuntimeError as error:
        raise DatasetUnavailableError(
            f"there is no home folder for {name} ({error}); set dataset.root or {DATA_ROOT_VARIABLE}"
        ) from error


def fetched(name: str, folder: str, root: Path, download: bool, make: Callable[[bool], Any]) -> Any:
    """Return what one of torchvision's readers makes of the files below `root`, downloading them if it may.

    Args:
        name: of the data set.
        folder: that has to be in `root`.
        root: folder of the data sets.
        download: whether missing files may be downloaded.
        make: reads them; is told whether to download.

    Raises:
        DatasetUnavailableError: if they are not there, or damaged, and could not be downloaded.
    """
    try:
        return make(False)
    except (RuntimeError, OSError, ValueError, EOFError) as error:
        absent = error
    remedy = (
        f"Either put torchvision's folder {folder}/ into {root}, or point the environment variable "
        f"{DATA_ROOT_VARIABLE} of this machine (on the server also: the config key dataset.root) at a folder "
        f"that has it, or run once where there is a network (with dataset.download=true)"
    )
    if not download:
        raise DatasetUnavailableError(
            f"{name} is not in {root} ({absent}), and download is off. {remedy}."
        ) from absent
    try:
        return make(True)
    except (RuntimeError, OSError, ValueError, EOFError) as error:
        raise DatasetUnavailableError(
            f"{name} is not in {root}, and downloading it failed ({error}). {remedy}."
        ) from error
