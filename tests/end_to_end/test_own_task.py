"""Networks and data of a user's own, from a file beside the tests, in runs from end to end."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from engines.inprocess import open_grid
from schema import ConfigError
from server_app.job import prepare
from server_app.run import run
from server_app.settings import compose_settings

OWN = "tests.end_to_end.own_task"
RESIDUAL = [
    f"model.name={OWN}:residual", f"dataset.name={OWN}:pictures", "partition=natural",
    "fleet.num_devices=6", "training.batch_size=5", "training.global_steps=3", "rounds=2",
]  # fmt: skip
PERSONAL = 'model.personal=["*bn*","head.*"]'


def _run(folder: Path, *overrides: str) -> list[dict[str, str]]:
    settings = compose_settings(list(overrides))
    with open_grid(settings, workers=1) as grid:
        run(settings, grid, folder)
    with (folder / "rounds.csv").open() as file:
        return list(csv.DictReader(file))


def _devices(folder: Path) -> list[dict[str, str]]:
    with (folder / "devices.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("further", [[], ["scheme=fixed_ratio", "scheme.pruning_ratio=0.4"]])
def test_a_residual_network_with_dropout_repeats_bit_for_bit(tmp_path, further):
    for name in ("one", "two"):
        _run(tmp_path / name, *RESIDUAL, PERSONAL, "model.options.width=4", *further)
    for file in ("rounds.csv", "devices.csv"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_shared_running_statistics_are_charged_and_averaged(tmp_path):
    """Width 4: a mean and a variance of 4 each and one count make 9 numbers of 32 bits."""
    own = _run(tmp_path / "own", *RESIDUAL, "model.personal=[]", "model.options.width=4")
    shared = _run(
        tmp_path / "shared", *RESIDUAL, "model.personal=[]", "model.options.width=4",
        "model.buffers=shared", "evaluate_global=true",
    )  # fmt: skip
    per_device = [
        int(b["uplink_bits"]) - int(a["uplink_bits"])
        for a, b in zip(_devices(tmp_path / "own"), _devices(tmp_path / "shared"), strict=True)
        if a["kept_weights"] == b["kept_weights"]
    ]
    assert per_device
    assert set(per_device) == {9 * 32}
    assert float(shared[-1]["global_loss"]) > 0
    assert 0 <= float(shared[-1]["global_accuracy"]) <= 1
    assert "global_loss" not in own[-1]


def test_a_regression_reports_its_error(tmp_path):
    rows = _run(
        tmp_path / "run", f"model.name={OWN}:table", "model.personal=[]", f"dataset.name={OWN}:houses",
        "partition=natural", "fleet.num_devices=4", "rounds=3", "training.global_learning_rate=0.05",
    )  # fmt: skip
    errors = [float(row["rmse_mean"]) for row in rows]
    assert errors[-1] < errors[0]
    assert float(rows[-1]["rmse_worst"]) >= errors[-1]
    assert "accuracy_mean" not in json.loads((tmp_path / "run" / "summary.json").read_text())


def test_a_recurrent_network_predicts_the_next_token(tmp_path):
    rows = _run(
        tmp_path / "run", "model=lstm", "model.options.each_position=true", "model.options.width=6",
        f"dataset.name={OWN}:tokens", "partition=iid", "fleet.num_devices=3", "rounds=2",
        "task.metrics=[perplexity]",
    )  # fmt: skip
    assert 1.0 < float(rows[-1]["perplexity_mean"]) < 8.0


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([f"model.name={OWN}:nothing"], ["model.name", "nothing"]),
        (["model.options.depth=3"], ["model.name", "depth", "width"]),
        (["model.name=nowhere:net"], ["model.name", "nowhere"]),
        (["dataset.options.window=3"], ["dataset.name", "window", "size"]),
        ([f"task.loss={OWN}:infinite"], ["task.loss", "nan"]),
        (["task.loss=mse"], ["task.loss", "cross_entropy"]),
        (["fleet.num_devices=9"], ["num_devices = 9", "6 groups"]),
        (['model.personal=["*"]'], ["model.personal", "nothing is left"]),
        (["model.name=mlp", "model.personal=[]", "model.buffers=shared"], ["model.buffers", "personal"]),
        (["evaluate_global=true"], ["evaluate_global", "model.personal=[]"]),
        ([f"model.name={OWN}:table", "model.personal=[]"], ["model.name", "(5, 3, 8, 8)"]),
        (["dataset.augment=crop"], ["dataset.augment", "crop_flip"]),
    ],
)
def test_what_cannot_work_is_refused_before_training(overrides, words):
    with pytest.raises(ConfigError) as caught:
        prepare(compose_settings([*RESIDUAL, PERSONAL, *overrides]))
    for word in words:
        assert word in str(caught.value)


MINE = [text.replace(OWN, "mine") for text in (*RESIDUAL, PERSONAL)]
JOBS = {
    "residual": MINE,
    "residual, pruned": [*MINE, "scheme=fixed_ratio", "scheme.pruning_ratio=0.4"],
    "lstm": [
        "model=lstm", "model.options.each_position=true", "model.options.width=6", "dataset.name=mine:tokens",
        "partition=iid", "fleet.num_devices=3", "rounds=2",
    ],
    "table": [
        "model.name=mine:table", "model.personal=[]", "dataset.name=mine:houses", "partition=natural",
        "fleet.num_devices=4", "rounds=2",
    ],
}  # fmt: skip


@pytest.mark.exhaustive
@pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)
def test_a_file_beside_the_command_gives_the_same_records_in_every_engine_and_again(tmp_path, job):
    (tmp_path / "mine.py").write_text(Path(__file__).with_name("own_task.py").read_text())
    tables = {}
    for name in ("inprocess", "again", "ray", "flower", "other seed"):
        chosen = [f"engine={name if name in ('ray', 'flower') else 'inprocess'}"]
        done = subprocess.run(
            [
                *(sys.executable, "-P", "-m", "experiments.cli", *job, *chosen, f"hydra.run.dir='{name}'"),
                f"seed={2 if name == 'other seed' else 1}",
            ],
            cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        tables[name] = [(tmp_path / name / file).read_bytes() for file in ("rounds.csv", "devices.csv")]
    other = tables.pop("other seed")
    assert all(table == tables["inprocess"] for table in tables.values())
    assert other != tables["inprocess"]
