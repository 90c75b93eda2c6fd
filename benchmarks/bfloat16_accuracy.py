"""Does `training.precision=bfloat16` cost accuracy? Whole jobs in both precisions, the same seeds.

    AIRFLOWER_DATA_ROOT=... python -m benchmarks.bfloat16_accuracy --dataset mnist --rounds 20

On a processor without bfloat16 instructions the products are emulated: the same rounding, but slow.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

from benchmarks.jobs import run_job
from engines.processors import usable_processors

PRECISIONS = ("float32", "bfloat16")


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, run the jobs, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--dataset", default="mnist")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--workers", type=int, default=usable_processors())
    parser.add_argument("overrides", nargs="*", help="further overrides, as on the airflower command line")
    options = parser.parse_args(arguments)

    results: dict[str, list[float]] = {precision: [] for precision in PRECISIONS}
    # Without the patch a processor that is not faster with bfloat16 would compute in float32.
    with (
        tempfile.TemporaryDirectory() as scratch,
        patch("client_app.precision.multiplies_bfloat16", return_value=True),
    ):
        for seed in options.seeds:
            for precision, accuracies in results.items():
                overrides = [
                    f"dataset={options.dataset}",
                    f"seed={seed}",
                    f"rounds={options.rounds}",
                    f"evaluate_every={options.rounds}",
                    f"training.precision={precision}",
                    *options.overrides,
                ]
                summary = run_job(overrides, Path(scratch, f"{precision}-{seed}"), options.workers)
                accuracies.append(100 * summary["final_accuracy_mean"])

    seeds = ", ".join(map(str, options.seeds))
    print(f"{options.dataset}, {options.rounds} rounds, seeds {seeds}; accuracy in %")
    for precision, accuracies in results.items():
        single = "  ".join(f"{accuracy:.2f}" for accuracy in accuracies)
        print(f"{precision:<10}{statistics.mean(accuracies):8.2f} +- {_spread(accuracies):.2f}   ({single})")
    gaps = [half - full for full, half in zip(*results.values(), strict=True)]
    print(f"difference{statistics.mean(gaps):+8.2f} +- {_spread(gaps):.2f}")


def _spread(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


if __name__ == "__main__":
    main()
