"""A Hugging Face data set that lies on disk, with a partitioner of flwr-datasets; nothing is downloaded."""

from typing import Any

import numpy as np
import pytest
from PIL import Image

from task.dataset import DatasetError
from task.datasets import load_dataset
from task.datasets.source import DatasetUnavailableError
from task.partition import partition

datasets = pytest.importorskip("datasets", reason="an extra: airflower[federated]")
pytest.importorskip("flwr_datasets", reason="an extra: airflower[federated]")

NAMES = ["ant", "bee", "cat"]


def _save(folder, *, colour=False, test=True):
    """Write pictures of three kinds by four owners; the shade of a picture says its number."""
    kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)}
    features = datasets.Features({**kinds, "owner": datasets.Value("string")})

    def part(first, number):
        rows = range(first, first + number)
        mode, shade = ("RGB", lambda i: (i, 0, 255 - i)) if colour else ("L", lambda i: i)
        return datasets.Dataset.from_dict(
            {
                "image": [Image.new(mode, (6, 4), shade(i)) for i in rows],
                "label": [i % 3 for i in rows],
                "owner": [f"owner-{i % 4}" for i in rows],
            },
            features=features,
        )

    splits = {"train": part(0, 60), **({"test": part(60, 15)} if test else {})}
    datasets.DatasetDict(splits).save_to_disk(str(folder))


def _load(root, **options):
    return load_dataset("federated", root, download=False, options={"name": "zoo", **options})


@pytest.mark.parametrize("colour", [False, True])
def test_pictures_labels_and_names_come_as_they_were_saved(tmp_path, colour):
    _save(tmp_path / "zoo", colour=colour)
    data = _load(tmp_path)
    assert tuple(data.train[0].shape) == (60, 3 if colour else 1, 4, 6)
    assert data.train[0].dtype.is_floating_point is False
    assert data.train[0][:, 0, 0, 0].tolist() == list(range(60))
    assert data.test[1].tolist() == [i % 3 for i in range(60, 75)]
    assert (data.num_classes, data.label_names) == (3, tuple(NAMES))
    assert data.pictures


def test_without_a_test_split_a_fifth_is_for_testing_the_same_each_time(tmp_path):
    _save(tmp_path / "zoo", test=False)
    one, two = _load(tmp_path), _load(tmp_path)
    assert (len(one.train[1]), len(one.test[1])) == (48, 12)
    assert one.test[0].tolist() == two.test[0].tolist()
    shades = [*one.train[0][:, 0, 0, 0].tolist(), *one.test[0][:, 0, 0, 0].tolist()]
    assert sorted(shades) == list(range(60))


@pytest.mark.parametrize(
    ("partitioner", "options", "devices"),
    [
        ("IidPartitioner", {"num_partitions": 5}, 5),
        ("NaturalIdPartitioner", {"partition_by": "owner"}, 4),
        ("DirichletPartitioner", {"num_partitions": 3, "partition_by": "label", "alpha": 5.0, "seed": 1}, 3),
        (
            "PathologicalPartitioner",
            {"num_partitions": 3, "partition_by": "label", "num_classes_per_partition": 1},
            3,
        ),
    ],
)
def test_each_part_of_a_partitioner_is_a_device(tmp_path, partitioner, options, devices):
    _save(tmp_path / "zoo")
    data = _load(tmp_path, partitioner=partitioner, partitioner_options=options)
    owners: dict[str, Any] = {"groups": data.groups, "test_groups": data.test_groups}
    train, test = data.dealt_by
    parts = partition("natural", train, test, devices, np.random.default_rng(0), **owners)
    dealt = np.concatenate([part.train for part in parts])
    assert sorted(dealt.tolist()) == list(range(60))
    if partitioner == "NaturalIdPartitioner":
        assert {len({i % 4 for i in part.train.tolist()}) for part in parts} == {1}
    if partitioner == "PathologicalPartitioner":
        assert {len(set(data.train[1][part.train].tolist())) for part in parts} == {1}


def test_a_table_of_numbers_is_one_too(tmp_path):
    columns = {"x": [[float(i), 1.0] for i in range(20)], "y": [i / 2 for i in range(20)]}
    rows = datasets.Dataset.from_dict(columns)
    datasets.DatasetDict({"train": rows}).save_to_disk(str(tmp_path / "zoo"))
    data = _load(tmp_path, inputs="x", targets="y")
    assert tuple(data.train[0].shape) == (16, 2)
    assert data.num_classes is None
    assert data.train[1].dtype.is_floating_point


def test_parquet_files_of_a_folder_are_read_without_a_network(tmp_path):
    _save(tmp_path / "saved")
    (tmp_path / "zoo").mkdir()
    for split, rows in datasets.load_from_disk(str(tmp_path / "saved")).items():
        rows.to_parquet(str(tmp_path / "zoo" / f"{split}.parquet"))
    data = _load(tmp_path)
    assert data.train[0][:, 0, 0, 0].tolist() == list(range(60))
    assert data.label_names == tuple(NAMES)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"partitioner": "Iid"}, "partitioner = 'Iid'; valid: .*IidPartitioner"),
        ({"partitioner": "IidPartitioner", "partitioner_options": {"parts": 3}}, "partitioner_options"),
        ({"inputs": "picture"}, "inputs = 'picture': zoo has the columns image, label, owner"),
        ({"targets": "owner"}, "targets = 'owner'"),
        ({"train_split": "training"}, "train_split = 'training': zoo has the splits train, test"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, options, text):
    _save(tmp_path / "zoo")
    with pytest.raises((ValueError, DatasetError), match=text):
        _load(tmp_path, **options)


def test_absent_it_says_where_it_was_looked_for(tmp_path):
    with pytest.raises(DatasetUnavailableError, match=r"zoo is neither in .*dataset.download is off"):
        _load(tmp_path)
