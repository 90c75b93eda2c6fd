"""Aggregations under attack: ``python -m benchmarks.robustness`` prints a table of test accuracies.

Ten devices learn softmax regression on scikit-learn's digits, i.i.d.; two of them send the mean of the honest
updates with its sign flipped, as long as ``fleet.upload_norm_limit=auto`` lets through (six median norms).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from strategies.aggregation import AGGREGATIONS, choose
from strategies.limits import FACTOR

DEVICES, HOSTILE, ROUNDS, STEPS, RATE = 10, 2, 60, 5, 0.5
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


if __name__ == "__main__":
    print(f"{'aggregation':18} {'honest':>8} {'attacked':>9}")
    for one in AGGREGATIONS:
        print(f"{one:18} {accuracy(one, attacked=False):8.1%} {accuracy(one, attacked=True):9.1%}")
