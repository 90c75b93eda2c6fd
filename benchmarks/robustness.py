"""Aggregations under attack: ``python -m benchmarks.robustness`` prints a table of test accuracies.

With ``--runs`` whole runs of `JOB`: ten devices, of which two send their own update turned round and `LET_IN`
times as long, just below what ``fleet.upload_norm_limit=auto`` rejects. Without:

Ten devices learn softmax regression on scikit-learn's digits, i.i.d.; two of them send the mean of the honest
updates with its sign flipped, as long as ``fleet.upload_norm_limit=auto`` lets through (six median norms).
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import numpy.typing as npt

from benchmarks import hostile
from engines.inprocess import open_grid
from records.recorder import read_table
from server_app.run import run
from server_app.settings import compose_settings
from strategies.aggregation import AGGREGATIONS, choose
from strategies.limits import FACTOR

DEVICES, HOSTILE, ROUNDS, STEPS, RATE = 10, 2, 60, 5, 0.5
LET_IN = 0.9 * FACTOR  # norms of honest updates differ; a longer one would now and then be rejected
JOB = ("scheme=fedavg", "model=mlp", "partition=iid", "partition.samples_per_device=null", "rounds=120")
Floats = npt.NDArray[np.float64]


def accuracy(name: str, *, attacked: bool) -> float:
    """Return the test accuracy after `ROUNDS` rounds with the aggregation called `name`."""
    x, y, x_test, y_test = _digits()
    order = np.random.default_rng(1).permutation(len(x))
    parts = np.array_split(order, DEVICES)
    chosen, weights = choose(name, {}), np.zeros(x.shape[1] * 10, np.float32)
    masks = np.ones((DEVICES, weights.size), np.bool_)
    for _ in range(ROUNDS):
        updates = np.stack([_local(weights, x[part], y[part]) for part in parts])
        if attacked:
            honest = updates[HOSTILE:]
            mean, norm = honest.mean(0), np.median(np.linalg.norm(honest, axis=1))
            updates[:HOSTILE] = -FACTOR * norm * mean / np.linalg.norm(mean)
        weights = chosen(weights, (weights + updates).astype(np.float32), masks, np.ones(DEVICES))
    found = (x_test @ weights.reshape(-1, 10)).argmax(1)
    return float((found == y_test).mean())


def _digits() -> tuple[Floats, npt.NDArray[np.int64], Floats, npt.NDArray[np.int64]]:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x = np.hstack([x / 16.0, np.ones((len(x), 1))])
    order = np.random.default_rng(0).permutation(len(x))
    train, test = order[400:], order[:400]
    return x[train], y[train], x[test], y[test]


def _local(weights: npt.NDArray[np.float32], x: Floats, y: npt.NDArray[np.int64]) -> Floats:
    """Return the update of a device: full-batch gradient steps of the cross-entropy."""
    now = weights.astype(np.float64).reshape(-1, 10)
    for _ in range(STEPS):
        scores = x @ now
        chances = np.exp(scores - scores.max(1, keepdims=True))
        chances /= chances.sum(1, keepdims=True)
        chances[np.arange(len(y)), y] -= 1.0
        now = now - RATE * x.T @ chances / len(y)
    return now.ravel() - weights


@dataclass(frozen=True)
class Attacked:
    """How a whole run ended.

    Attributes:
        accuracy: of its last round, the mean over the honest devices.
        accepted: share of the hostile uploads that the norm limit let in; NaN without any.
    """

    accuracy: float
    accepted: float


def whole_run(overrides: Sequence[str], folder: Path, *, factor: float = 0.0) -> Attacked:
    """Run a job on the in-process engine, with `HOSTILE` hostile devices if `factor` is positive.

    Args:
        overrides: of the job.
        folder: of its records.
        factor: times its honest update, turned round, is what a hostile device sends.
    """
    settings = compose_settings([f"fleet.num_devices={DEVICES}", *overrides])
    with (
        mock.patch.dict(os.environ, {hostile.VARIABLE: f"{HOSTILE if factor else 0},{factor}"}),
        open_grid(settings, "benchmarks.hostile:app", 1) as grid,
    ):
        run(settings, grid, folder)
    rows = read_table(folder / "devices.csv")
    last = str(max(int(row["round"]) for row in rows))
    honest = [row for row in rows if int(row["device"]) >= HOSTILE or not factor]
    sent = [row["status"] == "ok" for row in rows if int(row["device"]) < HOSTILE]
    return Attacked(
        float(np.mean([float(row["test_accuracy"]) for row in honest if row["round"] == last])),
        float(np.mean(sent)) if factor else float("nan"),
    )


def whole_runs(seeds: Sequence[int], names: Sequence[str]) -> None:
    """Print the accuracies of whole runs, attack-free and attacked, with the aggregations of these names."""
    print(
        f"{'aggregation':18}{'attack-free':>12}{'attacked':>10}{'let in':>8}   (mean of {len(seeds)} seeds)"
    )
    for name in names:
        free, attacked, let_in = [], [], []
        for seed in seeds:
            job = [*JOB, f"scheme.aggregation={name}", f"seed={seed}"]
            with tempfile.TemporaryDirectory() as folder:
                free.append(whole_run(job, Path(folder, "free")).accuracy)
                found = whole_run(job, Path(folder, "attacked"), factor=LET_IN)
            attacked.append(found.accuracy)
            let_in.append(found.accepted)
        print(f"{name:18}{np.mean(free):12.1%}{np.mean(attacked):10.1%}{np.mean(let_in):8.0%}", flush=True)


def main() -> None:
    """Print one of the two tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", action="store_true", help="whole runs instead of the aggregations alone")
    parser.add_argument("--seeds", type=int, default=3, help="of the whole runs")
    parser.add_argument("--only", nargs="+", choices=list(AGGREGATIONS), default=list(AGGREGATIONS))
    options = parser.parse_args()
    if options.runs:
        logging.disable(logging.CRITICAL)
        whole_runs(range(1, options.seeds + 1), options.only)
        return
    print(f"{'aggregation':18} {'honest':>8} {'attacked':>9}")
    for one in options.only:
        print(f"{one:18} {accuracy(one, attacked=False):8.1%} {accuracy(one, attacked=True):9.1%}")


if __name__ == "__main__":
    main()
