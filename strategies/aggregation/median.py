"""The median of each weight over its keepers (Yin et al. 2018, arXiv 1803.01498)."""

from __future__ import annotations

import numpy as np

from strategies.aggregation import Masks, Shares, Weights, per_weight
from strategies.aggregation.ranks import ranked


@per_weight
def median(current: Weights, uploads: Weights, masks: Masks, weights: Shares) -> Weights:
    """Return the weighted median of each weight, halfway between two values where both are one.

    As long as fewer than half of a weight's keepers (by weight) are hostile, it lies between values of honest
    ones.
    """
    values, factors, keepers = ranked(uploads, masks, weights)
    below = np.cumsum(factors, axis=0)
    half = below[-1:] / 2
    lower = (below < half).sum(0)  # the first rank up to which half of the weight lies
    upper = np.minimum((below <= half).sum(0), np.maximum(keepers - 1, 0))
    columns = np.arange(values.shape[1])
    lower = np.minimum(lower, upper)
    middle = 0.5 * (values[lower, columns] + values[upper, columns])
    return np.where(keepers > 0, middle, current).astype(np.float32)
