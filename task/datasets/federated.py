"""Any data set of the Hugging Face hub, or one on disk, through flwr-datasets and its partitioners.

An extra: ``pip install "airflower[federated]"``. With a partitioner, each of its parts is a group, and
``partition=natural`` gives device k the part k.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from task.dataset import Dataset
from task.datasets.source import DATASETS, DatasetUnavailableError


@DATASETS.register("federated")
def federated(
    root: Path,
    download: bool,
    *,
    name: str = "",
    subset: str | None = None,
    inputs: str = "image",
    targets: str = "label",
    train_split: str = "train",
    test_split: str = "test",
    partitioner: str | None = None,
    partitioner_options: Mapping[str, Any] | None = None,
    num_classes: int | None = None,
) -> Dataset:
    """Read a Hugging Face data set.

    Args:
        root: folder of a data set that `datasets` saved there (``save_to_disk``), or with one of the name
            `name` in it, or with a folder of that name that holds files such as train.parquet; else that is
            the cache.
        download: whether the hub may be asked for what is not there.
        name: of the data set, as the hub has it.
        subset: of the data set, if it has some.
        inputs, targets: columns.
        train_split, test_split: its splits; without the latter a fifth of the former is for testing.
        partitioner: a class of `flwr_datasets.partitioner`, such as DirichletPartitioner.
        partitioner_options: its arguments.
        num_classes: of labels whose column does not tell.
    """
    try:
        import datasets
        import flwr_datasets.partitioner as partitioners
    except ImportError as error:
        raise DatasetUnavailableError(
            f"dataset.name = federated needs flwr-datasets ({error}): pip install 'airflower[federated]'"
        ) from error
    if not name:
        raise ValueError("dataset.options.name is not set; give the name of the data set")
    splits = _load(datasets, name, subset, root, download)
    if train_split not in splits:
        raise ValueError(
            f"dataset option train_split = {train_split!r}: {name} has the splits {', '.join(splits)}"
        )
    train = splits[train_split]
    test = splits.get(test_split)
    if test is None:
        parted = train.train_test_split(test_size=0.2, seed=0)
        train, test = parted["train"], parted["test"]
    for option, column in (("inputs", inputs), ("targets", targets)):
        if column not in train.column_names:
            raise ValueError(
                f"dataset option {option} = {column!r}: {name} has the columns "
                f"{', '.join(train.column_names)}"
            )
    groups = None
    if partitioner is not None:
        groups = _groups(partitioners, partitioner, dict(partitioner_options or {}), train)
    label_names = tuple(getattr(train.features[targets], "names", None) or ())
    pairs = [(_inputs(part, inputs), _targets(part, targets)) for part in (train, test)]
    if pairs[0][1].dtype.kind in "iu" and num_classes is None:
        num_classes = len(label_names) or int(max(part[1].max() for part in pairs)) + 1
    return Dataset(
        train=pairs[0], test=pairs[1], num_classes=num_classes, groups=groups, label_names=label_names
    )


def _load(datasets: Any, name: str, subset: str | None, root: Path, download: bool) -> Mapping[str, Any]:
    """Return the splits of a data set."""
    for folder in (root / name, root):
        if (folder / "dataset_dict.json").is_file():
            found: Mapping[str, Any] = datasets.load_from_disk(str(folder))
            return found
    offline = datasets.config.HF_HUB_OFFLINE
    own = root / name  # a folder of files, which `datasets` turns into its own format in the cache
    cache = str(root / "huggingface") if os.access(root, os.W_OK) else None
    try:
        datasets.config.HF_HUB_OFFLINE = offline or not download
        found = datasets.load_dataset(str(own) if own.is_dir() else name, subset, cache_dir=cache)
        return found
    except Exception as error:  # the hub's client fails in many ways
        raise DatasetUnavailableError(
            f"{name} is neither in {root} (as save_to_disk leaves it, or as a folder of files) nor "
            f"{'to be had from the hub' if download else 'to be downloaded: dataset.download is off'} "
            f"({type(error).__name__}: {error})"
        ) from error
    finally:
        datasets.config.HF_HUB_OFFLINE = offline


def _groups(partitioners: Any, name: str, options: dict[str, Any], train: Any) -> npt.NDArray[np.int64]:
    """Return the part of each training sample; samples of no part are of group -1."""
    kind = getattr(partitioners, name, None)
    if not isinstance(kind, type):
        valid = sorted(one for one in dir(partitioners) if one.endswith("Partitioner"))
        raise ValueError(f"dataset option partitioner = {name!r}; valid: {', '.join(valid)}")
    try:
        made = kind(**options)
        made.dataset = train.add_column("__position", np.arange(len(train)))
        groups = np.full(len(train), -1, np.int64)
        for part in range(made.num_partitions):
            groups[np.asarray(made.load_partition(part)["__position"])] = part
    except Exception as error:  # each partitioner checks its arguments in its own way
        raise ValueError(
            f"dataset option partitioner_options = {options}: {name}{inspect.signature(kind)} fails: "
            f"{type(error).__name__}: {error}"
        ) from error
    return groups


def _inputs(part: Any, column: str) -> npt.NDArray[Any]:
    """Return a column as one array; pictures as uint8 (n, channels, height, width)."""
    values = part[column]
    first = values[0]
    if hasattr(first, "convert"):  # a picture of Pillow's
        mode = "L" if all(one.mode in ("L", "1") for one in values) else "RGB"
        stacked = np.stack([np.asarray(one.convert(mode), dtype=np.uint8) for one in values])
        return stacked[:, None] if mode == "L" else np.ascontiguousarray(stacked.transpose(0, 3, 1, 2))
    array = np.asarray(values)
    return array.astype(np.float32) if array.dtype == np.float64 else array


def _targets(part: Any, column: str) -> npt.NDArray[Any]:
    array = np.asarray(part[column])
    if array.dtype.kind not in "iufb":
        raise ValueError(
            f"dataset option targets = {column!r}: it holds {array.dtype}; labels as whole numbers, or real "
            "numbers are expected (class_encode_column of `datasets` makes labels of texts)"
        )
    return array
