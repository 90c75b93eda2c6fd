"""The `airflower-reproduce` command: all experiments of ``conf/experiment``, or some, and their report.

Each experiment is the sweep that ``airflower --multirun experiment=NAME size=SIZE`` runs, in the same folder,
so that what was finished before is skipped. Several sweeps run at once, one core each: within one sweep, the
server's part of a round and most studies would leave all cores but one idle.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from engines.processors import usable_processors
from experiments.sweep import sweep_name

MULTIRUN = Path("multirun")


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
    options = parser.parse_args(arguments)
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
    with ThreadPoolExecutor(max(1, options.jobs)) as pool:
        failed = [name for name in pool.map(lambda name: _sweep(name, commands[name]), together) if name]
    alone = [name for name in names if name not in together]
    failed += [name for name in (_sweep(name, commands[name]) for name in alone) if name]

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


def _sweep(name: str, overrides: Sequence[str]) -> str | None:
    """Run one sweep with its output in a log file; return its name if it failed."""
    log = MULTIRUN / f"{sweep_name(overrides)}.log"
    started = time.monotonic()
    with log.open("w") as file:
        code = subprocess.run(
            [sys.executable, "-P", "-m", "experiments.cli", "--multirun", *overrides, "engine.workers=1"],
            stdout=file,
            stderr=subprocess.STDOUT,
            check=False,
        ).returncode
    seconds = time.monotonic() - started
    verdict = f"{seconds:.0f} s" if code == 0 else f"FAILED after {seconds:.0f} s (exit status {code}): {log}"
    print(f"{name}: {verdict}", flush=True)
    return name if code else None


if __name__ == "__main__":
    main()
