"""SIGKILL a run at random moments, look at what is left behind, and resume it: same files as undisturbed.

As a script: ``python tests/end_to_end/kills.py --count 200``. The victims are forks of a process that has
imported everything, so that a trial takes a second, each in a session of its own; what runs in them is what
the command runs.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from pathlib import Path

import numpy as np

from experiments.cli import run_job
from protocol.archives import read_archive
from protocol.interrupts import interruptible
from records.checkpoint import checkpoints, latest
from records.ownership import status_of
from server_app.settings import compose_settings

JOB = (
    "model=mlp",
    "partition.samples_per_device=40",
    "partition.test_samples_per_device=20",
    "fleet.num_devices=4",
    "fleet.devices_per_round=3",
    "rounds=6",
    "checkpoint_every=1",
    "engine.workers=2",
    "engine.state_memory_mib=0.002",
)
TARGETS = ("main", "group", "worker")
_PATIENCE = 120.0


def start(folder: Path, scratch: Path, *more: str) -> int:
    """Start the job in a fork with a session and a temporary folder of its own; return its process."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.setsid()
        with open(scratch.with_suffix(".log"), "ab", buffering=0) as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        tempfile.tempdir = str(scratch)
        overrides = [*JOB, *more]
        with interruptible():
            run_job(compose_settings(overrides), folder)
        status = 0
    except BaseException:
        traceback.print_exc()
    os._exit(status)


def run(folder: Path, scratch: Path, *more: str) -> None:
    """Run the job to its end."""
    pid = start(folder, scratch, *more)
    assert os.waitpid(pid, 0)[1] == 0, scratch.with_suffix(".log").read_text()[-3000:]


def result(folder: Path) -> dict[str, object]:
    """Return all that a seed decides: tables, global and personal parts, summary."""
    checkpoint = latest(folder)
    found: dict[str, object] = {name: (folder / name).read_bytes() for name in ("rounds.csv", "devices.csv")}
    for path in [checkpoint / "server.npz", *sorted((checkpoint / "personal").iterdir())]:
        for name, array in read_archive(path).items():
            found[f"{path.name}/{name}"] = (array.dtype.str, array.shape, np.asarray(array).tobytes())
    summary = json.loads((folder / "summary.json").read_text())
    found["summary"] = {name: value for name, value in summary.items() if name != "git_commit"}
    return found


def session(leader: int) -> dict[int, str]:
    """Return the living processes of a session, with the parent of each."""
    listing = subprocess.run(
        ["ps", "-eo", "pid=,ppid=,sess=,stat="], capture_output=True, text=True, check=True
    )
    rows = [line.split() for line in listing.stdout.splitlines()]
    return {int(pid): parent for pid, parent, sess, stat in rows if int(sess) == leader and stat[0] != "Z"}


def shared_memory() -> set[str]:
    """Return the names that Python has given to shared memory on this machine; others may come and go."""
    folder = Path("/dev/shm")
    return {path.name for path in folder.glob("psm_*")} if folder.is_dir() else set()


def trial(number: int, base: Path, reference: dict[str, object], seconds: float, seed: int) -> str:
    """Kill and resume once; return what was killed, and when.

    Raises:
        AssertionError: if anything is left behind, or differs.
    """
    rng = random.Random(f"{seed}/{number}")
    folder, scratch = base / f"run-{number}", base / f"tmp-{number}"
    scratch.mkdir()
    before = shared_memory()
    pid = start(folder, scratch)
    target = TARGETS[number % 3]
    _wait_for_a_moment(folder, seconds, rng)
    what = _kill(pid, target, rng)
    if target == "worker":  # costs nothing: its devices are served by another one
        assert os.waitpid(pid, 0)[1] == 0, scratch.with_suffix(".log").read_text()[-3000:]
    else:
        os.waitpid(pid, 0)
    _nothing_left(pid, scratch, before)
    again = 0
    while status_of(folder)[0] != "completed":
        assert status_of(folder)[0] in ("killed", ""), status_of(folder)
        if not checkpoints(folder):
            what += ", before a checkpoint"
            shutil.rmtree(folder, ignore_errors=True)
            more = []
        else:
            more = [f"resume={folder}"]
        if again == 0 and rng.random() < 0.25:  # the one that resumes is killed, too
            pid = start(folder, scratch, *more)
            time.sleep(rng.uniform(0.0, seconds))
            what += f", then {_kill(pid, 'group', rng)}"
            os.waitpid(pid, 0)
            _nothing_left(pid, scratch, before)
        else:
            run(folder, scratch, *more)
        again += 1
        assert again < 4
    _nothing_left(pid, scratch, before)
    found = result(folder)
    differing = [name for name in {*found, *reference} if found.get(name) != reference.get(name)]
    assert not differing, f"trial {number} ({what}): {differing} differ, see {folder}"
    assert checkpoints(folder)[0][0] == 6
    assert not list(folder.rglob("*.partial"))
    assert not list(folder.rglob("*.tmp"))
    shutil.rmtree(folder)
    return what


def _wait_for_a_moment(folder: Path, seconds: float, rng: random.Random) -> None:
    """Wait for some moment of a run that takes so long: of all of it, or of its rounds.

    A short run takes longer to start than to train, so every other moment is soon after a random round.
    """
    if rng.random() < 0.5:
        time.sleep(rng.uniform(0.0, seconds))
        return
    lines = rng.randint(2, 6)  # of rounds.csv: its header, and 1 to 5 rounds
    deadline = time.monotonic() + 2.0 * seconds
    while time.monotonic() < deadline:
        with suppress(OSError):
            if (folder / "rounds.csv").read_bytes().count(b"\n") >= lines:
                break
        time.sleep(0.002)
    time.sleep(rng.uniform(0.0, 0.1 * seconds))


def _kill(pid: int, target: str, rng: random.Random) -> str:
    """Kill, and return what."""
    try:
        if target == "group":
            os.killpg(pid, signal.SIGKILL)
        elif target == "main":
            os.kill(pid, signal.SIGKILL)
        else:
            workers = [child for child, parent in session(pid).items() if int(parent) == pid]
            if not workers:
                return "no worker yet"
            os.kill(rng.choice(workers), signal.SIGKILL)
    except ProcessLookupError:
        return f"{target} too late"
    return target


def _nothing_left(pid: int, scratch: Path, before: set[str]) -> None:
    deadline = time.monotonic() + _PATIENCE
    while ((left := session(pid)) or shared_memory() - before) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not left, f"processes are left: {left}"
    assert not list(scratch.iterdir()), f"temporary files are left: {list(scratch.iterdir())}"
    assert not shared_memory() - before, "shared memory is left"


def trials(count: int, base: Path, seed: int = 0, first: int = 0) -> collections.Counter[str]:
    """Do that many trials, from that number on; return how often what was killed.

    Raises:
        AssertionError: if one fails.
    """
    scratch = base / "tmp-whole"
    scratch.mkdir()
    warm = [*JOB, "engine.workers=1", "rounds=1"]  # imports and loads what the forks then have
    run_job(compose_settings(warm), base / "warm")
    run(base / "whole", scratch)
    began = time.monotonic()
    run(base / "timed", scratch)
    seconds = time.monotonic() - began
    reference = result(base / "whole")
    assert result(base / "timed") == reference
    counts: collections.Counter[str] = collections.Counter()
    for number in range(first, first + count):
        counts[trial(number, base, reference, seconds, seed)] += 1
        if number % 10 == 9:
            print(f"up to trial {number + 1}: {dict(counts)}", flush=True)
    return counts


def main() -> None:
    """Run the trials and print the counts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--first", type=int, default=0, help="number of the first trial, to do them in pieces"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kills-") as base:
        counts = trials(options.count, Path(base), options.seed, options.first)
    print(f"{sum(counts.values())} trials, every result equal, nothing left behind")
    for what, times in sorted(counts.items()):
        print(f"{times:5d}  {what}")


if __name__ == "__main__":
    main()
