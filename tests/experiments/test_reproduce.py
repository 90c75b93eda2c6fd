"""One command for all experiments: it runs each as its own sweep, goes on after a failure, and draws them."""

import sys
from typing import Any, ClassVar

import pytest

from experiments import reproduce
from experiments.sweep import sweep_name


@pytest.fixture
def sweeps(monkeypatch, tmp_path):
    """Record the commands instead of running them; p1_fig5 fails."""
    monkeypatch.chdir(tmp_path)
    commands: list[list[str]] = []
    reports: list[Any] = []

    class Guard:
        """Nothing is started that would have to be ended."""

        variables: ClassVar = {}

        def __init__(self, **kwargs):
            pass

        def close(self):
            pass

    class Sweep:
        """A process that has ended at once."""

        def __init__(self, command, **kwargs):
            commands.append(command)
            self.returncode = 1 if "experiment=p1_fig5" in command else 0
            if self.returncode == 0:
                folder = tmp_path / "multirun" / sweep_name(command[5:])
                folder.mkdir(parents=True, exist_ok=True)

        def wait(self):
            return self.returncode

        poll = wait

    monkeypatch.setattr("experiments.reproduce.Guard", Guard)
    monkeypatch.setattr("experiments.reproduce.subprocess.Popen", Sweep)
    monkeypatch.setattr("experiments.report.cli.main", reports.append)
    return commands, reports


def test_every_experiment_is_run_once_and_the_one_that_measures_time_is_last(sweeps):
    commands, _ = sweeps
    with pytest.raises(SystemExit):
        reproduce.main([])
    names = [next(a for a in c if a.startswith("experiment=")).split("=")[1] for c in commands]
    assert sorted(names) == sorted(reproduce.experiments())
    assert names[-1] == "p2_table2"
    assert all(c[:5] == [sys.executable, "-P", "-m", "experiments.cli", "--multirun"] for c in commands)
    assert all("size=quick" in c for c in commands)


def test_a_failed_experiment_is_named_and_the_others_are_drawn(sweeps, capsys):
    commands, reports = sweeps
    with pytest.raises(SystemExit) as stop:
        reproduce.main(["p1_fig5", "p1_fig6", "--out", "page", "size=full", "seed=7"])
    assert stop.value.code == 1
    assert "not completed: p1_fig5" in capsys.readouterr().err
    assert all("size=full" in c and "seed=7" in c for c in commands)
    ((folder, *rest),) = reports
    assert folder.startswith("multirun/p1_fig6-full-")
    assert rest == ["--out", "page"]


def test_an_unknown_experiment_is_refused(sweeps, capsys):
    with pytest.raises(SystemExit) as stop:
        reproduce.main(["p1_fig7"])
    assert stop.value.code == 2
    assert "no experiment p1_fig7; there are: accuracy_and_bits" in capsys.readouterr().err
    assert not sweeps[0]
