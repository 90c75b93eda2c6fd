"""The mean of each weight without its largest and smallest values (Yin et al. 2018, arXiv 1803.01498)."""

from __future__ import annotations

import numpy as np

from strategies.aggregation import Masks, Shares, Weights, per_weight
from strategies.aggregation.ranks import ranked


@per_weight
def trimmed_mean(
    current: Weights, uploads: Weights, masks: Masks, weights: Shares, *, share: float = 0.2
) -> Weights:
    """Return the mean over a weight's keepers but for the `share` largest and the `share` smallest values.

    Of c keepers min(ceil(share c), floor((c - 1) / 2)) are left out at each end, so at least one is left.
    As long as no more of a weight's keepers are hostile, the mean lies between values of honest ones.

    Raises:
        ValueError: if `share` is not in [0, 0.5).
    """
    if not 0.0 <= share < 0.5:
        raise ValueError(f"share = {share}; it must be at least 0 and below 0.5")
    values, factors, keepers = ranked(uploads, masks, weights)
    # 0.1 * 30 is a little more than 3.
    cut = np.minimum(np.ceil(share * keepers - 1e-9), np.maximum(keepers - 1, 0) // 2)
    rank = np.arange(len(values))[:, None]
    factors = np.where((rank >= cut) & (rank < keepers - cut), factors, 0.0)
    total = (factors * values).sum(0)
    return np.where(keepers > 0, total / np.where(keepers > 0, factors.sum(0), 1.0), current).astype(
        np.float32
    )
