"""Where the wall-clock seconds of a round go."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


class RoundClock:
    """Wall-clock seconds of the parts of a round."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Add the time since the last lap to a part."""
        now = time.perf_counter()
        self.seconds[name] = round(self.seconds.get(name, 0.0) + now - self._last, 6)
        self._last = now

    def waiting(self, name: str, items: Iterable[T]) -> Iterator[T]:
        """Yield items; the time until each is there counts to a part, what is done with them to none yet."""
        other = 0.0
        for item in items:
            self.lap(name)
            yield item
            now = time.perf_counter()
            other += now - self._last
            self._last = now
        self.lap(name)
        self._last -= other  # is the caller's, at its next lap
