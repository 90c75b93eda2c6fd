"""What learns through the noise? Each part of over_the_air_adaptive alone, and its default.

    AIRFLOWER_DATA_ROOT=... python -m benchmarks.adaptive_table --rounds 60 --seeds 1 2 3

The setting of `benchmarks.over_the_air_table`: LeNet-5, non-i.i.d. MNIST, 100 users of which 10 send at once
to 8 antennas. ``models`` is scheme=over_the_air as in the paper, ``none`` the same with updates; every other
row is one of conf/adaptive, with the same channels, power and airtime. ``error_free`` is federated averaging
without noise, whose model is the last iterate. Prints, per row and signal-to-noise ratio, the accuracy (mean
of the last five evaluations) with its spread over the seeds, and the emulated time and the computing time of
a round.
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

VARIANTS = (
    *("models", "none", "averaging", "regularised", "error_feedback", "shrinkage", "choose_users"),
    *("equal_norms", "momentum", "local_work", "default", "error_free"),
)
LAST_EVALUATIONS = 5


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, run the jobs, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--snr-db", type=float, nargs="+", default=[-14.0])
    parser.add_argument("--partition", default="shards", choices=("shards", "iid"))
    parser.add_argument("--workers", type=int, default=usable_processors())
    parser.add_argument("overrides", nargs="*", help="further overrides, as on the airflower command line")
    options = parser.parse_args(arguments)
    print(f"{'variant':<16}{'SNR, dB':>9}{'accuracy':>18}{'round, ms':>11}{'compute, ms':>13}   per seed")
    for snr in options.snr_db:
        for variant in options.variants:
            print(_row(options, variant, snr), flush=True)


def _row(options: argparse.Namespace, variant: str, snr: float) -> str:
    """Return the row of a variant; a star marks a run that diverged and was stopped."""
    accuracies, each, rows = [], [], []
    for seed in options.seeds:
        diverged = ""
        with tempfile.TemporaryDirectory() as folder:
            try:
                run_job(_overrides(options, variant, snr, seed), Path(folder) / "run", options.workers)
            except (DivergedError, RunFailedError):
                diverged = "*"  # its last evaluations before that count
            rows = read_table(Path(folder) / "run" / "rounds.csv")
        evaluated = [100 * float(row["accuracy_mean"]) for row in rows if row["accuracy_mean"]]
        accuracies.append(statistics.mean(evaluated[-LAST_EVALUATIONS:]))
        each.append(f"{accuracies[-1]:.2f}{diverged}")
    spread = statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0
    latency, compute = (
        1e3 * statistics.mean(float(row[c]) for row in rows) for c in ("latency_s", "compute_s")
    )
    shown = "-" if variant == "error_free" else f"{snr:g}"
    accuracy = f"{statistics.mean(accuracies):>9.2f} +- {spread:4.2f} %"
    return f"{variant:<16}{shown:>9}{accuracy}{latency:>11.2f}{compute:>13.2f}   {'  '.join(each)}"


def _overrides(options: argparse.Namespace, variant: str, snr: float, seed: int) -> list[str]:
    ours = ("scheme=over_the_air_adaptive", f"adaptive={variant}", f"air.snr_db={snr}")
    return [
        *(("scheme=error_free",) if variant == "error_free" else ours),
        f"seed={seed}",
        f"rounds={options.rounds}",
        f"evaluate_every={max(options.rounds // 20, 1)}",
        f"partition={options.partition}",
        "partition.test_samples_per_device=50",
        *("dataset=mnist", "model=lenet5", "training=fedavg"),
        *("fleet.num_devices=100", "air.num_selected=10", "air.antennas=8"),
        *options.overrides,
    ]


if __name__ == "__main__":
    main()
