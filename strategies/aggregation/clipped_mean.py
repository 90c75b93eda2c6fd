"""The mean of updates that are clipped to the median of their norms (cf. Karimireddy et al., 2012.10333)."""

from __future__ import annotations

from statistics import median_low

import numpy as np

from strategies.aggregation import Masks, Shares, Weights, in_turn, streamed
from strategies.aggregation.masked_mean import AverageResult, MaskedAverage, Positions
from strategies.aggregation.store import Uploads


class ClippedMean:
    """Holds the uploads until the norms of all are known, then averages them one at a time.

    Args:
        current: the broadcast, float32 (N,).
        factor: times the median norm, the longest update that is taken as it is.
        over_all: the mean is over all devices instead of each weight's keepers.

    Raises:
        ValueError: if `factor` is not positive.
    """

    def __init__(self, current: Weights, *, factor: float = 1.0, over_all: bool = False) -> None:
        if not factor > 0.0:
            raise ValueError(f"factor = {factor}; it must be positive")
        self._over_all, self._silent = over_all, 0.0
        self._current, self._factor = current, factor
        self._uploads = Uploads(current.size)
        self._norms: list[float] = []

    def add(self, values: Weights, kept: Positions | None, weight: float = 1.0) -> None:
        """Take one device's upload."""
        self._uploads.add(values, None if kept is None else kept.mask, weight)
        update = values.astype(np.float64) - (self._current if kept is None else kept.take(self._current))
        self._norms.append(float(np.sqrt(np.einsum("i,i->", update, update))))

    def add_nothing(self, weight: float = 1.0) -> None:
        """Count a device without any update, where the mean is over all."""
        self._silent += weight

    def finish(self) -> AverageResult:
        """Clip and average."""
        average = MaskedAverage(self._current.size)
        # The lower of two medians: of two devices, or of two halves, the larger ones are the suspects.
        limit = self._factor * median_low(self._norms) if self._norms else 0.0
        if self._factor == np.inf:  # infinity times a median of 0
            limit = np.inf
        for (sent, mask, weight), norm in zip(self._uploads, self._norms, strict=True):
            kept = None if mask is None else Positions(mask)
            values = sent
            if norm > limit:
                base = self._current if kept is None else kept.take(self._current)
                values = base + np.float32(limit / norm) * (sent - base)
            if kept is None:
                average.add_dense(values, weight)
            else:
                average.add(values, kept, weight)
        self._uploads.close()
        return average.result(self._current, over_all=self._over_all, silent=self._silent)


@streamed(ClippedMean)
def clipped_mean(
    current: Weights, uploads: Weights, masks: Masks, weights: Shares, *, factor: float = 1.0
) -> Weights:
    """Return the mean over each weight's keepers, updates scaled to `factor` x their median norm at most.

    A hostile device so has the influence of an honest one, whatever it sends. Norms are Euclidean, over the
    weights that a device kept.

    Raises:
        ValueError: if `factor` is not positive.
    """
    return in_turn(ClippedMean, current, uploads, masks, weights, factor=factor)
