import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from task._torchvision import torchvision_datasets
from task.datasets import DatasetUnavailableError, digits, load_dataset
from task.transforms import ready


def test_digits_are_the_real_ones_at_28x28_with_every_label_in_both_parts():
    data = load_dataset("digits")
    assert data.train[0].shape == (1433, 1, 28, 28)
    assert data.test[0].shape == (364, 1, 28, 28)
    assert data.train[0].dtype == torch.uint8
    test_share = np.bincount(data.test[1]) / (np.bincount(data.train[1]) + np.bincount(data.test[1]))
    np.testing.assert_allclose(test_share, 0.2, atol=0.01)


def test_digits_do_not_depend_on_where_scikit_learn_keeps_its_file(monkeypatch):
    direct = digits._digits_table()
    monkeypatch.setattr("task.datasets.digits.importlib.util.find_spec", lambda name: None)
    np.testing.assert_array_equal(direct, digits._digits_table())


def test_a_second_load_is_the_same_object():
    assert load_dataset("digits") is load_dataset("digits")


def test_digits_keep_the_content_of_the_8x8_originals():
    data = load_dataset("digits")
    images = torch.cat([data.train[0], data.test[0]]).to(torch.float32)
    small = torch.nn.functional.interpolate(images, size=(8, 8), mode="area").flatten(1) * (16 / 255)
    originals = torch.from_numpy(load_digits().images).to(torch.float32).flatten(1)
    nearest = torch.cdist(small, originals).argmin(dim=1)
    assert nearest.unique().numel() > 0.97 * images.shape[0]
    labels = torch.cat([data.train[1], data.test[1]])
    agreement = torch.from_numpy(load_digits().target)[nearest] == labels
    assert float(agreement.float().mean()) > 0.99


def test_normalised_training_images_have_zero_mean_and_unit_variance():
    data = load_dataset("digits")
    images, labels = ready(data, data.train, np.arange(data.train[1].numel()))
    assert images.dtype == torch.float32
    assert float(images.mean()) == pytest.approx(0, abs=1e-4)
    assert float(images.std()) == pytest.approx(1, abs=1e-3)
    assert torch.equal(labels, data.train[1])
    some, _ = ready(data, data.test, np.array([5, 3]))
    pixels = data.test[0][[5, 3]].to(torch.float32) / 255
    torch.testing.assert_close(some, (pixels - data.mean[0]) / data.std[0])


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_idx_files_are_read_like_torchvision_reads_them(name, data_root):
    data = load_dataset(name, data_root, download=False)
    kind = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}[name]
    for train, images, labels in (
        (True, data.train[0], data.train[1]),
        (False, data.test[0], data.test[1]),
    ):
        reference = getattr(torchvision_datasets(), kind)(str(data_root), train=train, download=False)
        assert torch.equal(images[:, 0], reference.data)
        assert torch.equal(labels, reference.targets)


def test_absent_files_name_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setenv("AIRFLOWER_DATA_ROOT", str(tmp_path / "elsewhere"))
    with pytest.raises(DatasetUnavailableError) as caught:
        load_dataset("mnist", download=False)
    for word in ("dataset.root", "AIRFLOWER_DATA_ROOT", "MNIST/raw", "train-images-idx3-ubyte", "elsewhere"):
        assert word in str(caught.value)


def test_a_failed_download_names_the_remedy_too(tmp_path, monkeypatch):
    class Offline:
        @staticmethod
        def MNIST(root, download):
            raise RuntimeError("Error downloading train-images-idx3-ubyte.gz")

    monkeypatch.setattr("task._torchvision.torchvision_datasets", lambda: Offline)
    with pytest.raises(DatasetUnavailableError, match=r"Error downloading.*dataset\.root"):
        load_dataset("mnist", tmp_path)


@pytest.mark.parametrize("damage", ["truncate", "magic"])
def test_damaged_files_are_refused(tmp_path, data_root, damage):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for source in (data_root / "MNIST" / "raw").glob("*-ubyte"):
        target = raw / source.name
        if source.name == "t10k-images-idx3-ubyte":
            content = source.read_bytes()[:5000]
            target.write_bytes(content if damage == "truncate" else b"\x1f\x8b" + content[2:])
        else:
            target.symlink_to(source)
    with pytest.raises(DatasetUnavailableError, match="t10k-images"):
        load_dataset("mnist", tmp_path, download=False)


def test_unknown_name_lists_the_valid_ones():
    with pytest.raises(
        ValueError, match=r"cifar10, cifar100, digits, emnist, fashion_mnist, .*kmnist, mnist"
    ):
        load_dataset("cifar")
