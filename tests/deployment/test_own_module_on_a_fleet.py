"""A network and data that no line of the packages knows, on a fleet: TLS, keys, a file of the user's own."""

import sys
from pathlib import Path

import pytest

from deploy.local_fleet import LocalFleet
from engines.inprocess import InProcessGrid
from protocol import own_files
from server_app.run import run
from server_app.settings import compose_settings

pytestmark = [pytest.mark.slow, pytest.mark.fleet]

NODES = 2
SOURCE = Path(__file__).parents[1] / "end_to_end" / "own_task.py"
JOB = (
    *("model.name=my_pictures:residual", 'model.personal=["*bn*","head.*"]', "model.options.width=4"),
    *("dataset.name=my_pictures:pictures", "partition=natural", "training.batch_size=5"),
    *("training.global_steps=3", "rounds=2"),
)
PRUNED = ("scheme=fixed_ratio", "scheme.pruning_ratio=0.4")


@pytest.fixture
def own_folder(tmp_path, monkeypatch):
    """A working directory with a file in it: not in the repository, not in the app."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "my_pictures.py").write_text(SOURCE.read_text())
    monkeypatch.setenv(own_files.VARIABLE, str(folder))
    monkeypatch.setattr("sys.path", [*sys.path])  # the simulation, in this process, looks there as well
    own_files.find_own_modules()


def tables(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in ("rounds.csv", "devices.csv")]


def test_a_residual_network_with_dropout_and_natural_users_gives_the_records_of_the_simulation(
    tmp_path, own_folder
):
    jobs = {"one": ("seed=1",), "again": ("seed=1",), "pruned": ("seed=1", *PRUNED), "two": ("seed=2",)}
    with LocalFleet(tmp_path / "fleet", NODES, tmp_path / "logs") as fleet:
        for index in range(NODES):
            fleet.start_node(index)
        for name, further in jobs.items():
            fleet.run([*JOB, *further], tmp_path / "fleet-runs" / name)
    for name, further in jobs.items():
        settings = compose_settings([*JOB, *further, f"fleet.num_devices={NODES}"])
        with InProcessGrid("client_app.app:app", NODES) as grid:  # its devices keep what they have learned
            run(settings, grid, tmp_path / "simulation" / name)
    found = {name: tables(tmp_path / "fleet-runs" / name) for name in jobs}
    assert found == {name: tables(tmp_path / "simulation" / name) for name in jobs}
    assert found["one"] == found["again"]
    assert found["one"] != found["two"]
    assert b",0.4," in found["pruned"][1]
