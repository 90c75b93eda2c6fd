"""Does a better beam give a better model? LeNet-5 over the air under several schedulers, same seeds.

    AIRFLOWER_DATA_ROOT=... python -m benchmarks.over_the_air_table --rounds 60 --seeds 1 2 3

Non-i.i.d. MNIST (two label shards per user), 100 users of which 10 send at once to 8 antennas. Models are
sent, as in the paper, at an SNR at which the noise is felt but does not end training. Every
scheduler sees the same channels, and accuracy is the mean over the last evaluations, because single rounds
swing. Prints mean normalised MSE and accuracy with its spread over the seeds; a star marks a run that
diverged and was stopped.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.jobs import run_job
from engines.processors import usable_processors
from records.recorder import read_table
from server_app.run import RunFailedError
from strategies.base import DivergedError

METHODS = ("random_beamforming", "policy", "policy_greedy", "multistart", "error_free")
LAST_EVALUATIONS = 5


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, run the jobs, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--partition", default="shards", choices=("shards", "iid"))
    parser.add_argument("--workers", type=int, default=usable_processors())
    parser.add_argument("--out", type=Path, help="keep the run folders here")
    parser.add_argument("overrides", nargs="*", help="further overrides, as on the airflower command line")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.out or Path(scratch)
        print(f"{'scheduler':<20}{'normalised MSE':>16}{'accuracy':>18}   per seed", flush=True)
        for method in options.methods:
            errors, accuracies, each = [], [], []
            for seed in options.seeds:
                run_folder = folder / f"{method}-{seed}"
                diverged = ""
                try:
                    run_job(_overrides(options, method, seed), run_folder, options.workers)
                except (DivergedError, RunFailedError):
                    diverged = "*"  # its last evaluations before that count
                rows = read_table(run_folder / "rounds.csv")
                errors.append(statistics.mean(float(row["normalised_mse"]) for row in rows))
                evaluated = [100 * float(row["accuracy_mean"]) for row in rows if row["accuracy_mean"]]
                accuracies.append(statistics.mean(evaluated[-LAST_EVALUATIONS:]))
                each.append(f"{accuracies[-1]:.2f}{diverged}")
            spread = statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0
            runs = "  ".join(each)
            error = "-" if method == "error_free" else f"{statistics.mean(errors):.3f}"
            print(
                f"{method:<20}{error:>16}{statistics.mean(accuracies):>9.2f} +- {spread:4.2f} %   {runs}",
                flush=True,
            )


def _overrides(options: argparse.Namespace, method: str, seed: int) -> list[str]:
    scheme = "error_free" if method == "error_free" else "over_the_air"
    scheduler = "multistart" if method == "error_free" else method
    every = max(options.rounds // 20, 1)
    return [
        f"scheme={scheme}",
        f"scheduler={scheduler}",
        f"seed={seed}",
        f"rounds={options.rounds}",
        f"evaluate_every={every}",
        f"partition={options.partition}",
        "partition.test_samples_per_device=50",
        *("dataset=mnist", "model=lenet5", "training=fedavg"),
        *("fleet.num_devices=100", "air.num_selected=10", "air.antennas=8"),
        *(() if method == "error_free" else ("air.payload=model", "air.snr_db=-14")),
        *options.overrides,
    ]


if __name__ == "__main__":
    main()
