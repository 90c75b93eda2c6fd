"""The uploads of a round, held for an aggregation that needs all of them before it can begin."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Weights = npt.NDArray[np.float32]

MEMORY_BYTES = 1 << 28  # beyond this the values lie in a temporary file
BLOCK_BYTES = 1 << 24  # of the matrix of one block of weights


class Uploads:
    """Uploads of K devices: values in memory up to `MEMORY_BYTES`, then in a file; masks as bitmaps.

    Args:
        size: N, weights of the global part.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._masks: list[npt.NDArray[np.uint8] | None] = []
        self._weights: list[float] = []
        self._starts: list[int] = [0]  # of each upload's values in the file, in values
        self._file = tempfile.SpooledTemporaryFile(max_size=MEMORY_BYTES)  # noqa: SIM115  (lives for a round)

    def add(self, values: Weights, mask: npt.NDArray[np.bool_] | None, weight: float) -> None:
        """Take an upload: the retained weights (n,), where they belong (N,), None for everywhere.

        Raises:
            ValueError: if the number of values does not fit the mask, or the weight is not positive.
        """
        kept = self._size if mask is None else int(np.count_nonzero(mask))
        if values.shape != (kept,) or (mask is not None and mask.shape != (self._size,)):
            raise ValueError(f"values of shape {values.shape} do not fit {kept} of {self._size} weights kept")
        if not weight > 0:
            raise ValueError(f"device_weight = {weight!r}; it must be positive")
        self._file.seek(4 * self._starts[-1])
        self._file.write(np.ascontiguousarray(values, np.float32).tobytes())
        self._starts.append(self._starts[-1] + kept)
        self._masks.append(None if mask is None else np.packbits(mask))
        self._weights.append(weight)

    @property
    def weights(self) -> npt.NDArray[np.float64]:
        """The devices' weights, (K,)."""
        return np.array(self._weights, np.float64)

    def __iter__(self) -> Iterator[tuple[Weights, npt.NDArray[np.bool_] | None, float]]:
        """Yield the uploads as they were added."""
        for number, (packed, weight) in enumerate(zip(self._masks, self._weights, strict=True)):
            start, stop = self._starts[number : number + 2]
            yield self._values(start, stop - start), self._mask(packed, 0, self._size), weight

    def blocks(
        self, fill: Weights, *, whole: bool = False
    ) -> Iterator[tuple[slice, Weights, npt.NDArray[np.bool_]]]:
        """Yield blocks of weights: which, what was sent (K, n), and the masks (K, n).

        Args:
            fill: (N,), what stands where nothing was sent.
            whole: all weights in one block.
        """
        devices = len(self._masks)
        length = self._size if whole else max(BLOCK_BYTES // (4 * max(devices, 1)) // 8 * 8, 8)
        read = list(self._starts[:-1])
        for start in range(0, self._size, length):
            block = slice(start, min(start + length, self._size))
            width = block.stop - block.start
            uploads = np.repeat(fill[None, block], devices, axis=0)
            masks = np.ones((devices, width), np.bool_)
            for device, packed in enumerate(self._masks):
                mask = self._mask(packed, start, width)
                kept = width if mask is None else int(np.count_nonzero(mask))
                values = self._values(read[device], kept)
                read[device] += kept
                if mask is None:
                    uploads[device] = values
                else:
                    masks[device] = mask
                    uploads[device][mask] = values
            yield block, uploads, masks

    def close(self) -> None:
        """Give memory and file back."""
        self._file.close()

    def _values(self, start: int, number: int) -> Weights:
        self._file.seek(4 * start)
        return np.frombuffer(self._file.read(4 * number), np.float32)

    def _mask(
        self, packed: npt.NDArray[np.uint8] | None, start: int, width: int
    ) -> npt.NDArray[np.bool_] | None:
        """Unpack a mask from weight `start`, a multiple of 8, on."""
        return None if packed is None else np.unpackbits(packed[start // 8 :], count=width).view(np.bool_)
