"""Endurance of a fleet: hours for an operator, minutes for a test, on links that lose, delay and break.

``python tests/deployment/soak.py --minutes 30``. A supervised run without an end (SuperLink, TLS, keys) on
three nodes, each behind a bad link of its own (`bad_links`: network namespaces with netem, or a proxy where
the kernel has none). Links are broken off, and cut for up to 45 s; nodes are killed and come back; SuperLink
and ServerApp are killed and started again by the supervisor.

What is asserted in the end, and printed:

- no stalled round: between two recorded rounds there are at most ``--stall`` seconds;
- no round is missing or there twice in the tables;
- no lost personal part: no device starts afresh, and each has its part of its last round on its disk;
- no leak: memory, open files and shared memory of SuperLink, gate, warm process, SuperNodes and supervisor do
  not grow over the second half of the soak, nor do the files that the fleet leaves in its temporary folder.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from deploy.credentials import roster
from deploy.local_fleet import LocalFleet
from deploy.supervise import supervise
from engines.process_table import command_of, started_by
from engines.superlink import absolute
from records.recorder import read_table
from server_app.run import RunFailedError
from server_app.settings import compose_settings
from server_app.settings.overrides import override
from tests.deployment.bad_links import Link, LossyProxy, NetemLink, why_no_netem

NODES = 3
JOB = (
    *("model=mlp", "partition.samples_per_device=40", "partition.test_samples_per_device=20"),
    *("rounds=100000", "evaluate_every=1000", f"fleet.num_devices={NODES}"),
    *("fleet.round_timeout_s=60", "fleet.start_timeout_s=120", "fleet.min_devices=1"),
)
KINDS = ("gate.py", "warm.py", "flower-supernode", "flower-superlink")
SERVER = ("kill SuperLink", "kill ServerApp")
EVENTS = (*2 * ("cut", "break", "kill node"), *SERVER)
_EVERY = (10.0, 40.0)  # s from one event to the next
_ROUNDS_BETWEEN = 2  # before the first event, and between two that end the server: else nothing would go on
_CALM = 90.0  # s at the end without further events, so that everybody may come back
_SAMPLE_EVERY = 5.0
# What is not taken for a leak, of the end of the second half over its beginning: a factor, and on top of it.
_GROWTH = 1.25
_RUNS_KEPT = 3  # its own, that which it continued, and that of the checkpoint before it
_SLACK = {"MB": 40.0, "files": 12.0, "shared": 4.0}


@dataclass(frozen=True)
class Use:
    """What a process uses: memory in MB, open files, mappings of shared memory."""

    MB: float
    files: float
    shared: float

    @staticmethod
    def of(process: psutil.Process) -> Use:
        """Look at one."""
        maps = Path(f"/proc/{process.pid}/maps")
        shared = maps.read_text().count("/dev/shm/") if maps.is_file() else 0
        return Use(process.memory_info().rss / 2**20, process.num_fds(), shared)

    @staticmethod
    def most(uses: Sequence[Use]) -> Use:
        """Return the most of each."""
        return Use(*(max(getattr(use, name) for use in uses) for name in ("MB", "files", "shared")))


def halves(numbers: Sequence[int]) -> tuple[int, int]:
    """Return the most in the first and in the last fifth of the second half."""
    half = numbers[len(numbers) // 2 :]
    part = max(1, len(half) // 5)
    return max(half[:part]), max(half[-part:])


def growing(early: Use, late: Use) -> list[str]:
    """Return what has grown too much."""
    return [
        name for name, slack in _SLACK.items() if getattr(late, name) > _GROWTH * getattr(early, name) + slack
    ]


def longest_pause(ended: Sequence[float], began: float, until: float) -> float:
    """Return the longest time without the end of a round, s."""
    times = [began, *sorted(ended), until]
    return max(later - earlier for earlier, later in itertools.pairwise(times))


class Soak:
    """One soak.

    Args:
        base: an empty folder.
        seconds: how long it lasts.
        seed: of what happens when.
        netem: whether the kernel impairs the links; else a proxy does.
    """

    def __init__(self, base: Path, seconds: float, seed: int, *, netem: bool) -> None:
        self.base, self.seconds, self.netem = base, seconds, netem
        self.out = base / "out"
        self.rng = random.Random(seed)
        self.events: Counter[str] = Counter()
        self.samples: list[Mapping[str, Use]] = []
        self.left_behind: list[int] = []  # files in the temporary folder of the fleet
        self.rounds_at: list[float] = []
        self._ends: list[tuple[float, Link]] = []  # when a cut ends
        self._spared_until = _ROUNDS_BETWEEN  # rounds recorded before which the server is left alone
        self._next_event = self._next_sample = 0.0

    def run(self) -> None:
        """Let it happen; `report` then says how it went.

        Raises:
            RunFailedError: if the run was given up.
        """
        host = NetemLink.host if self.netem else LossyProxy.host
        links: list[Link] = []
        try:
            if self.netem:  # the gate listens on the bridge, which comes with the first
                links += [NetemLink(index) for index in range(NODES)]
            with LocalFleet(
                self.base / "fleet", NODES, self.base / "logs", state_dir=self.base / "state", host=host
            ) as fleet:
                if not self.netem:
                    links += [LossyProxy(fleet.port, random.Random(self.rng.random())) for _ in range(NODES)]
                self.fleet, self.links = fleet, links
                for index, link in enumerate(links):
                    link.start_node(fleet, index)
                keys = override("fleet.roster", str(roster(fleet.credentials, NODES)))
                settings = compose_settings(list(JOB))
                self.began = time.monotonic()
                with suppress(_Over):
                    supervise(
                        fleet, settings, [*absolute(settings, JOB), keys], self.out,
                        watch=self._watch, sleep=self._sleep,
                    )  # fmt: skip
                fleet.flwr.stop(fleet.run_id)
        finally:
            for link in links:
                link.close()

    def _sleep(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self._watch()
            time.sleep(0.2)

    def _watch(self) -> None:
        """What the supervisor calls now and then."""
        now = time.monotonic()
        self.fleet.tend()
        path = self.out / "rounds.csv"
        recorded = len(read_table(path)) if path.is_file() else 0
        self.rounds_at += [now] * (recorded - len(self.rounds_at))
        del self.rounds_at[recorded:]  # a run that goes on does the last one again
        for when, link in self._ends:
            if now >= when:
                link.cut = False
        self._ends = [(when, link) for when, link in self._ends if now < when]
        if now >= self._next_sample:
            self._next_sample = now + _SAMPLE_EVERY
            self.samples.append(self._uses())
            self.left_behind.append(sum(1 for _ in (self.base / "fleet").rglob("*")))
        calm = self.began + self.seconds - min(_CALM, 0.25 * self.seconds)
        if self._next_event <= now < calm and recorded >= _ROUNDS_BETWEEN:
            self._next_event = now + self.rng.uniform(*_EVERY)
            self._happen(now, recorded)
        if now >= self.began + self.seconds:
            raise _Over

    def _happen(self, now: float, recorded: int) -> None:
        what = self.rng.choice(EVENTS)
        if what in SERVER:
            if recorded < self._spared_until:
                return
            self._spared_until = recorded + _ROUNDS_BETWEEN
        index = self.rng.randrange(NODES)
        self.events[what] += 1
        logging.warning("%.0f s: %s%s", now - self.began, what, "" if what in SERVER else f" {index}")
        if what == "cut":
            self.links[index].cut = True
            self._ends.append((now + self.rng.uniform(5.0, 45.0), self.links[index]))
        elif what == "break":
            self.links[index].break_off()
        elif what == "kill node":
            self._kill(self.fleet.nodes[index].pid, "flower-supernode")
        elif what == "kill SuperLink":
            self.fleet.superlink.kill()
        else:
            self._kill(self.fleet.superlink.pid, "flwr-serverapp")

    def _kill(self, pid: int, name: str) -> None:
        """Kill those of a process and its children that bear a name."""
        with suppress(psutil.Error):
            for process in (psutil.Process(pid), *started_by(pid)):
                if name in command_of(process):
                    with suppress(psutil.Error):
                        process.kill()

    def _uses(self) -> dict[str, Use]:
        found: dict[str, list[Use]] = {"supervisor (this)": [Use.of(psutil.Process())]}
        for process in started_by(psutil.Process().pid):
            kind = next((kind for kind in KINDS if kind in command_of(process)), None)
            with suppress(psutil.Error, OSError):
                if kind is not None and process.ppid() == psutil.Process().pid:
                    found.setdefault(kind, []).append(Use.of(process))
        return {kind: Use.most(uses) for kind, uses in found.items()}

    def report(self, stall: float) -> list[str]:
        """Print what was found; return what should not be."""
        wrong: list[str] = []
        rounds, devices = (read_table(self.out / name) for name in ("rounds.csv", "devices.csv"))
        numbers = [int(row["round"]) for row in rounds]
        if numbers != [*range(1, len(numbers) + 1)]:
            wrong.append(f"a round is missing, or there twice: {numbers}")
        longest = longest_pause(self.rounds_at, self.began, self.began + self.seconds)
        print(f"{len(numbers)} rounds in {self.seconds / 60:.1f} minutes, the longest took {longest:.0f} s")
        print(", ".join(f"{what}: {times}" for what, times in sorted(self.events.items())) or "no events")
        failed = sum(row["status"] == "failed" for row in devices)
        print(f"{failed} of {len(devices)} device rounds were lost")
        if longest > stall:
            wrong.append(f"a round stalled: {longest:.0f} s")
        wrong += self._lost_parts(devices)
        half = self.samples[len(self.samples) // 2 :]
        part = max(1, len(half) // 5)
        for kind in sorted({kind for kinds in half for kind in kinds}):
            early, late = (
                [kinds[kind] for kinds in chosen if kind in kinds] for chosen in (half[:part], half[-part:])
            )
            if early and late:
                before, after = Use.most(early), Use.most(late)
                print(
                    f"{kind:20}{before.MB:7.0f} -> {after.MB:.0f} MB{before.files:7.0f} -> {after.files:.0f} "
                    f"files{before.shared:4.0f} -> {after.shared:.0f} shared"
                )
                wrong += [f"{kind}: {what} grow" for what in growing(before, after)]
        starts = 1 + self.events["kill SuperLink"] + self.events["kill ServerApp"]
        first, last = halves(self.left_behind)
        print(f"files in the temporary folder: {first} -> {last}")
        if last > _GROWTH * first:
            wrong.append("files in the temporary folder grow")
        state = sum(1 for path in (self.base / "state").rglob("*.npz"))
        print(f"files of personal parts: {state}, after {starts} starts of the run")
        runs = max(sum(1 for _ in node.iterdir()) for node in (self.base / "state").iterdir())
        if runs > _RUNS_KEPT:
            wrong.append(f"a node keeps parts of {runs} starts of the run; it needs {_RUNS_KEPT} at most")
        return wrong

    def _lost_parts(self, devices: Sequence[Mapping[str, str]]) -> list[str]:
        wrong = []
        log = (self.out / "run.log").read_text(errors="replace")
        wrong += [line for line in log.splitlines() if "starts afresh" in line or ".damaged" in line]
        for device in range(NODES):
            rows = [row for row in devices if row["device"] == str(device) and row["status"] == "ok"]
            held = [
                int(path.stem.rpartition("-")[2])
                for path in (self.base / "state").rglob(f"device-{device:06d}-round-*.npz")
            ]
            last = int(rows[-1]["round"]) if rows else 0
            if not rows or not held or max(held) < last:
                wrong.append(f"device {device}: round {last} is its last; its disk has its parts of {held}")
        return wrong


class _Over(Exception):
    """The time is up."""


def main() -> int:
    """Soak, and print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stall", type=float, default=300.0, help="longest time between two rounds, s")
    parser.add_argument("--keep", type=Path, help="folder that stays, to look into")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", stream=sys.stdout)
    reason = why_no_netem()
    print(f"links: {f'a proxy on loopback, as there is no netem here: {reason}' if reason else 'netem'}")
    with tempfile.TemporaryDirectory(prefix="soak-") as temporary:
        soak = Soak(options.keep or Path(temporary), 60.0 * options.minutes, options.seed, netem=not reason)
        try:
            soak.run()
        except RunFailedError as error:
            print(f"the run failed: {error}")
            return 1
        wrong = soak.report(options.stall)
    for what in wrong:
        print(f"WRONG: {what}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
