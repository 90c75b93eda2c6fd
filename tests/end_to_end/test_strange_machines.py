"""Machines that are not ours: no home, another locale, a folder that cannot be written."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from records.recorder import Recorder, read_table
from records.summary import git_commit
from server_app import run as runs
from strategies.records import RoundLog, Value

QUICK = (
    *("model=mlp", "rounds=1", "partition.samples_per_device=40", "partition.test_samples_per_device=20"),
    *("fleet.num_devices=2", "engine.workers=1", "hydra.run.dir=out"),
)


def airflower(folder, *arguments, **variables):
    environment = {"PATH": os.environ["PATH"], "TMPDIR": str(folder), **variables}
    return subprocess.run(
        [sys.executable, "-m", "experiments.cli", *QUICK, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_locale_that_knows_no_letters_and_no_home(tmp_path):
    result = airflower(tmp_path, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("mode", [(), ("-m",)])
def test_records_that_cannot_be_written_are_said_without_a_traceback(tmp_path, mode):
    (tmp_path / "file").touch()
    result = airflower(tmp_path, *mode, "hydra.run.dir=file/out", "hydra.sweep.dir=file/out")
    assert result.returncode == 2
    assert "the records cannot be written" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_data_set_without_home_says_which_key_names_its_folder(tmp_path):
    code = (
        "import pathlib\n"
        "def home(): raise RuntimeError('Could not determine home directory.')\n"
        "pathlib.Path.home = home\n"
        "from task.datasets import load_dataset\n"
        "load_dataset('digits'); load_dataset('mnist')"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "DatasetUnavailableError: there is no home folder for mnist" in result.stderr
    assert "dataset.root" in result.stderr


def test_a_git_that_hangs_or_is_broken_costs_no_run(monkeypatch):
    for error in (subprocess.TimeoutExpired("git", 10), FileNotFoundError("git"), ValueError("not UTF-8")):

        def fails(*args, error=error, **options):
            raise error

        monkeypatch.setattr("records.summary.subprocess.run", fails)
        assert git_commit() is None


def test_a_figure_that_cannot_be_drawn_is_said(monkeypatch, tmp_path, caplog):
    def fails(folder):
        raise RuntimeError("no fonts")

    monkeypatch.setattr(runs, "draw_run", fails)
    runs._draw(tmp_path)
    assert "could not be drawn: RuntimeError: no fonts" in caplog.text


def test_letters_that_no_file_can_hold_are_recorded_all_the_same(tmp_path):
    recorder = Recorder(tmp_path, round_columns=("a",), device_columns=("reason",), device_timing_columns=())
    log = RoundLog(1, {"a": 1}, {0: {"reason": "half a letter \udcff, and ä"}})
    recorder.record(log, {})
    assert read_table(Path(tmp_path) / "devices.csv")[0]["reason"] == "half a letter \\udcff, and ä"


def test_a_column_that_no_table_has_is_said_and_nothing_of_the_round_is_written(tmp_path):
    recorder = Recorder(
        tmp_path, round_columns=("a",), device_columns=("b",), device_timing_columns=("measured_c",)
    )
    known: dict[int, dict[str, Value]] = {0: {"b": 1, "measured_c": 2.5}, 1: {"b": None}}
    recorder.record(RoundLog(1, {"a": 1}, known), {"measured_plan_seconds": 0.5})
    before = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert before["devices.csv"] == "round,device,b\n1,0,1\n1,1,\n"
    assert before["device_timing.csv"] == "round,device,measured_c\n1,0,2.5\n"
    wrong: list[RoundLog] = [RoundLog(2, {"z": 1}, known), RoundLog(2, {"a": 1}, {**known, 2: {"z": 3}})]
    for log in wrong:
        with pytest.raises(ValueError, match="have no columns \\['z'\\]"):
            recorder.record(log, {})
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == before
