"""A node's own images."""

from typing import Any

import numpy as np
import pytest
from PIL import Image

from task.datasets import DatasetUnavailableError
from task.datasets.image_folder import describe_images, load_images

NORMAL: dict[str, Any] = {"num_classes": 10, "mean": 0.5, "std": 0.25}


def _folder(root, labels, per_label=10, size=(40, 30)):
    rng = np.random.default_rng(0)
    for label in labels:
        (root / str(label)).mkdir(parents=True)
        for number in range(per_label):
            pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / str(label) / f"{number:02d}.png")


def test_a_fifth_of_every_label_is_for_testing(tmp_path):
    _folder(tmp_path, [2, 7])
    data = load_images(tmp_path, **NORMAL)
    assert data.train[0].shape == (16, 1, 28, 28)
    assert np.bincount(data.test[1], minlength=8).tolist() == [0, 0, 2, 0, 0, 0, 0, 2]


def test_a_given_split_is_kept(tmp_path):
    _folder(tmp_path / "train", [1], 6)
    _folder(tmp_path / "test", [1], 3)
    data = load_images(tmp_path, **NORMAL)
    assert (len(data.train[1]), len(data.test[1])) == (6, 3)


def test_images_of_the_right_size_come_through_unchanged(tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (5, 28, 28), dtype=np.uint8)
    (tmp_path / "0").mkdir()
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / "0" / f"{number}.png")
    data = load_images(tmp_path, **NORMAL)
    assert np.array_equal(data.train[0][:, 0].numpy(), pixels[:4])
    assert np.array_equal(data.test[0][:, 0].numpy(), pixels[4:])


def _archive(path, **changes):
    arrays = {
        "train_images": np.zeros((4, 28, 28), np.uint8), "train_labels": np.arange(4),
        "test_images": np.zeros((2, 28, 28), np.uint8), "test_labels": np.arange(2), **changes,
    }  # fmt: skip
    np.savez(path, **arrays)
    return path


def test_an_archive_may_be_named_or_lie_in_the_folder(tmp_path):
    path = _archive(tmp_path / "images.npz")
    assert len(load_images(path, **NORMAL).train[1]) == 4
    assert len(load_images(tmp_path, **NORMAL).train[1]) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_labels": np.array([0, 1, 2, 10])}, "labels 0 to 10"),
        ({"train_images": np.zeros((4, 28, 28), np.float32)}, "uint8 and integers"),
        ({"train_images": np.zeros((4, 8, 8), np.uint8)}, "of shape"),
        ({"test_labels": np.zeros(0, int), "test_images": np.zeros((0, 28, 28), np.uint8)}, "no test images"),
        ({"train_labels": np.array([{}, 1, 2, 3], dtype=object)}, "not usable"),
    ],
)
def test_what_is_wrong_with_an_archive_is_said(tmp_path, changes, message):
    with pytest.raises(DatasetUnavailableError, match=message):
        load_images(_archive(tmp_path / "images.npz", **changes), **NORMAL)


def test_what_is_wrong_with_a_folder_is_said(tmp_path):
    with pytest.raises(DatasetUnavailableError, match="no such folder"):
        load_images(tmp_path / "nothing", **NORMAL)
    (tmp_path / "cats").mkdir()
    with pytest.raises(DatasetUnavailableError, match="number of its class"):
        load_images(tmp_path, **NORMAL)


def test_what_others_left_in_the_folders_is_passed_over(tmp_path, caplog):
    _folder(tmp_path, [0, 1], 5, size=(28, 28))
    for name in (".ipynb_checkpoints", "__MACOSX", ".git", "@eaDir", "$RECYCLE.BIN"):
        (tmp_path / name).mkdir()
        (tmp_path / "0" / name).mkdir()
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._00.png"):
        (tmp_path / name).write_bytes(b"x")
        (tmp_path / "1" / name).write_bytes(b"x")
    data = load_images(tmp_path, **NORMAL)
    assert (len(data.train[1]), len(data.test[1])) == (8, 2)
    assert not any("left out" in note for note in data.notes)


def test_one_damaged_file_costs_itself(tmp_path, caplog):
    _folder(tmp_path, [0, 1], 10)
    good = (tmp_path / "0" / "03.png").read_bytes()
    (tmp_path / "0" / "03.png").write_bytes(good[: len(good) // 2])
    (tmp_path / "1" / "notes.txt").write_text("taken in May")
    (tmp_path / "1" / "more").mkdir()
    (tmp_path / "overview.png").write_bytes(good)
    data = load_images(tmp_path, **NORMAL)
    assert len(data.train[1]) + len(data.test[1]) == 19
    for name in ("03.png", "notes.txt", "more", "overview.png"):
        assert name in caplog.text
    assert "4 file(s) left out" in caplog.text


def test_many_damaged_files_are_counted_and_some_named(tmp_path):
    _folder(tmp_path, [0], 10, size=(28, 28))
    for number in range(50):
        (tmp_path / "0" / f"x{number:02d}.png").write_bytes(b"")
    (note, _) = load_images(tmp_path, **NORMAL).notes
    assert "50 file(s) left out" in note
    assert note.endswith("and 45 more")


def test_a_node_can_say_what_it_has_before_any_run(tmp_path):
    _folder(tmp_path / "good", [2, 7], size=(28, 28))
    text = describe_images(tmp_path / "good")
    assert "16 training and 4 test images with the labels 2, 7" in text
    (tmp_path / "good" / "cat").mkdir()
    with pytest.raises(DatasetUnavailableError, match=r"cat: a folder of images is named by the number"):
        describe_images(tmp_path / "good")


def test_a_label_that_the_run_does_not_have_is_refused(tmp_path):
    _folder(tmp_path, [2, 12])
    with pytest.raises(DatasetUnavailableError, match="labels 2 to 12; the run has the classes 0 to 9"):
        load_images(tmp_path, **NORMAL)
