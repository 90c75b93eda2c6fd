"""Choose which weights of the shared part a device prunes: exactly so many, the least important first.

A full sort by (importance, magnitude, index) gives the answer but takes 50-100 ms for 402 826 weights, this
3-12 ms. Only the threshold is needed: it is found by counting the bit patterns of the (non-negative)
importances, which order like the numbers, in two passes of 16 bits. That is linear in the number of weights
also where most of them are exactly zero (units that never fire), the case in which quickselect is slow.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


def select_mask(
    importance: Floats, weights: Floats, num_pruned: int, *, protected: Mask | None = None
) -> Mask:
    """Keep all but the `num_pruned` least important weights.

    The order of pruning: smaller importance; at equal importance smaller |weight|; then higher index
    (a total order, so that the number is exact: the latency of the round is planned with it).

    Args:
        importance: float32 (N,), >= 0.
        weights: float32 (N,), the broadcast weights.
        num_pruned: how many to prune, 0..N.
        protected: bool (N,), weights to prune only when no others are left (biases); None for no weight.

    Returns:
        bool (N,), True where the weight is kept; exactly `num_pruned` entries are False.

    Raises:
        ValueError: if shapes differ, a number is NaN or an importance negative, or `num_pruned` is out of
            range.
    """
    importance = np.asarray(importance, dtype=np.float32)
    weights = np.asarray(weights, dtype=np.float32)
    size = importance.size
    if importance.shape != (size,) or weights.shape != (size,):
        raise ValueError(f"importance {importance.shape} and weights {weights.shape} must be (N,) both")
    if not 0 <= num_pruned <= size:
        raise ValueError(f"num_pruned = {num_pruned}; it must be in 0..{size}")
    if size and not importance.min() >= 0:  # false for NaN, too
        raise ValueError("importance has negative or NaN entries")
    if protected is None:
        return _prune(importance, weights, num_pruned)
    free = np.flatnonzero(~protected)
    rest = np.flatnonzero(protected)
    keep = np.empty(size, dtype=np.bool_)
    from_free = min(num_pruned, free.size)
    keep[free] = _prune(importance[free], weights[free], from_free)
    keep[rest] = _prune(importance[rest], weights[rest], num_pruned - from_free)
    return keep


def _prune(importance: Floats, weights: Floats, num_pruned: int) -> Mask:
    if num_pruned == 0:
        return np.ones(importance.size, dtype=np.bool_)
    if num_pruned == importance.size:
        return np.zeros(importance.size, dtype=np.bool_)
    order = _order_bits(importance)
    threshold = _kth_smallest(order, num_pruned)
    keep = order > threshold
    excess = num_pruned - int(np.count_nonzero(order < threshold))
    tied = np.flatnonzero(order == threshold)
    if excess < tied.size:
        magnitude = _order_bits(weights[tied])
        threshold = _kth_smallest(magnitude, excess)
        keep[tied[magnitude > threshold]] = True
        excess -= int(np.count_nonzero(magnitude < threshold))
        twins = tied[magnitude == threshold]
        keep[twins[: twins.size - excess]] = True
    return keep


def _order_bits(values: Floats) -> npt.NDArray[np.int32]:
    """Return integers that order like |values|."""
    return np.abs(values).view(np.int32)


def _kth_smallest(order: npt.NDArray[np.int32], k: int) -> int:
    """Return the k-th smallest (k = 1, 2, ...) of non-negative 32-bit integers."""
    if order.size < 4096:
        return int(np.partition(order, k - 1)[k - 1])
    high = order >> 16
    counts = np.cumsum(np.bincount(high, minlength=1 << 15))
    bucket = int(np.searchsorted(counts, k))
    k -= int(counts[bucket - 1]) if bucket else 0
    low = order[high == bucket] & 0xFFFF
    return (bucket << 16) | int(np.searchsorted(np.cumsum(np.bincount(low)), k))
