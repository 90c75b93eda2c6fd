"""CIFAR-10's folder, as torchvision's reader wants it, with a few random pictures."""

import pickle
from hashlib import md5
from pathlib import Path

import numpy as np
import pytest


def write_cifar10(root: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Write CIFAR-10's folder with few pictures, and have torchvision expect its checksums."""
    from task._torchvision import torchvision_datasets

    reader = torchvision_datasets().CIFAR10
    folder = root / reader.base_folder
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    first = np.zeros((0, 3072), np.uint8)
    sums = {}
    for name, _ in [*reader.train_list, *reader.test_list]:
        data = rng.integers(0, 256, (10, 3072), dtype=np.uint8)
        first = data if name == reader.train_list[0][0] else first
        (folder / name).write_bytes(pickle.dumps({"data": data, "labels": list(range(10))}))
    meta = {"label_names": [f"name-{k}" for k in range(10)]}
    (folder / reader.meta["filename"]).write_bytes(pickle.dumps(meta))
    for path in folder.iterdir():
        sums[path.name] = md5(path.read_bytes()).hexdigest()
    for attribute in ("train_list", "test_list"):
        renewed = [(name, sums[name]) for name, _ in getattr(reader, attribute)]
        monkeypatch.setattr(reader, attribute, renewed)
    monkeypatch.setattr(reader, "meta", {**reader.meta, "md5": sums[reader.meta["filename"]]})
    return first
