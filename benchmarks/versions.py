"""Rounds of two versions of the project in turn: the job of `engines`, 200 devices trained 50 at once.

    python -m benchmarks.versions FOLDER [--module experiments.cli] [--repeats 10] [--rounds 8]

FOLDER is a checkout of the other version, `--module` its command (that of d31b5a5 is `server_app.cli`). On a
machine whose neighbours come and go, two runs of the same job a minute apart may differ by a third: only what
ran in turn can be compared.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.engines import JOB, round_seconds

HERE = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.versions", description=__doc__)
    parser.add_argument("other", type=Path)
    parser.add_argument("--module", default="experiments.cli", help="of the other version's command")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=8)
    arguments = parser.parse_args()
    sides = {"other": (arguments.other.resolve(), arguments.module), "this": (HERE, "experiments.cli")}
    times: dict[str, list[float]] = {name: [] for name in sides}
    with tempfile.TemporaryDirectory() as scratch:
        for repeat in range(arguments.repeats):
            for name, (checkout, module) in sides.items():
                folder = Path(scratch, f"{name}{repeat}")
                size = "fleet.num_devices=200", "engine.batch_devices=50", f"rounds={arguments.rounds}"
                subprocess.run(
                    [sys.executable, "-m", module, *JOB, *size, f"hydra.run.dir={folder}"],
                    cwd=checkout,
                    env={**os.environ, "PYTHONPATH": str(checkout)},
                    stdout=subprocess.DEVNULL,
                    check=True,
                )
                times[name].append(statistics.median(round_seconds(folder)))
    for name, seconds in times.items():
        low, middle, high = (1e3 * x for x in statistics.quantiles(seconds, n=4))
        print(
            f"{name}: {middle:.1f} ms per round in the median of {len(seconds)} runs ({low:.1f} - {high:.1f})"
        )


if __name__ == "__main__":
    main()
