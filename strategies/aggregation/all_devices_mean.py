"""The mean of each weight's update over all devices, whether they kept it or not."""

from __future__ import annotations

from strategies.aggregation import Masks, Shares, Weights, in_turn, streamed
from strategies.aggregation.keepers_mean import KeepersMean
from strategies.aggregation.masked_mean import AverageResult


class AllDevicesMean(KeepersMean):
    """The mean, one upload at a time; a device that pruned a weight counts with the broadcast."""

    def __init__(self, current: Weights) -> None:
        super().__init__(current)
        self._silent = 0.0

    def add_nothing(self, weight: float = 1.0) -> None:
        """Count a device without any update."""
        self._silent += weight

    def finish(self) -> AverageResult:
        """Return the means."""
        return self._average.result(self._current, silent=self._silent, over_all=True)


@streamed(AllDevicesMean)
def all_devices_mean(current: Weights, uploads: Weights, masks: Masks, weights: Shares) -> Weights:
    """Return u_j + sum_k m_kj w_k (u_kj - u_j) / sum_k w_k: each update divided by all K devices.

    A weight that few kept moves little: biased towards the broadcast, but of smaller variance than
    `keepers_mean`. It is what over-the-air computation does without counting (``air.count_mode=count_free``).
    """
    return in_turn(AllDevicesMean, current, uploads, masks, weights)
