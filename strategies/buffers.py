"""Running statistics that devices share: sent dense, averaged by samples, charged with 32 bits each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import ArrayRecord

from protocol.arrays import vectors_record
from strategies.limits import UploadError

Vectors = Mapping[str, npt.NDArray[Any]]
BITS = 32
_PREFIX = "buffer."


class SharedBuffers:
    """The buffers of the global model, and those of a round's uploads as they come.

    Whole numbers (counts of batches) take the maximum, which is what one device that saw as much would have.

    Args:
        values: before the first round, vectors by name.

    Attributes:
        bits: what one upload of them costs.
    """

    def __init__(self, values: Vectors) -> None:
        self._values = {name: np.array(vector) for name, vector in values.items()}
        self.bits = BITS * sum(vector.size for vector in self._values.values())
        self._sums: dict[str, npt.NDArray[np.float64]] = {}
        self._most: dict[str, npt.NDArray[Any]] = {}
        self._weight = 0.0

    def __bool__(self) -> bool:
        """Return whether there are any."""
        return bool(self._values)

    @property
    def values(self) -> Vectors:
        """The buffers of the global model."""
        return self._values

    def record(self) -> ArrayRecord | None:
        """Return them for an order; None without any."""
        return vectors_record(self._values) if self._values else None

    def begin(self) -> None:
        """Forget what came in before."""
        self._sums, self._most, self._weight = {}, {}, 0.0

    def check(self, sent: Vectors, *, uploads: bool) -> None:
        """Refuse what does not fit.

        Args:
            sent: by one device.
            uploads: whether it was to upload anything.

        Raises:
            UploadError: if a buffer is absent, unknown, of another type or size, or not finite.
        """
        expected = self._values if uploads else {}
        if sorted(sent) != sorted(expected):
            raise UploadError(f"the reply has the buffers {sorted(sent)}; {sorted(expected)} are expected")
        for name, vector in sent.items():
            own = expected[name]
            if vector.dtype != own.dtype or vector.shape != own.shape:
                raise UploadError(
                    f"buffer {name} is {vector.dtype} {vector.shape}; {own.dtype} {own.shape} is expected"
                )
            if not np.isfinite(vector).all():
                raise UploadError(f"buffer {name} holds values that are not finite")

    def add(self, sent: Vectors, weight: float) -> None:
        """Take one device's buffers into the average; the weight is that of its samples, less if stale."""
        if not sent:
            return
        for name, vector in sent.items():
            if vector.dtype.kind == "f":
                part = vector.astype(np.float64) * weight
                self._sums[name] = self._sums[name] + part if name in self._sums else part
            else:
                self._most[name] = np.maximum(self._most[name], vector) if name in self._most else vector
        self._weight += weight

    def finish(self) -> None:
        """Make the average the buffers of the global model; without any upload they stay."""
        if self._weight > 0.0:
            for name, total in self._sums.items():
                self._values[name] = (total / self._weight).astype(self._values[name].dtype)
            for name, most in self._most.items():
                self._values[name] = np.array(most)
        self.begin()

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Return what a resumed run needs."""
        return {f"{_PREFIX}{name}": vector for name, vector in self._values.items()}

    def restore(self, state: Vectors) -> None:
        """Take back what `state` returned."""
        for name in self._values:
            if f"{_PREFIX}{name}" in state:
                self._values[name] = np.array(state[f"{_PREFIX}{name}"])
