"""SIGKILL a supervised fleet at random moments: the run ends by itself with the files of an undisturbed one.

As a script: ``python tests/end_to_end/supervised_kills.py --count 10``. Each trial is one run of
``airflower-fleet run`` with three nodes, TLS and keys, in which the ServerApp, the SuperLink and the
supervisor are killed once each, in any order, in rounds and at moments drawn at random; ``--machine`` adds
everything at once, as a power cut does. A supervisor that is gone is started again with the same command
line, as systemd does with `deploy/systemd/airflower-run.service`.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np

from engines.inprocess import InProcessGrid
from engines.process_table import command_of, descendants, living, started_by
from protocol.archives import read_archive
from protocol.guard import MARK
from records.checkpoint import latest
from records.ownership import status_of
from records.recorder import read_table
from server_app.run import run
from server_app.settings import compose_settings

ROUNDS, NODES = 12, 3
JOB = (
    *("model=mlp", "partition.samples_per_device=40", "partition.test_samples_per_device=20"),
    *(f"rounds={ROUNDS}", "evaluate_every=4"),  # an exchange less in most rounds, and half the time
)
COMMAND = Path(__file__).parents[2] / "deploy" / "local-fleet"
TARGETS = {"ServerApp": "flwr-serverapp", "SuperLink": "flower-superlink"}
_PATIENCE = 900.0


def result(folder: Path) -> dict[str, object]:
    """Return what a seed decides and the server has; personal parts show in the accuracies."""
    found: dict[str, object] = {name: (folder / name).read_bytes() for name in ("rounds.csv", "devices.csv")}
    weights = read_archive(latest(folder) / "server.npz")["weights"]
    found["weights"] = np.asarray(weights).tobytes()
    return found


class Supervised:
    """The command, started again whenever it was killed.

    Args:
        folder: of the run.
        scratch: its temporary folder.
    """

    def __init__(self, folder: Path, scratch: Path) -> None:
        self.folder, self.scratch = folder, scratch
        self.log = folder.with_suffix(".log")
        scratch.mkdir(exist_ok=True)
        self.process = self.start()

    def start(self) -> subprocess.Popen[bytes]:
        """Start it."""
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, str(COMMAND), "--nodes", str(NODES), "--out", str(self.folder), *JOB],
                stdout=output, stderr=subprocess.STDOUT, cwd=self.scratch,
                env={**os.environ, "TMPDIR": str(self.scratch)}, start_new_session=True,
            )  # fmt: skip
        return self.process

    def kill(self, target: str, rng: random.Random) -> bool:
        """Kill a part, or everything; return whether it was there."""
        if target in TARGETS:
            victims = [
                started.pid
                for started in started_by(self.process.pid)
                if TARGETS[target] in command_of(started)
            ]
        elif target == "supervisor":
            victims = [self.process.pid]
        else:
            victims = [self.process.pid, *descendants(self.process.pid)]
        for pid in victims:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self.process.pid in victims:
            self.process.wait()
            time.sleep(rng.uniform(0.0, 5.0))
            self.start()
        return bool(victims)

    def rounds(self) -> int:
        """Return how many rounds are recorded."""
        path = self.folder / "rounds.csv"
        return len(read_table(path)) if path.is_file() else 0

    def wait(self, rounds: int) -> bool:
        """Wait until so many rounds are recorded; return False if the command has ended by then.

        Raises:
            AssertionError: if it takes too long.
        """
        deadline = time.monotonic() + _PATIENCE
        while self.rounds() < rounds:
            assert time.monotonic() < deadline, self.tail()
            if self.process.poll() is not None:
                return False
            time.sleep(0.1)
        return True

    def tail(self) -> str:
        """Return the end of what it has said."""
        return self.log.read_text(errors="replace")[-4000:]


def trial(number: int, base: Path, reference: dict[str, object], seed: int, *, machine: bool) -> str:
    """Kill in one run, let it end; return what was killed when.

    Raises:
        AssertionError: if it does not complete, differs, or leaves anything.
    """
    rng = random.Random(f"{seed}/{number}")
    targets = [*TARGETS, "supervisor", *(["machine"] if machine else [])]
    rng.shuffle(targets)
    moments = sorted(rng.randrange(ROUNDS) for _ in targets)
    folder, scratch = base / f"run-{number}", base / f"t{number}"
    began, done = time.monotonic(), []
    supervised = Supervised(folder, scratch)
    for rounds, target in zip(moments, targets, strict=True):
        if not supervised.wait(rounds):
            break
        time.sleep(rng.uniform(0.0, 8.0))
        if supervised.process.poll() is None and supervised.kill(target, rng):
            done.append(f"{target} after {rounds}")
    code = supervised.process.wait(_PATIENCE)
    assert code == 0, supervised.tail()
    assert status_of(folder)[0] == "completed", status_of(folder)
    assert [int(row["round"]) for row in read_table(folder / "rounds.csv")] == [*range(1, ROUNDS + 1)]
    found = result(folder)
    differing = [name for name in reference if found[name] != reference[name]]
    assert not differing, f"trial {number} ({done}): {differing} differ, see {folder}\n{supervised.tail()}"
    left = [command for command in living().values() if str(scratch) in command]
    assert not left, left
    if "machine" not in targets:  # nobody is left to clear up after a power cut
        assert not [path for path in scratch.iterdir() if path.name.startswith("airflower-")]
    return f"{', '.join(done) or 'nothing'} ({time.monotonic() - began:.0f} s)"


def main() -> None:
    """Run the trials and print what each of them was."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--first", type=int, default=0, help="number of the first trial, to go on in pieces")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--machine", action="store_true", help="kill everything at once, too")
    parser.add_argument("--keep", type=Path, help="folder that stays, to look into")
    options = parser.parse_args()
    os.environ.pop(MARK, None)
    with tempfile.TemporaryDirectory(prefix="kills-") as temporary:
        base = options.keep or Path(temporary)
        base.mkdir(parents=True, exist_ok=True)
        with InProcessGrid("client_app.app:app", NODES) as grid:
            run(compose_settings([*JOB, f"fleet.num_devices={NODES}"]), grid, base / "simulation")
        reference = result(base / "simulation")
        for number in range(options.first, options.first + options.count):
            what = trial(number, base, reference, options.seed, machine=options.machine)
            print(f"trial {number + 1}: {what}", flush=True)
    print(f"{options.count} trials, every result equal, nothing left behind")


if __name__ == "__main__":
    main()
