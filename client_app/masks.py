"""Choose which weights of the global part a device prunes: exactly so many, the least important first.

A full sort by (importance, magnitude, index) gives the answer but takes 50-100 ms for 402 826 weights, this
1-2 ms. Only the threshold is needed: a partial sort finds it among the bit patterns of the (non-negative)
importances, which order like the numbers and for which NumPy has vector instructions. Zeros (units that never
fire) are counted first: a partial sort is slow where the threshold lies in a large tie.

`select_masks` does the same for many devices as tensors, without leaving the device that they are on.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
_LARGEST = np.iinfo(np.int32).max


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
    if int(np.count_nonzero(keep)) == importance.size - num_pruned:
        return keep  # no tie across the threshold, the usual case
    tied = np.flatnonzero(order == threshold)
    excess = num_pruned - int(np.count_nonzero(order < threshold))
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
    if k <= order.size - int(np.count_nonzero(order)):
        return 0
    return int(np.partition(order, k - 1)[k - 1])


def select_masks(
    importance: torch.Tensor,
    weights: torch.Tensor,
    num_pruned: torch.Tensor,
    *,
    protected: torch.Tensor | None = None,
) -> torch.Tensor:
    """Choose the masks of D devices as `select_mask` does, without waiting for the device they are on.

    The thresholds are found bit by bit, 31 passes each for importance and magnitude: on a GPU that is faster
    than a sort, and independent of ties.

    Args:
        importance: float32 (D, N), >= 0. A row with NaN gives a meaningless row; the others are right.
        weights: float32 (N,), the broadcast weights.
        num_pruned: int64 (D,), each in 0..N.
        protected: bool (N,), weights to prune only when no others are left; None for no weight.

    Returns:
        bool (D, N), True where the weight is kept; exactly `num_pruned` entries of each row are False.
    """
    if protected is None:
        return _prune_rows(importance, weights, num_pruned)
    keep = torch.empty(importance.shape, dtype=torch.bool, device=importance.device)
    free, rest = torch.nonzero(~protected)[:, 0], torch.nonzero(protected)[:, 0]
    from_free = num_pruned.clamp(max=free.numel())
    keep[:, free] = _prune_rows(importance[:, free], weights[free], from_free)
    keep[:, rest] = _prune_rows(importance[:, rest], weights[rest], num_pruned - from_free)
    return keep


def _prune_rows(importance: torch.Tensor, weights: torch.Tensor, num_pruned: torch.Tensor) -> torch.Tensor:
    number = num_pruned[:, None]
    order = importance.abs().view(torch.int32)
    threshold = _kth_smallest_rows(order, number)
    less, tied = order < threshold, order == threshold
    number = number - less.sum(1, keepdim=True)
    # Among the tied by magnitude; the others have the largest one, infinity's (and are not tied).
    magnitude = torch.where(tied, weights.abs().view(torch.int32), _LARGEST)
    threshold = _kth_smallest_rows(magnitude, number)
    less |= magnitude < threshold
    tied &= magnitude == threshold
    number = num_pruned[:, None] - less.sum(1, keepdim=True)
    # Among the twins those with the highest indices: a twin is pruned if there are few enough up to it.
    before = tied.cumsum(1)
    return ~(less | (tied & (before > before[:, -1:] - number)))


def _kth_smallest_rows(order: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """Return the k-th smallest of each row of non-negative int32, (D, 1); 0 where k = 0."""
    found = torch.zeros_like(k, dtype=torch.int32)
    for bit in range(30, -1, -1):
        trial = found + (1 << bit)
        # The k-th smallest is at least `trial` if fewer than k are less than it.
        found = torch.where((order < trial).sum(1, keepdim=True) < k, trial, found)
    return found
