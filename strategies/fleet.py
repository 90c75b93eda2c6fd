"""Which Flower node is which device.

Node ids are random, their order is that of a set, and nodes may register after the server has
started. Devices are therefore known by the index that they report (their ``partition-id``), asked
for once per node, and everything is ordered by that index.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from protocol.messages import DEVICE, HELLO

log = logging.getLogger(__name__)


class FleetError(RuntimeError):
    """The devices that the configuration names do not answer, or do not fit it."""


class Fleet:
    """The map between device indices and the nodes that are connected now."""

    def __init__(self, num_devices: int) -> None:
        self.num_devices = num_devices
        self._index_of: dict[int, int] = {}  # node id -> device index, also of nodes that have left
        self._node_of: dict[int, int] = {}  # device index -> node id, connected now

    def wait(self, grid: Grid, timeout: float, poll: float = 0.2) -> None:
        """Wait until every device is connected.

        Raises:
            FleetError: if some are still absent after `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        while True:
            self.refresh(grid, max(deadline - time.monotonic(), 1.0))
            if len(self._node_of) == self.num_devices:
                return
            if time.monotonic() > deadline:
                raise FleetError(
                    f"{len(self._node_of)} of {self.num_devices} devices (fleet.num_devices) are connected "
                    f"after {timeout:g} s; start the others, or set fleet.num_devices accordingly"
                )
            time.sleep(poll)

    def refresh(self, grid: Grid, timeout: float = 60.0) -> None:
        """Learn which nodes are connected and ask the new ones for their index.

        Raises:
            FleetError: if a node's index lies outside the configured fleet.
        """
        connected = set(grid.get_node_ids())
        unknown = sorted(connected - self._index_of.keys())
        if unknown:
            questions = [Message(RecordDict(), dst_node_id=node, message_type=HELLO) for node in unknown]
            for reply in grid.send_and_receive(questions, timeout=timeout):
                self._introduce(reply)
        self._node_of = {}
        for node in sorted(connected & self._index_of.keys()):
            self._node_of[self._index_of[node]] = node

    def _introduce(self, reply: Message) -> None:
        node = reply.metadata.src_node_id
        if not reply.has_content():
            log.warning("node %d did not introduce itself: %s", node, reply.error.reason)
            return
        record = reply.content.get(DEVICE)
        index = record.get("index") if isinstance(record, ConfigRecord) else None
        if not isinstance(index, int) or isinstance(index, bool):
            log.warning("node %d introduced itself without an index", node)
            return
        if not 0 <= index < self.num_devices:
            raise FleetError(
                f"a node is device {index} (its partition-id), but fleet.num_devices = {self.num_devices}; "
                "set fleet.num_devices to the size of the fleet"
            )
        self._index_of[node] = index

    def device_of(self, node: int) -> int | None:
        """Return the device index of a node, or None for one that never introduced itself."""
        return self._index_of.get(node)

    def node_of(self, device: int) -> int | None:
        """Return the node id of a device, or None while it is not connected."""
        return self._node_of.get(device)

    @property
    def connected(self) -> Iterable[int]:
        """Indices of the connected devices, in order."""
        return sorted(self._node_of)
