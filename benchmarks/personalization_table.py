"""Does pruning cost accuracy? `proposed` against `personalization_only`, the same rounds and seeds.

    AIRFLOWER_DATA_ROOT=... python -m benchmarks.personalization_table --dataset mnist --rounds 200

Runs whole jobs on the in-process engine and prints, per scheme, the final personalised test accuracy (mean
and spread over the seeds), the bits uploaded, and the emulated round latencies.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.jobs import run_job
from engines.processors import usable_processors

BASELINE = "personalization_only"


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, run the jobs, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--dataset", default="mnist")
    parser.add_argument("--schemes", nargs="+", default=["proposed", BASELINE])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--workers", type=int, default=usable_processors())
    parser.add_argument("--out", type=Path, help="keep the run folders here")
    parser.add_argument("overrides", nargs="*", help="further overrides, as on the airflower command line")
    options = parser.parse_args(arguments)

    with tempfile.TemporaryDirectory() as scratch:
        folder = options.out or Path(scratch)
        results = {
            scheme: [_summary(options, scheme, seed, folder) for seed in options.seeds]
            for scheme in options.schemes
        }
    print(
        f"{options.dataset}, {options.rounds} rounds, seeds {', '.join(map(str, options.seeds))}"
        + "".join(f", {override}" for override in options.overrides)
    )
    print(f"{'scheme':<26}{'accuracy':>18}{'worst device':>14}{'Mbit/round':>12}{'latency ms (max)':>18}")
    for scheme, runs in results.items():
        accuracy = [100 * summary["final_accuracy_mean"] for summary in runs]
        spread = statistics.stdev(accuracy) if len(accuracy) > 1 else 0.0
        worst = statistics.mean(100 * summary["final_accuracy_worst"] for summary in runs)
        bits = _bits(runs) / options.rounds / 1e6
        latency = 1e3 * statistics.mean(summary["total_latency_s"] for summary in runs) / options.rounds
        longest = 1e3 * max(summary["max_latency_s"] for summary in runs)
        print(
            f"{scheme:<26}{statistics.mean(accuracy):>9.2f} +- {spread:4.2f} %{worst:>12.2f} %{bits:>12.2f}"
            f"{latency:>9.2f} ({longest:5.2f})"
        )
    if BASELINE in results:
        for scheme in (scheme for scheme in results if scheme != BASELINE):
            difference = statistics.mean(
                100 * (mine["final_accuracy_mean"] - theirs["final_accuracy_mean"])
                for mine, theirs in zip(results[scheme], results[BASELINE], strict=True)
            )
            saved = 1 - _bits(results[scheme]) / _bits(results[BASELINE])
            print(f"{scheme}: {difference:+.2f} points, {100 * saved:.1f} % fewer bits than {BASELINE}")


def _summary(options: argparse.Namespace, scheme: str, seed: int, folder: Path) -> dict[str, Any]:
    overrides = [
        f"dataset={options.dataset}",
        f"scheme={scheme}",
        f"seed={seed}",
        f"rounds={options.rounds}",
        f"evaluate_every={options.rounds}",
        *options.overrides,
    ]
    return run_job(overrides, folder / f"{scheme}-{seed}", options.workers)


def _bits(runs: Sequence[dict[str, Any]]) -> float:
    return float(statistics.mean(summary["total_uplink_bits"] for summary in runs))


if __name__ == "__main__":
    main()
