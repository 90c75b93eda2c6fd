"""The mean of each weight over the devices that kept it (Liu et al. 2024, eq. (26))."""

from __future__ import annotations

from strategies.aggregation import Masks, Shares, Weights, in_turn, streamed
from strategies.aggregation.masked_mean import AverageResult, MaskedAverage, Positions


class KeepersMean:
    """The mean, one upload at a time: memory O(N), whatever the number of devices."""

    def __init__(self, current: Weights) -> None:
        self._current, self._average = current, MaskedAverage(current.size)

    def add(self, values: Weights, kept: Positions | None, weight: float = 1.0) -> None:
        """Take one device's upload."""
        if kept is None:
            self._average.add_dense(values, weight)
        else:
            self._average.add(values, kept, weight)

    def add_nothing(self, weight: float = 1.0) -> None:
        """Do nothing: who keeps nothing is in no mean."""

    def finish(self) -> AverageResult:
        """Return the means."""
        return self._average.result(self._current)


@streamed(KeepersMean)
def keepers_mean(current: Weights, uploads: Weights, masks: Masks, weights: Shares) -> Weights:
    """Return sum_k m_kj w_k u_kj / sum_k m_kj w_k for each weight j; see `strategies.aggregation`."""
    return in_turn(KeepersMean, current, uploads, masks, weights)
