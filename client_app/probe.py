"""A timed transfer over the device's real uplink.

Flower's own exchange polls every few seconds, so that a stopwatch around it measures the polling. The
server therefore names an address that takes meaningless bytes; it times their arrival there (see
`strategies.probe_sink`), which no buffer on this side can flatter.
"""

from __future__ import annotations

import logging
import os
import socket
import time

from protocol.messages import ProbeOrder

log = logging.getLogger(__name__)

MAX_BYTES = 64 << 20
_SECONDS = 10.0
_BLOCK = 1 << 14


def send_probe(order: ProbeOrder, address: str) -> int:
    """Send the bytes to `address` (``host:port``) and return how many were sent.

    It ends after ten seconds at the latest: on a slow link, fewer bytes tell as much. A transfer that
    fails is logged and costs nothing else.
    """
    host, _, port = address.rpartition(":")
    sent, block = 0, os.urandom(_BLOCK)  # random: a link that compresses must not look faster
    deadline = time.monotonic() + _SECONDS
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_SECONDS) as connection:
            connection.sendall(order.token)
            size = min(order.size, MAX_BYTES)
            while sent < size and time.monotonic() < deadline:
                sent += connection.send(block[: size - sent])
            connection.shutdown(socket.SHUT_WR)
            connection.recv(1)  # the sink closes when it has counted the last byte
    except (OSError, ValueError) as error:
        log.warning("the transfer to %s failed after %d bytes: %s", address, sent, error)
    return sent
