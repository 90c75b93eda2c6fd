"""The masked mean, one upload at a time (Liu et al. 2024, eq. (26)): the only one in the project."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

F = TypeVar("F", bound=np.floating)

# torch says so of every sparse matrix by rows; adding one to a dense matrix is what is used of it.
warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta", category=UserWarning)

_BLOCK = 1 << 19  # weights at once, to bound the memory: larger blocks are no faster, smaller ones slower
_SPARSE = 1 << 15  # values from which a sparse row is the faster way to add them
_FLUSH = 255  # uploads that a byte can count


@dataclass(frozen=True)
class AverageResult:
    """The next global part and how well it was covered.

    Attributes:
        weights: float32, shape (N,); a weight that no device kept has its previous value, bit for bit.
        counts: number of devices that kept each weight, int32, shape (N,).
    """

    weights: npt.NDArray[np.float32]
    counts: npt.NDArray[np.int32]

    @property
    def uncovered_share(self) -> float:
        """Share of weights that no device kept."""
        return float(np.count_nonzero(self.counts == 0) / self.counts.size)


class Positions:
    """Where a mask is True, block by block: found once for all that is to be done with an upload.

    Args:
        mask: bool, shape (N,).
    """

    def __init__(self, mask: npt.NDArray[np.bool_]) -> None:
        self.mask = mask
        self._blocks = list(_find(mask))

    def __iter__(self) -> Iterator[tuple[slice, npt.NDArray[np.intp]]]:
        """Yield slices of the weights and the positions in them."""
        return iter(self._blocks)

    def take(self, vector: npt.NDArray[F]) -> npt.NDArray[F]:
        """Return ``vector[mask]``."""
        return np.concatenate([vector[block].take(positions) for block, positions in self])


class MaskedAverage:
    """Streaming masked mean: memory O(weights), whatever the number of devices.

    The sum runs in float64, so that the order of the devices does not show in float32.
    """

    def __init__(self, num_weights: int) -> None:
        self._sum = np.zeros(num_weights, np.float64)
        self._counts = np.zeros(num_weights, np.int32)
        self._recent = np.zeros(num_weights, np.uint8)  # counts since the last flush: a quarter of the bytes
        self._recent_uploads = 0
        self._addend = np.empty(min(_BLOCK, num_weights), np.float64)  # new memory costs a sixth
        self._device_weight: float | None = None
        self._share: npt.NDArray[np.float64] | None = None  # only where the devices' weights differ
        self._all = 0.0  # sum of the devices' weights

    def add(
        self,
        values: npt.NDArray[np.float32],
        kept: npt.NDArray[np.bool_] | Positions,
        device_weight: float = 1.0,
    ) -> None:
        """Add one device's retained weights.

        Args:
            values: retained weights in ascending position, shape (count_nonzero(mask),).
            kept: True where the device kept the weight, shape (N,); or its positions, if they are known.
            device_weight: weight of the device in the mean, positive.

        Raises:
            ValueError: if shapes do not match or `device_weight` is not positive. If it is the number of
                values that does not fit, they are in the sum by then: throw the average away.
        """
        mask, blocks = (kept.mask, iter(kept)) if isinstance(kept, Positions) else (kept, _find(kept))
        if mask.shape != self._sum.shape or values.ndim != 1:
            raise ValueError(
                f"values of shape {values.shape} and a mask of shape {mask.shape} "
                f"do not fit {self._sum.size} weights"
            )
        self._weigh(device_weight)
        taken, counted = 0, mask.view(np.uint8)
        for block, places in blocks:
            some = values[taken : taken + places.size]
            taken += places.size
            if some.size < places.size:
                break
            _scatter_add(self._sum[block], places, self._weighted(some, device_weight))
            if self._share is not None:
                self._share[block][places] += device_weight
            self._recent[block] += counted[block]  # here, while the mask is in the cache
        if taken != values.size:  # counting first would take a twentieth of the time
            raise ValueError(f"{values.size} values do not fit a mask with {np.count_nonzero(mask)} kept")
        self._counted()

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
        for start in range(0, values.size, _BLOCK):
            block = slice(start, start + _BLOCK)
            self._sum[block] += self._weighted(values[block], device_weight)
        if self._share is not None:
            self._share += device_weight
        self._recent += np.uint8(1)
        self._counted()

    def result(
        self, previous: npt.NDArray[np.float32], *, over_all: bool = False, silent: float = 0.0
    ) -> AverageResult:
        """Return the means; weights without a keeper keep their `previous` value.

        Args:
            previous: float32 (N,).
            over_all: each mean is over all devices instead of the weight's keepers; who pruned it counts with
                its `previous` value.
            silent: weights of the devices that kept nothing, summed; they count only with `over_all`.
        """
        self._flush()
        share = self._share if self._share is not None else self._counts * (self._device_weight or 1.0)
        total = self._sum
        if over_all:
            everyone = self._all + silent
            total, share = total + (everyone - share) * previous, np.broadcast_to(everyone, share.shape)
        with np.errstate(invalid="ignore", over="ignore"):  # 0/0 where nobody kept the weight
            mean = (total / share).astype(np.float32)
        weights = np.where(self._counts > 0, mean, previous)
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
        self._all += device_weight

    def _weighted(self, values: npt.NDArray[np.float32], device_weight: float) -> npt.NDArray[np.float64]:
        """Return values of one block times the weight of their device, until the next call."""
        addend = self._addend[: values.size]
        addend[:] = values  # a ufunc casts through a buffer: a copy takes a third of its time
        if device_weight != 1.0:
            addend *= device_weight
        return addend

    def _counted(self) -> None:
        self._recent_uploads += 1
        if self._recent_uploads == _FLUSH:
            self._flush()

    def _flush(self) -> None:
        self._counts += self._recent
        self._recent[:] = 0
        self._recent_uploads = 0


def _scatter_add(
    total: npt.NDArray[np.float64], places: npt.NDArray[np.intp], addend: npt.NDArray[np.float64]
) -> None:
    """Do ``total[places] += addend`` for places inside, none of them twice: torch does not look.

    With `np.add.at`, which does, averaging takes a quarter longer (python -m benchmarks --only averaging); of
    few, making the row of the sparse matrix would take more than adding them. The sums are the same bits.
    """
    if places.size < _SPARSE:
        np.add.at(total, places, addend)
        return
    import torch  # here: whoever only asks for help or is refused starts a second sooner without it

    row = torch.sparse_compressed_tensor(
        torch.tensor([0, places.size]),
        torch.from_numpy(places),
        torch.from_numpy(addend),
        (1, total.size),
        layout=torch.sparse_csr,
        check_invariants=False,
    )
    torch.from_numpy(total)[None].add_(row)


def _find(mask: npt.NDArray[np.bool_]) -> Iterator[tuple[slice, npt.NDArray[np.intp]]]:
    """Yield blocks of weights and the positions in them at which the mask is True."""
    for start in range(0, mask.size, _BLOCK):
        block = slice(start, min(start + _BLOCK, mask.size))
        yield block, mask[block].nonzero()[0]
