"""Data sets in the folders that their readers know, written by the test."""

import numpy as np
import pytest
from PIL import Image

from task import Dataset
from task.dataset import DatasetError
from task.datasets import DatasetUnavailableError, load_dataset
from task.partition import partition
from task.transforms import make_augment, make_transform
from tests.task.cifar import write_cifar10


def test_cifar10_is_read_from_torchvisions_folder(tmp_path, monkeypatch):
    first = write_cifar10(tmp_path, monkeypatch)
    data = load_dataset("cifar10", tmp_path, download=False)
    assert tuple(data.train[0].shape) == (50, 3, 32, 32)
    assert np.array_equal(data.train[0][:10].numpy(), first.reshape(10, 3, 32, 32))
    assert data.label_names[3] == "name-3"
    normal = make_transform("auto", {}, data)(data.train[0])
    assert normal.mean((0, 2, 3)).abs().max() < 1e-4
    assert (normal.std((0, 2, 3)) - 1).abs().max() < 1e-2


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "emnist", "kmnist"])
def test_absent_files_name_the_remedy(tmp_path, name):
    with pytest.raises(DatasetUnavailableError) as caught:
        load_dataset(name, tmp_path, download=False)
    for word in ("dataset.root", "AIRFLOWER_DATA_ROOT", str(tmp_path)):
        assert word in str(caught.value)


def test_arrays_of_any_kind_with_owners(tmp_path):
    np.savez(
        tmp_path / "mine.npz", train_x=np.zeros((6, 4)), train_y=np.arange(6) % 3, test_x=np.zeros((3, 4)),
        test_y=np.arange(3), groups=np.array(["ann", "bob", "bob", "eve", "eve", "eve"]),
    )  # fmt: skip
    data = load_dataset("arrays", tmp_path / "mine.npz")
    parts = partition(
        "natural", *data.dealt_by, 3, np.random.default_rng(0), groups=data.groups, test_groups=None
    )
    assert [part.train.size for part in parts] == [1, 2, 3]
    assert data.num_classes == 3


def test_an_image_folder_keeps_colours_and_names(tmp_path):
    for name, colour in (("ant", (250, 0, 0)), ("bee", (0, 0, 250))):
        (tmp_path / name).mkdir()
        for number in range(5):
            Image.new("RGB", (20 + number, 12), colour).save(tmp_path / name / f"{number}.png")
    data = load_dataset("image_folder", tmp_path, options={"size": [8, 16]})
    assert data.label_names == ("ant", "bee")
    assert tuple(data.train[0].shape) == (8, 3, 8, 16)
    assert data.train[0][0, :, 0, 0].tolist() == [250, 0, 0]


def test_what_contradicts_itself_is_refused():
    x = np.zeros((4, 2))
    for change, word in (
        ({"num_classes": 2}, "labels from 0 to 3"),
        ({}, "num_classes is not given"),
        ({"num_classes": 4, "groups": np.arange(3)}, "each of 4 samples"),
        ({"num_classes": 4, "label_names": ("a",)}, "1 names"),
    ):
        with pytest.raises(DatasetError, match=word):
            Dataset(train=(x, np.arange(4)), test=(x, np.arange(4)), **change)


def test_crops_and_flips_follow_their_generator_alone():
    import torch

    images = torch.randn(5, 3, 8, 8)
    augment = make_augment("crop_flip", {"padding": 2})
    assert augment is not None
    one, two = (augment(images, torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(one, two)
    assert not torch.equal(one, images)
    still = make_augment("crop_flip", {"padding": 0, "flip": False})
    assert still is not None
    assert torch.equal(still(images, torch.Generator()), images)
