"""The command line and Flower's own simulation: same records, honest exit codes, nothing left behind."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engines.flower import run_flower
from server_app.run import RunFailedError
from server_app.settings import compose_settings
from tests.end_to_end.jobs import SMALL, records, run_small


def _airflower(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "experiments.cli", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_the_command_line_leaves_one_complete_folder(tmp_path):
    result = _airflower(tmp_path, *SMALL, "rounds=2", "hydra.run.dir=out")
    assert result.returncode == 0, result.stderr
    assert "round 2/2  accuracy" in result.stdout
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names >= {
        "checkpoint", "config.yaml", "devices.csv", "figure.png", "rounds.csv", "run.log",
        "summary.json", "timing.csv",
    }  # fmt: skip


def test_a_wrong_key_exits_with_2_and_trains_nothing(tmp_path):
    result = _airflower(tmp_path, "radio.latency_treshold_ms=20")
    assert result.returncode == 2
    assert "did you mean latency_threshold_ms" in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_wrong_value_in_any_job_of_a_sweep_stops_the_sweep_first(tmp_path):
    result = _airflower(tmp_path, "--multirun", *SMALL, "radio.latency_threshold_ms=20,-1")
    assert result.returncode == 2
    assert "radio.latency_threshold_ms = -1.0 must be above 0" in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_failed_run_exits_with_1(tmp_path):
    """No device can train: the step size makes the weights overflow at once."""
    result = _airflower(tmp_path, *SMALL, "training.global_learning_rate=1e38", "hydra.run.dir=out")
    assert result.returncode == 1, result.stdout + result.stderr
    assert "no device gave a usable reply" in result.stdout + result.stderr


def test_a_sweep_runs_every_job(tmp_path):
    result = _airflower(
        tmp_path, "--multirun", *SMALL, "rounds=1", "radio.latency_threshold_ms=1,2", "hydra.sweep.dir=sweep"
    )
    assert result.returncode == 0, result.stderr
    assert len(list((tmp_path / "sweep").glob("*/summary.json"))) == 2


def test_killing_the_command_leaves_no_worker_behind(tmp_path):
    mark = f"hydra.run.dir={tmp_path / 'out'}"
    command = [sys.executable, "-m", "experiments.cli", *SMALL, "rounds=100000", "engine.workers=2", mark]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert any("round " in line for line in process.stdout)
            assert _processes_with(mark) == 3
        finally:
            process.kill()
    deadline = time.monotonic() + 20
    while _processes_with(mark) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert _processes_with(mark) == 0


def _processes_with(mark: str) -> int:
    listing = subprocess.run(["ps", "-ewwo", "stat,args"], capture_output=True, text=True, check=True).stdout
    return sum(mark in line and not line.startswith("Z") for line in listing.splitlines())


@pytest.mark.slow
def test_flower_gives_the_same_records_and_leaves_no_process(tmp_path):
    overrides = [*SMALL, "rounds=2"]
    run_flower(compose_settings(overrides), tmp_path / "flower")
    run_small(tmp_path / "inprocess", "rounds=2")
    assert records(tmp_path / "flower") == records(tmp_path / "inprocess")
    listing = subprocess.run(["ps", "-ewwo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(tmp_path) not in listing


@pytest.mark.exhaustive  # it starts Ray
def test_a_run_that_fails_in_flower_fails_here(tmp_path):
    overrides = [*SMALL, "training.global_learning_rate=1e38", "fleet.max_failed_rounds=1"]
    with pytest.raises(RunFailedError, match="no device gave a usable reply"):
        run_flower(compose_settings(overrides), tmp_path)


@pytest.mark.exhaustive
def test_code_in_the_working_directory_does_not_shadow_the_app(tmp_path, monkeypatch):
    """A folder with packages of the same names, as a project next door would have."""
    trap = tmp_path / "trap"
    for package in ("client_app", "task", "protocol"):
        (trap / package).mkdir(parents=True)
        (trap / package / "__init__.py").write_text("raise RuntimeError('code of another project')\n")
    monkeypatch.chdir(trap)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert os.getcwd() == str(trap)
    overrides = [*SMALL, "rounds=1"]
    summary = run_flower(compose_settings(overrides), tmp_path / "out")
    assert summary["status"] == "completed"
