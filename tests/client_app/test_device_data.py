"""A node finds its images where *it* keeps them, and says before the first round if it has none."""

import numpy as np
import pytest
from flwr.app import Context, RecordDict
from PIL import Image

from client_app.device import introduce, run_context
from protocol.messages import HelloOrder, Introduction
from server_app.job import device_spec, prepare
from server_app.settings import compose_settings
from task.datasets import DatasetUnavailableError

FEW = ("model=mlp", "partition.samples_per_device=40")


def _spec(*overrides, on_nodes=True):
    return prepare(compose_settings([*FEW, *overrides]), on_nodes=on_nodes).spec.to_json()


def _node(index=0, **config):
    return Context(1, 1, {"partition-id": index, "num-partitions": 10, **config}, RecordDict(), {})


def _folder(root, data_root, dataset="MNIST"):
    """Make a machine's own folder of data sets, with the real files."""
    root.mkdir(parents=True)
    (root / dataset).symlink_to(data_root / dataset)
    return root


@pytest.fixture
def mnist_elsewhere(tmp_path, data_root, monkeypatch):
    """The server's folder is not on the node's machine."""
    monkeypatch.delenv("AIRFLOWER_DATA_ROOT", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    server = _folder(tmp_path / "server", data_root)
    spec = _spec("dataset=mnist", f"dataset.root={server}", "dataset.download=false")
    server.rename(tmp_path / "another machine")
    run_context.cache_clear()
    return spec


def test_a_node_reads_from_its_own_folder(tmp_path, data_root, monkeypatch, mnist_elsewhere):
    monkeypatch.setenv("AIRFLOWER_DATA_ROOT", str(_folder(tmp_path / "node", data_root)))
    run = run_context(mnist_elsewhere)
    assert len(run.task.data.train[1]) == 60000
    assert introduce(HelloOrder(mnist_elsewhere), _node()).problem == ""


def test_a_node_without_the_data_says_so_and_what_helps(tmp_path, monkeypatch, mnist_elsewhere):
    monkeypatch.setenv("AIRFLOWER_DATA_ROOT", str(tmp_path / "empty"))
    problem = introduce(HelloOrder(mnist_elsewhere), _node()).problem
    for word in ("MNIST is not in", str(tmp_path / "empty"), "AIRFLOWER_DATA_ROOT of this machine"):
        assert word in problem


def test_machines_that_are_set_up_alike_need_no_variable(data_root, monkeypatch):
    monkeypatch.setenv("HOME", "/nonexistent")
    monkeypatch.delenv("AIRFLOWER_DATA_ROOT", raising=False)
    spec = _spec("dataset=mnist", f"dataset.root={data_root}", "dataset.download=false")
    run_context.cache_clear()
    assert len(run_context(spec).task.data.train[1]) == 60000


def test_a_node_does_not_make_the_servers_folder(tmp_path, monkeypatch, mnist_elsewhere):
    with pytest.raises(DatasetUnavailableError, match=r"MNIST is not in .*home"):
        run_context(mnist_elsewhere)
    assert not (tmp_path / "server").exists()


def test_in_a_simulation_the_configured_folder_counts(tmp_path, data_root, monkeypatch):
    root = _folder(tmp_path / "configured", data_root)
    monkeypatch.setenv("AIRFLOWER_DATA_ROOT", str(tmp_path / "empty"))
    spec = _spec("dataset=mnist", f"dataset.root={root}", "dataset.download=false", on_nodes=False)
    run_context.cache_clear()
    assert len(run_context(spec).task.data.train[1]) == 60000


def test_other_files_of_the_same_name_are_refused(tmp_path, data_root, monkeypatch):
    """Positions in other files are other samples: two devices would train on the same ones, unseen."""
    spec = _spec("dataset=mnist", f"dataset.root={data_root}", "dataset.download=false")
    other = tmp_path / "node"
    other.mkdir()
    (other / "MNIST").symlink_to(data_root / "FashionMNIST")
    monkeypatch.setenv("AIRFLOWER_DATA_ROOT", str(other))
    run_context.cache_clear()
    assert "labels (or groups) differ" in introduce(HelloOrder(spec), _node()).problem


def test_where_data_lie_is_no_part_of_what_a_device_stores_its_state_under(tmp_path):
    """A resumed run may find its data elsewhere; the devices' own files must still be theirs."""
    keys = {
        device_spec(compose_settings(["dataset=mnist", *more])).run_key
        for more in ([], [f"dataset.root={tmp_path}"], ["dataset.download=false"])
    }
    assert len(keys) == 1


def _images(folder, labels=(3, 4)):
    for label in labels:
        (folder / str(label)).mkdir(parents=True)
        for number in range(5):
            Image.fromarray(np.full((40, 40), 40 * number, np.uint8)).save(
                folder / str(label) / f"{number}.png"
            )
    return folder


def test_a_node_with_its_own_images_says_what_they_are(tmp_path):
    folder = _images(tmp_path / "own")
    (folder / "3" / "broken.png").write_bytes(b"")
    said = introduce(HelloOrder(_spec()), _node(7, **{"data-dir": str(folder)}))
    assert (said.index, said.own_images, said.problem) == (7, True, "")
    assert (said.train_samples, said.test_samples, said.labels) == (8, 2, (3, 4))
    assert any("broken.png" in note for note in said.notes)
    assert Introduction.from_records(said.to_records()) == said


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"data-dir": "{tmp}/cats"}, "named by the number of its class"),
        ({"data-dir": "{tmp}/twelve"}, "the run has the classes 0 to 9"),
        ({"data-dir": "relative"}, "absolute path"),
        ({"data-dir": 3}, "must be a path"),
        ({"uplink-bps": -1.0}, "must be positive"),
        ({"state-dir": "relative"}, "absolute path"),
    ],
)
def test_what_every_round_would_meet_is_said_before_the_first(tmp_path, config, message):
    (tmp_path / "cats" / "cat").mkdir(parents=True)
    _images(tmp_path / "twelve", (1, 12))
    filled = {
        key: value.format(tmp=tmp_path) if isinstance(value, str) else value for key, value in config.items()
    }
    assert message in introduce(HelloOrder(_spec()), _node(**filled)).problem


def test_a_device_outside_the_fleet_is_left_to_the_server(tmp_path):
    """Its index is what the server's message is about."""
    said = introduce(HelloOrder(_spec()), _node(12))
    assert said.index == 12
