"""Told to stop, or killed: everything that was started ends, the status is true, a checkpoint is left.

SIGKILL leaves the checkpoint of the last round that was stored, the others that of the last finished one.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engines.process_table import descendants, living
from records.checkpoint import checkpoints
from records.ownership import status_of
from records.recorder import read_table

SMALL = ("model=mlp", "partition.samples_per_device=40", "partition.test_samples_per_device=20")
JOB = (*SMALL, "fleet.num_devices=3", "rounds=1000")
SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGKILL")


def all_but(*quick: str) -> list[object]:
    """Return all signals, those that are not named as exhaustive: one handler serves all but SIGKILL."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.exhaustive) for name in SIGNALS]


class Command:
    """A command with a temporary folder of its own, and all the processes that come of it."""

    def __init__(self, folder: Path, scratch: Path, *command: str) -> None:
        self.scratch = scratch
        self._known: set[int] = set()
        self.log = folder / "command.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", *command],
                cwd=folder, env={**os.environ, "TMPDIR": str(scratch)}, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def until(self, condition: Callable[[], bool], seconds: float = 400.0) -> None:
        """Wait for a condition while the command is at work; note its processes."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.2)
        self._known = descendants(self.process.pid)

    def tell(self, name: str) -> int:
        """Send a signal to the command alone; return its exit status."""
        self.process.send_signal(getattr(signal, name))
        return self.process.wait(120)

    def leaves_nothing(self) -> None:
        """See that all is gone soon after the command."""
        deadline = time.monotonic() + 100
        while left := [*self._left(), *map(str, self.scratch.iterdir())]:
            assert time.monotonic() < deadline, left
            time.sleep(0.1)

    def _left(self) -> list[str]:
        return [
            command for pid, command in living().items() if pid in self._known or str(self.scratch) in command
        ]


@pytest.fixture
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="") as folder:  # short: Ray keeps sockets below it
        yield Path(folder)


def _rows(folder: Path) -> int:
    path = folder / "rounds.csv"
    return len(read_table(path)) if path.is_file() else 0


def _ends_well(folder: Path, name: str) -> None:
    """See that the status is true, and the checkpoint that of the last round."""
    deadline = time.monotonic() + 30
    while status_of(folder)[0] == "running":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    stored = checkpoints(folder)[0][0]
    if name == "SIGKILL":
        assert status_of(folder)[0] in ("killed", "interrupted")  # what is below it is told to stop, at best
        assert stored >= _rows(folder) - 1
    else:
        assert status_of(folder)[0] == "interrupted"
        assert name in status_of(folder)[1]
        assert stored == _rows(folder)


def _goes_on(folder: Path) -> None:
    """See that the checkpoint can be used: one more round is done from it."""
    more = checkpoints(folder)[0][0] + 1
    done = subprocess.run(
        [
            sys.executable, "-P", "-m", "experiments.cli", *JOB[:-1], f"rounds={more}", "engine.workers=1",
            f"resume={folder}", f"hydra.run.dir={folder}-more",
        ],
        cwd=folder.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", all_but("SIGINT", "SIGKILL"))
@pytest.mark.parametrize(
    "engine",
    [
        "inprocess",
        pytest.param("ray", marks=pytest.mark.exhaustive),
        pytest.param("flower", marks=pytest.mark.exhaustive),
    ],
)
def test_a_run_is_stopped(tmp_path, scratch, engine, name):
    folder = tmp_path / "out"
    every = "checkpoint_every=1" if name == "SIGKILL" else "checkpoint_every=0"
    command = Command(
        tmp_path, scratch,
        "experiments.cli", *JOB, f"engine={engine}", "engine.workers=2", every, "hydra.run.dir=out",
    )  # fmt: skip
    command.until(lambda: _rows(folder) >= 2)
    status = command.tell(name)
    assert status == (-signal.SIGKILL if name == "SIGKILL" else 128 + getattr(signal, name))
    command.leaves_nothing()
    _ends_well(folder, name)
    _goes_on(folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", all_but("SIGTERM", "SIGKILL"))
def test_a_sweep_is_stopped(tmp_path, scratch, name):
    """The job that is at work is stopped, and none is begun."""
    command = Command(
        tmp_path, scratch,
        "experiments.cli", "--multirun", "seed=1,2", *JOB, "engine.workers=2", "checkpoint_every=1",
        "hydra.sweep.dir=out",
    )  # fmt: skip
    first, second = tmp_path / "out" / "seed=1", tmp_path / "out" / "seed=2"
    command.until(lambda: _rows(first) >= 2)
    assert command.tell(name) != 0
    command.leaves_nothing()
    _ends_well(first, name)
    assert not second.exists()


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("name", SIGNALS)
def test_a_reproduction_is_stopped(tmp_path, scratch, name):
    """Its sweeps have processes of their own; also when it is killed, they store what they have."""
    command = Command(
        tmp_path, scratch,
        "experiments.reproduce", "p1_fig5", "dirichlet", "--jobs", "2",
        "dataset=digits", "model=mlp", "rounds=1000",
    )  # fmt: skip
    found: list[Path] = []

    def both() -> bool:
        found[:] = [
            path.parent for path in tmp_path.glob("multirun/*/*/rounds.csv") if _rows(path.parent) >= 2
        ]
        return len({path.parent for path in found}) == 2

    command.until(both)
    assert command.tell(name) != 0
    command.leaves_nothing()
    for folder in found:
        _ends_well(folder, "SIGTERM")
