"""The `airflower-reproduce` command: all experiments of ``conf/experiment``, or some, and their report.

Each experiment is the sweep that ``airflower --multirun experiment=NAME size=SIZE`` runs, in the same folder,
so that what was finished before is skipped. Several sweeps run at once, one core each: within one sweep, the
server's part of a round and most studies would leave all cores but one idle.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from omegaconf import OmegaConf

from engines.processors import usable_processors
from experiments.sweep import sweep_name
from protocol.guard import Guard
from protocol.interrupts import interruptible

MULTIRUN = Path("multirun")
_STOP_SECONDS = 60.0  # sweeps that are told to stop have so long to store the round that they are at


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; exits with 1 if an experiment failed, with 2 if there is none of that name."""
    found = experiments()
    parser = argparse.ArgumentParser(
        prog="airflower-reproduce",
        description="Run experiments (default: all), several at once, and draw their report.",
    )
    known = ", ".join(found)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{known}; or KEY=VALUE, for all of them")
    cores = usable_processors()
    parser.add_argument("--jobs", type=int, default=cores, help="sweeps at once (default: one per core)")
    parser.add_argument("--out", type=Path, default=Path("report"), help="folder of the report")
    options = parser.parse_intermixed_args(arguments)
    overrides = [name for name in options.names if "=" in name]
    if not any(override.startswith("size=") for override in overrides):
        overrides.append("size=quick")
    names = [name for name in options.names if "=" not in name] or list(found)
    if unknown := [name for name in names if name not in found]:
        parser.error(f"no experiment {unknown[0]}; there are: {known}")
    commands = {name: [f"experiment={name}", *overrides] for name in names}
    together = [name for name in names if not _measures_time(found[name])]
    # Studies train nothing and take least: last, so that no core waits for a long sweep at the end.
    together.sort(key=lambda name: "study" in found[name])
    MULTIRUN.mkdir(exist_ok=True)
    try:
        with interruptible(), Sweeps() as sweeps:
            with ThreadPoolExecutor(max(1, options.jobs)) as pool, sweeps.stopped_first():
                failed = [name for name in pool.map(lambda n: sweeps.run(n, commands[n]), together) if name]
            alone = [name for name in names if name not in together]
            failed += [name for name in (sweeps.run(name, commands[name]) for name in alone) if name]
    except KeyboardInterrupt as signal:
        print("airflower-reproduce: interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(getattr(signal, "exit_status", 130))

    from experiments.report.cli import main as report

    folders = [MULTIRUN / sweep_name(commands[name]) for name in names]
    report([*(str(folder) for folder in folders if folder.is_dir()), "--out", str(options.out)])
    if failed:
        print(f"airflower-reproduce: not completed: {', '.join(failed)}", file=sys.stderr)
        sys.exit(1)


def experiments() -> dict[str, Any]:
    """Return the yaml of every experiment, by name."""
    import conf

    folder = Path(next(iter(conf.__path__))) / "experiment"
    return {path.stem: OmegaConf.load(path) for path in sorted(folder.glob("*.yaml"))}


def _measures_time(experiment: Any) -> bool:
    """Return whether its figure shows seconds of this machine, which nothing else should then disturb."""
    return any(str(panel.get("y")).startswith("measured_") for panel in experiment.report.panels)


class Sweeps:
    """The sweeps that are going on; all stop when this process does, however it ends."""

    def __init__(self) -> None:
        self._going_on: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._stopping = False

    def __enter__(self) -> Self:
        self._guard = Guard(grace_s=_STOP_SECONDS)
        return self

    def __exit__(self, *exc: object) -> None:
        self._guard.close()

    @contextmanager
    def stopped_first(self) -> Iterator[None]:
        """Stop the sweeps when the block is left by an exception, rather than wait for them."""
        try:
            yield
        except BaseException:
            with self._lock:
                self._stopping = True
                for process in self._going_on:
                    process.terminate()
            raise

    def run(self, name: str, overrides: Sequence[str]) -> str | None:
        """Run one sweep with its output in a log file; return its name if it failed."""
        log = MULTIRUN / f"{sweep_name(overrides)}.log"
        started = time.monotonic()
        with log.open("a") as file:  # another process may be at the same sweep
            with self._lock:
                if self._stopping:
                    return name
                process = subprocess.Popen(
                    [
                        sys.executable,
                        "-P",
                        "-m",
                        "experiments.cli",
                        "--multirun",
                        *overrides,
                        "engine.workers=1",
                    ],
                    env={**os.environ, **self._guard.variables},
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                )
                self._going_on.add(process)
            with self.stopped_first():
                code = process.wait()
            self._going_on.discard(process)
        seconds = time.monotonic() - started
        verdict = (
            f"{seconds:.0f} s" if code == 0 else f"FAILED after {seconds:.0f} s (exit status {code}): {log}"
        )
        print(f"{name}: {verdict}", flush=True)
        return name if code else None


if __name__ == "__main__":
    main()
