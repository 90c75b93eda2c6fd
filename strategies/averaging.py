"""Per-weight averaging over the devices that kept the weight (Liu et al. 2024, eq. (26))."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class AverageResult:
    """The next global part and how well it was covered.

    Attributes:
        weights: float32, shape (N,); a weight that nobody kept has its previous value, bit for bit.
        counts: number of devices that kept each weight, int32, shape (N,).
    """

    weights: npt.NDArray[np.float32]
    counts: npt.NDArray[np.int32]

    @property
    def uncovered_share(self) -> float:
        """Share of weights that no device kept."""
        return float(np.count_nonzero(self.counts == 0) / self.counts.size)


class MaskedAverage:
    """Streaming masked mean: memory O(weights), whatever the number of devices.

    The sum runs in float64, so that the order of the devices does not show in float32.
    """

    def __init__(self, num_weights: int) -> None:
        self._sum = np.zeros(num_weights, np.float64)
        self._share = np.zeros(num_weights, np.float64)
        self._counts = np.zeros(num_weights, np.int32)

    def add(
        self, values: npt.NDArray[np.float32], mask: npt.NDArray[np.bool_], device_weight: float = 1.0
    ) -> None:
        """Add one device's retained weights.

        Args:
            values: retained weights in ascending position, shape (count_nonzero(mask),).
            mask: True where the device kept the weight, shape (N,).
            device_weight: weight of the device in the mean, positive.

        Raises:
            ValueError: if shapes do not match or `device_weight` is not positive.
        """
        if mask.shape != self._sum.shape or values.shape != (np.count_nonzero(mask),):
            raise ValueError(
                f"values of shape {values.shape} and a mask of shape {mask.shape} with "
                f"{np.count_nonzero(mask)} kept do not fit {self._sum.size} weights"
            )
        if not device_weight > 0:
            raise ValueError(f"device_weight = {device_weight!r}; it must be positive")
        self._sum[mask] += device_weight * values.astype(np.float64)
        self._share += device_weight * mask
        self._counts += mask

    def result(self, previous: npt.NDArray[np.float32]) -> AverageResult:
        """Return the mean over the keepers; weights without a keeper keep their `previous` value."""
        weights = previous.astype(np.float32, copy=True)
        kept = self._counts > 0
        weights[kept] = self._sum[kept] / self._share[kept]
        return AverageResult(weights, self._counts)
