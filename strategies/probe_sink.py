"""Times how fast bytes of each device arrive: an honest figure of its uplink.

The ServerApp listens on a port of its own. A device that was asked to (see `protocol.messages.ProbeOrder`)
connects, names its transfer by a token of 16 random bytes that is good for one connection, and sends
meaningless bytes. The rate is that of the bytes after the first read, over the time from the first read
to the last: neither the connection's set-up nor a buffer of the sender counts. What a device says about
its own speed is not asked.
"""

from __future__ import annotations

import logging
import secrets
import socket
import threading
import time
from dataclasses import dataclass, field
from typing import Self

from protocol.messages import ProbeOrder

log = logging.getLogger(__name__)

_TOKEN_BYTES = 16
_READ = 1 << 14
_IDLE_SECONDS = 5.0
_LONGEST_SECONDS = 30.0
_MAX_CONNECTIONS = 64


@dataclass
class ProbeSink:
    """Listens until it is closed.

    Attributes:
        host, port: where to listen; port 0: any free one.
        size: bytes that each device is asked for.
        advertised: ``host:port`` that the devices are told; default: where it listens.
    """

    host: str
    port: int
    size: int
    advertised: str | None = None
    _expected: dict[bytes, int] = field(default_factory=dict)
    _rates: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._slots = threading.BoundedSemaphore(_MAX_CONNECTIONS)
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        self._listener = socket.create_server((self.host, self.port), family=family, backlog=_MAX_CONNECTIONS)
        bound = self._listener.getsockname()[1]
        self.address = self.advertised or f"{self.host}:{bound}"
        threading.Thread(target=self._listen, name="probe-sink", daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening."""
        # A closed descriptor does not wake a thread that waits in accept(); shutting it down does.
        try:
            self._listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            log.debug("the listener was already down", exc_info=True)
        self._listener.close()

    def order(self, device: int) -> ProbeOrder:
        """Return the order of one transfer of a device; its earlier ones are void."""
        token = secrets.token_bytes(_TOKEN_BYTES)
        with self._lock:
            self._expected = {key: owner for key, owner in self._expected.items() if owner != device}
            self._expected[token] = device
            self._rates.pop(device, None)
        return ProbeOrder(self.address, token, self.size)

    def rate(self, device: int) -> float | None:
        """Return the rate of the device's last ordered transfer, in bit/s; None if none has ended well."""
        with self._lock:
            return self._rates.get(device)

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            if not self._slots.acquire(blocking=False):
                connection.close()
                continue
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection:
                connection.settimeout(_IDLE_SECONDS)
                device = self._owner(connection)
                rate = None if device is None else self._time(connection)
                if device is not None and rate is not None:
                    with self._lock:  # before the connection closes, for which the device waits
                        self._rates[device] = rate
        except OSError as error:
            log.debug("a transfer ended early: %s", error)
        finally:
            self._slots.release()

    def _owner(self, connection: socket.socket) -> int | None:
        token = b""
        while len(token) < _TOKEN_BYTES and (more := connection.recv(_TOKEN_BYTES - len(token))):
            token += more
        with self._lock:
            return self._expected.pop(token, None)

    def _time(self, connection: socket.socket) -> float | None:
        buffer = bytearray(_READ)
        first = connection.recv_into(buffer)
        started = last = time.perf_counter()
        timed = 0
        while first + timed < self.size and last - started < _LONGEST_SECONDS:
            read = connection.recv_into(buffer)
            if not read:
                break
            last = time.perf_counter()
            timed += read
        # A first read that holds most of the transfer leaves too little to time.
        if timed < first or last <= started:
            return None
        return 8.0 * timed / (last - started)
