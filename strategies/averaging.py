"""Per-weight averaging over the devices that kept the weight (Liu et al. 2024, eq. (26))."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_BLOCK = 1 << 15  # weights at once: their sums, and the positions and values of one device, fit the cache
_FLUSH = 255  # uploads that a byte can count


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
        self._counts = np.zeros(num_weights, np.int32)
        self._recent = np.zeros(num_weights, np.uint8)  # counts since the last flush: a quarter of the bytes
        self._recent_uploads = 0
        self._addend = np.empty(_BLOCK, np.float64)  # for the values of one block; new memory costs a sixth
        self._device_weight: float | None = None
        self._share: npt.NDArray[np.float64] | None = None  # only where the devices' weights differ

    def add(
        self,
        values: npt.NDArray[np.float32],
        mask: npt.NDArray[np.bool_],
        device_weight: float = 1.0,
        *,
        index: npt.NDArray[np.intp] | None = None,
    ) -> None:
        """Add one device's retained weights.

        Args:
            values: retained weights in ascending position, shape (count_nonzero(mask),).
            mask: True where the device kept the weight, shape (N,).
            device_weight: weight of the device in the mean, positive.
            index: ``np.flatnonzero(mask)`` where the caller has it already, so that it is not found again.

        Raises:
            ValueError: if shapes do not match or `device_weight` is not positive.
        """
        if mask.shape != self._sum.shape or values.shape != (np.count_nonzero(mask),):
            raise ValueError(
                f"values of shape {values.shape} and a mask of shape {mask.shape} with "
                f"{np.count_nonzero(mask)} kept do not fit {self._sum.size} weights"
            )
        self._weigh(device_weight)
        for block, positions, kept in _blocks(mask, values) if index is None else _slices(index, values):
            addend = self._addend[: kept.size]
            addend[...] = kept
            if device_weight != 1.0:
                addend *= device_weight
            # Positions are unique; add.at just reads and writes less than sum[positions] += addend.
            np.add.at(self._sum[block], positions, addend)
            if self._share is not None:
                np.add.at(self._share[block], positions, device_weight)
        self._count(mask.view(np.uint8))

    def add_dense(self, values: npt.NDArray[np.float32], device_weight: float = 1.0) -> None:
        """Add the weights of a device that kept them all: `add` with a mask that is True, much faster.

        Args:
            values: all weights, shape (N,).
            device_weight: weight of the device in the mean, positive.

        Raises:
            ValueError: if the shape does not match or `device_weight` is not positive.
        """
        if values.shape != self._sum.shape:
            raise ValueError(f"values of shape {values.shape} do not fit {self._sum.size} weights")
        self._weigh(device_weight)
        self._sum += values if device_weight == 1.0 else values * np.float64(device_weight)
        if self._share is not None:
            self._share += device_weight
        self._count(np.uint8(1))

    def result(self, previous: npt.NDArray[np.float32]) -> AverageResult:
        """Return the mean over the keepers; weights without a keeper keep their `previous` value."""
        self._flush()
        share = self._share if self._share is not None else self._counts * (self._device_weight or 1.0)
        with np.errstate(invalid="ignore"):  # 0/0 where nobody kept the weight
            mean = self._sum / share
        weights = np.where(self._counts > 0, mean, previous).astype(np.float32)
        return AverageResult(weights, self._counts)

    def _weigh(self, device_weight: float) -> None:
        """Start to sum the devices' weights when they turn out to differ; else counting is enough."""
        if not device_weight > 0:
            raise ValueError(f"device_weight = {device_weight!r}; it must be positive")
        if self._device_weight is None:
            self._device_weight = device_weight
        elif self._share is None and device_weight != self._device_weight:
            self._flush()
            self._share = self._counts * np.float64(self._device_weight)

    def _count(self, kept: npt.NDArray[np.uint8] | np.uint8) -> None:
        self._recent += kept
        self._recent_uploads += 1
        if self._recent_uploads == _FLUSH:
            self._flush()

    def _flush(self) -> None:
        self._counts += self._recent
        self._recent[:] = 0
        self._recent_uploads = 0


_Piece = tuple[slice, npt.NDArray[np.intp], npt.NDArray[np.float32]]


def _blocks(mask: npt.NDArray[np.bool_], values: npt.NDArray[np.float32]) -> Iterator[_Piece]:
    """Yield blocks of weights, the kept positions in them, and their values."""
    taken = 0
    for start in range(0, mask.size, _BLOCK):
        block = slice(start, start + _BLOCK)
        (positions,) = mask[block].nonzero()
        yield block, positions, values[taken : taken + positions.size]
        taken += positions.size


def _slices(index: npt.NDArray[np.intp], values: npt.NDArray[np.float32]) -> Iterator[_Piece]:
    """Yield known positions, counted from the first weight, and their values in pieces."""
    for start in range(0, index.size, _BLOCK):
        piece = slice(start, start + _BLOCK)
        yield slice(None), index[piece], values[piece]
