"""How many images a device counts with, which it claims and nobody else can see.

The server deals the data set itself, so it knows how many images each device has: a device that claims more
counts with those. Devices of a fleet may have images of their own (``data-dir``); then the operator says how
many a device may count with at most, and what a device claimed first stands for the run.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

log = logging.getLogger(__name__)

_LARGEST = 2**53  # whole numbers beyond are not exact in float64, in which means are taken


class SampleCounts:
    """The images that each device counts with.

    Args:
        dealt: images that the partition gives each device, (K,); None: unknown, and not looked at.
        own_limit: most images of its own that a device may count with; None: devices have none.
        what: name of the images in messages.
    """

    def __init__(
        self, dealt: Sequence[int] | None = None, own_limit: int | None = None, what: str = "training images"
    ) -> None:
        self._dealt = dealt
        self._own_limit = own_limit
        self._what = what
        self._first: dict[int, int] = {}
        self._told: set[int] = set()

    def counted(self, device: int, claim: int) -> int:
        """Return the number that counts of a claim of at least 1: never more than it."""
        most = self._most(device)
        first = self._first.setdefault(device, min(claim, most))
        counted = min(claim, first)
        if counted < claim and device not in self._told:
            self._told.add(device)
            log.warning(
                "device %d claims %s %s; it counts with %d (%s)",
                device,
                claim if claim < _LARGEST else "more than 2^53",
                self._what,
                counted,
                "what it claimed first" if first < most else self._source(),
            )
        return counted

    def _most(self, device: int) -> int:
        if self._dealt is None:
            return self._own_limit or _LARGEST
        return max(self._dealt[device], self._own_limit or 0)

    def _source(self) -> str:
        if self._own_limit is not None:
            return "fleet.max_own_images"
        return "what the partition gives it; for images of its own set fleet.max_own_images"

    def state(self) -> npt.NDArray[np.int64]:
        """Return (device, first claim) pairs, shape (n, 2)."""
        return np.array(sorted(self._first.items()), np.int64).reshape(-1, 2)

    def restore(self, state: npt.NDArray[np.generic]) -> None:
        """Take back what `state` returned."""
        self._first = {int(device): int(claim) for device, claim in state.tolist()}
