"""Running statistics that devices share: sent dense, averaged by samples, charged with 32 bits each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import median_low
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import ArrayRecord

from protocol.arrays import vectors_record
from strategies.limits import FACTOR, UploadError

Vectors = Mapping[str, npt.NDArray[Any]]
BITS = 32
_PREFIX = "buffer."


class SharedBuffers:
    """The buffers of the global model, and those of a round's uploads until it ends.

    Whole numbers (counts of batches) take the maximum, which is what one device that saw as much would have.

    Args:
        values: before the first round, vectors by name.
        limited: whether a device may move a buffer by no more than `FACTOR` times the round's median; longer
            moves are scaled down to that. Finite numbers of any size would else pass for statistics.

    Attributes:
        bits: what one upload of them costs.
    """

    def __init__(self, values: Vectors, *, limited: bool = False) -> None:
        self._values = {name: np.array(vector) for name, vector in values.items()}
        self._factor = FACTOR if limited else math.inf
        self.bits = BITS * sum(vector.size for vector in self._values.values())
        self._sent: list[tuple[Vectors, float]] = []

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
        self._sent = []

    def check(self, sent: Vectors, *, uploads: bool) -> None:
        """Refuse what does not fit.

        Args:
            sent: by one device.
            uploads: whether it was to upload anything.

        Raises:
            UploadError: if a buffer is absent, unknown, of another type or size, or cannot be what it is.
        """
        expected = self._values if uploads else {}
        if sent.keys() != expected.keys():
            raise UploadError(f"the reply has the buffers {sorted(sent)}; {sorted(expected)} are expected")
        for name, vector in sent.items():
            own = expected[name]
            if vector.dtype != own.dtype or vector.shape != own.shape:
                raise UploadError(
                    f"buffer {name} is {vector.dtype} {vector.shape}; {own.dtype} {own.shape} is expected"
                )
            if not np.isfinite(vector).all():
                raise UploadError(f"buffer {name} holds values that are not finite")
            if name.endswith("running_var") and vector.size and vector.min() < 0:
                raise UploadError(f"buffer {name} holds {vector.min():g}; a variance is at least 0")

    def add(self, sent: Vectors, weight: float) -> None:
        """Take one device's buffers into the average; the weight is that of its samples, less if stale."""
        if sent:
            self._sent.append((sent, weight))

    def finish(self) -> None:
        """Make the average the buffers of the global model; without any upload they stay."""
        total = float(sum(weight for _, weight in self._sent))
        if total > 0.0:
            for name, own in self._values.items():
                vectors = [sent[name] for sent, _ in self._sent]
                near = _limited(own, vectors, self._factor)
                if own.dtype.kind == "f":
                    parts = [one * weight for one, (_, weight) in zip(near, self._sent, strict=True)]
                    self._values[name] = (_sum(parts) / total).astype(own.dtype)
                else:
                    self._values[name] = np.max(np.stack(near), axis=0).astype(own.dtype)
        self.begin()

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Return what a resumed run needs."""
        return {f"{_PREFIX}{name}": vector for name, vector in self._values.items()}

    def restore(self, state: Vectors) -> None:
        """Take back what `state` returned."""
        for name in self._values:
            if f"{_PREFIX}{name}" in state:
                self._values[name] = np.array(state[f"{_PREFIX}{name}"])


def _limited(own: npt.NDArray[Any], sent: list[npt.NDArray[Any]], factor: float) -> list[npt.NDArray[Any]]:
    """Return what devices sent, none farther off than `factor` times their median, floats in float64."""
    wide = np.float64 if own.dtype.kind == "f" else own.dtype
    vectors = [one.astype(wide) for one in sent]
    if math.isinf(factor):
        return vectors
    base = own.astype(np.float64)
    moves = [float(np.linalg.norm(one.astype(np.float64) - base)) for one in vectors]
    # The lower of two medians: of two devices, or of two halves, the larger ones are the suspects.
    limit = factor * median_low(moves)
    for place, move in enumerate(moves):
        if move > limit:
            vectors[place] = (base + limit / move * (vectors[place] - base)).astype(wide)
    return vectors


def _sum(parts: list[npt.NDArray[np.float64]]) -> npt.NDArray[np.float64]:
    """Add one after the other, in the order of the devices."""
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total
