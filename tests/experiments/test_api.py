"""The commands as functions: the same folders, the same checks, results that can be worked with."""

import os

import numpy as np
import pytest

from airflower import ConfigError, load_runs, run, sweep
from experiments.api import JobsFailedError
from experiments.sweep import job_name, sweep_name
from tests.experiments.small_sweeps import TINY

CHEAP = (*TINY, "engine.workers=1")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_run_returns_its_results(here):
    found = run([*CHEAP, "seed=3"], quiet=True)
    assert found.summary["status"] == "completed"
    assert found.config["seed"] == 3
    assert len(np.asarray(found.rounds["accuracy_mean"])) == 2
    assert found.folder.resolve().is_relative_to(here / "outputs")


def test_a_sweep_returns_one_result_per_job_and_is_not_done_twice(here, capsys):
    overrides = [*CHEAP, "rounds=1", "seed=1,2"]
    found = sweep(overrides)
    assert [result.config["seed"] for result in found] == [1, 2]
    assert {result.folder.parent for result in found} == {here / "multirun" / sweep_name(overrides)}
    assert found[0].folder.name == job_name(["seed=1"], ["seed"])
    stamps = [os.stat(result.folder / "rounds.csv").st_mtime_ns for result in found]
    again = sweep(overrides, quiet=True)
    assert [os.stat(result.folder / "rounds.csv").st_mtime_ns for result in again] == stamps
    assert [result.config["seed"] for result in load_runs("multirun")] == [1, 2]


def test_a_study_is_a_sweep_like_any_other(here):
    found = sweep(["study.name=planning", "study.draws=3", "scheme=proposed,equal_bandwidth"], quiet=True)
    assert [result.summary["draws"] for result in found] == [3, 3]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["radio.latency_treshold_ms=20"], "did you mean latency_threshold_ms"),
        ("rounds=2", "a list is wanted"),
        (["scheme=fedavg", "air.antennas=4"], "air.antennas"),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(here, overrides, words):
    for function in (run, sweep):
        with pytest.raises(ConfigError, match=words):
            function(overrides)
    assert not list(here.iterdir())


def test_a_job_that_could_not_be_trained_is_found_before_the_first_one_runs(here):
    with pytest.raises(ConfigError, match=r"num_devices = 50000.*in the job .*num_devices=50000"):
        sweep([*CHEAP, "rounds=1", "fleet.num_devices=2,50000"], quiet=True)
    assert not list(here.rglob("rounds.csv"))


def test_a_job_that_fails_does_not_stop_the_others(here, monkeypatch):
    from experiments import cli

    done = cli.run_job

    def fails_once(settings, folder):
        if settings.seed == 1:
            raise RuntimeError("no more memory")
        done(settings, folder)

    monkeypatch.setattr(cli, "run_job", fails_once)
    with pytest.raises(JobsFailedError, match=r"1 of 2 jobs of .* failed: .*no more memory"):
        sweep(["study.name=planning", "study.draws=3", "seed=1,2"], quiet=True)
    ended = {path.parent.name: path.read_text() for path in here.rglob("summary.json")}
    assert sorted('"completed"' in text for text in ended.values()) == [False, True]
