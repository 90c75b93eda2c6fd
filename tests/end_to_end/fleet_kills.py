"""SIGKILL the ServerApp of a fleet at random moments, and resume the run: same files as undisturbed.

As a script: ``python tests/end_to_end/fleet_kills.py --count 30``. One fleet of processes on this machine,
with TLS and keys, serves all trials: its nodes and its SuperLink live on, as those of a real fleet do.
"""

from __future__ import annotations

import argparse
import collections
import os
import random
import signal
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np

from deploy.local_fleet import LocalFleet
from engines.process_table import descendants, living
from engines.superlink import finished
from protocol.archives import read_archive
from records.checkpoint import checkpoints, latest
from records.ownership import holder_of, read_summary, status_of

ROUNDS = 3
JOB = (
    *("model=mlp", "partition.samples_per_device=40", "partition.test_samples_per_device=20"),
    *(f"rounds={ROUNDS}", f"evaluate_every={ROUNDS}", "checkpoint_every=1"),
)
_PATIENCE = 120.0


def result(folder: Path) -> dict[str, object]:
    """Return what a seed decides and the server has; personal parts show in the last accuracies."""
    found: dict[str, object] = {name: (folder / name).read_bytes() for name in ("rounds.csv", "devices.csv")}
    weights = read_archive(latest(folder) / "server.npz")["weights"]
    found["weights"] = np.asarray(weights).tobytes()
    return found


def server_apps(fleet: LocalFleet) -> list[int]:
    """Return the ServerApp's processes."""
    commands = living()
    return [pid for pid in descendants(fleet.superlink.pid) if "flwr-serverapp" in commands.get(pid, "")]


def shared_memory() -> set[str]:
    """Return the names of shared memory on this machine that this user's Python has given."""
    folder = Path("/dev/shm")
    return {path.name for path in folder.glob("psm_*")} if folder.is_dir() else set()


def trial(number: int, fleet: LocalFleet, base: Path, seconds: float, rng: random.Random) -> tuple[str, Path]:
    """Kill once and resume; return when it was killed, and the folder of the run.

    Raises:
        AssertionError: if anything is left behind, or a status is not true.
    """
    folder = base / f"run-{number}"
    fleet.submit(JOB, folder)
    time.sleep(rng.uniform(0.0, seconds))
    victims = server_apps(fleet)
    before = finished(folder)
    for pid in victims:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    if not victims:
        what = "too late" if before else "before it began"
    else:
        what = f"after {checkpoints(folder)[0][0] if checkpoints(folder) else 0} stored rounds"
    if what == "before it began":
        fleet.flwr.stop(fleet.run_id)
    deadline = time.monotonic() + _PATIENCE
    while server_apps(fleet) or read_summary(folder).get("status") == "running":
        assert time.monotonic() < deadline, (server_apps(fleet), status_of(folder))
        time.sleep(0.1)
    status = status_of(folder)[0]
    assert status in ("killed", "completed", ""), status_of(folder)
    if status == "killed" and not checkpoints(folder):
        folder = base / f"run-{number}-again"
    if status != "completed":
        more = [f"resume={folder}"] if checkpoints(folder) else []
        fleet.run([*JOB, *more], folder)
    assert status_of(folder)[0] == "completed"
    while holder_of(folder) is not None:  # its last act, after the summary
        assert time.monotonic() < deadline + 10 * _PATIENCE, holder_of(folder)
        time.sleep(0.1)
    assert not [*folder.rglob("*.partial"), *folder.rglob("*.tmp"), *folder.rglob("*.closing")]
    return what, folder


def trials(count: int, base: Path, seed: int = 0) -> collections.Counter[str]:
    """Do that many trials; return how often it was killed when.

    Raises:
        AssertionError: if one fails.
    """
    rng, memory = random.Random(seed), shared_memory()
    counts: collections.Counter[str] = collections.Counter()
    scratch = base / "fleet"
    with LocalFleet(scratch, 2, base / "logs", throw_away=True) as fleet:
        for index in range(2):
            fleet.start_node(index)
        fleet.run(JOB, base / "whole")
        reference = result(base / "whole")
        began = time.monotonic()
        fleet.run(JOB, base / "timed")
        seconds = time.monotonic() - began
        assert result(base / "timed") == reference
        for number in range(count):
            what, folder = trial(number, fleet, base, seconds, rng)
            found = result(folder)
            differing = [name for name in reference if found[name] != reference[name]]
            assert not differing, f"trial {number} ({what}): {differing} differ, see {folder}"
            counts[what] += 1
            print(f"{number + 1} trials: {dict(counts)}", flush=True)
    assert not [command for command in living().values() if str(scratch) in command]
    assert not scratch.exists()
    deadline = time.monotonic() + _PATIENCE  # other runs on this machine may have theirs
    while shared_memory() - memory:
        assert time.monotonic() < deadline, "shared memory is left"
        time.sleep(0.1)
    return counts


def main() -> None:
    """Run the trials and print the counts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fleet-kills-") as base:
        counts = trials(options.count, Path(base), options.seed)
    print(f"{sum(counts.values())} trials, every result equal, nothing left behind")
    for what, times in sorted(counts.items()):
        print(f"{times:5d}  {what}")


if __name__ == "__main__":
    main()
