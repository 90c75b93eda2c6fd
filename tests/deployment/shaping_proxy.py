"""A link of a chosen rate on loopback: forwards TCP connections, slowly in one direction, and counts."""

import socket
import threading
import time


class ShapedLink:
    """One uplink, shared by all connections through it; the way back is not limited.

    Args:
        rate: bit/s; may be changed at any time.
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.sent: dict[int, int] = {}  # target port -> bytes that went up
        self._free_at = 0.0
        self._lock = threading.Lock()
        self._listeners: list[socket.socket] = []

    def lead_to(self, target: int) -> int:
        """Return a port that leads to `target` over this link."""
        listener = socket.create_server(("127.0.0.1", 0))
        self._listeners.append(listener)
        self.sent[target] = 0
        threading.Thread(target=self._listen, args=(listener, target), daemon=True).start()
        return listener.getsockname()[1]

    def close(self) -> None:
        for listener in self._listeners:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()

    def _listen(self, listener: socket.socket, target: int) -> None:
        while True:
            try:
                near, _ = listener.accept()
                far = socket.create_connection(("127.0.0.1", target))
            except OSError:
                if listener.fileno() < 0:
                    return
                continue
            threading.Thread(target=self._forward, args=(near, far, target), daemon=True).start()
            threading.Thread(target=self._forward, args=(far, near, None), daemon=True).start()

    def _forward(self, source: socket.socket, sink: socket.socket, target: int | None) -> None:
        try:
            while block := source.recv(4096):
                if target is not None:
                    self._wait(len(block))
                    self.sent[target] += len(block)
                sink.sendall(block)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            for side in (source, sink):
                side.close()

    def _wait(self, size: int) -> None:
        """Hold a block back until the link has carried it and all before it."""
        with self._lock:
            self._free_at = max(self._free_at, time.monotonic()) + 8 * size / self.rate
            until = self._free_at
        time.sleep(max(0.0, until - time.monotonic()))
