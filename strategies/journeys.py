"""How long orders and replies of real nodes were on their way, told by two clocks that may differ.

The server notes when it gave an order out and when the reply was there; the node says when it began with the
order and when it had ended. What lies between are the download and the upload, waiting included: a SuperNode
looks for orders every 3 s.

A node's clock is ahead of the server's by an unknown theta. Nothing arrives before it was sent, so each
exchange bounds it (Cristian 1989, "Probabilistic clock synchronization")::

    ended - heard  <=  theta  <=  began - sent,

and all exchanges together narrow it. Zero is taken where it is possible, since clocks that are kept by NTP
agree to milliseconds; else what is possible and nearest to it. After a clock was set the bounds contradict
one another; then only the last exchange counts.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping

BEGAN, ENDED = "measured-began-at", "measured-ended-at"  # what a node reports, s since 1970 by its own clock
DOWNLOAD, UPLOAD = "measured_download_seconds", "measured_upload_seconds"


class Journeys:
    """The journeys between the server and its nodes.

    Args:
        now: the server's clock, s.
    """

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._sent: dict[int, float] = {}
        self._heard: dict[int, float] = {}
        self._bounds: dict[int, tuple[float, float]] = {}

    def sent(self, device: int) -> None:
        """Note that an order goes out now."""
        self._sent[device] = self._now()
        self._heard.pop(device, None)

    def heard(self, device: int) -> None:
        """Note that the reply to it is there now."""
        if device in self._sent:
            self._heard.setdefault(device, self._now())

    def columns(self, device: int, reported: Mapping[str, float]) -> dict[str, float]:
        """Return the seconds of the last download and upload; nothing where they cannot be told.

        Args:
            device: whose.
            reported: numbers that it reported.
        """
        sent, heard = self._sent.pop(device, None), self._heard.pop(device, None)
        if sent is None or heard is None or not {BEGAN, ENDED} <= reported.keys():
            return {}
        began, ended = reported[BEGAN], reported[ENDED]
        low, high = ended - heard, began - sent
        if not (began <= ended and low <= high):
            return {}  # it says that it worked for longer than the order was out
        ahead = self._ahead(device, low, high)
        return {DOWNLOAD: max(0.0, high - ahead), UPLOAD: max(0.0, ahead - low)}

    def _ahead(self, device: int, low: float, high: float) -> float:
        """Return by how much a device's clock is ahead, given the bounds of its last exchange."""
        before = self._bounds.get(device, (-math.inf, math.inf))
        bounds = max(low, before[0]), min(high, before[1])
        if bounds[0] > bounds[1]:
            bounds = low, high
        self._bounds[device] = bounds
        return min(max(0.0, bounds[0]), bounds[1])
