"""Uplinks of a chosen rate: shaped by the kernel between network namespaces, or by a proxy on loopback."""

import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

from deploy.local_fleet import LocalFleet


class ProxyLink:
    """One uplink on loopback, shared by all connections through it; the way back is not limited."""

    host = "127.0.0.1"

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.bytes_up = 0
        self._free_at = 0.0
        self._lock = threading.Lock()
        self._listeners: list[socket.socket] = []

    def start_node(self, fleet: LocalFleet, index: int, probe_port: int, **config: Any) -> None:
        """Start a node behind this link."""
        ways = self._lead_to(probe_port, count=False), self._lead_to(fleet.port, count=True)
        fleet.start_node(index, {"probe-address": f"127.0.0.1:{ways[0]}", **config}, superlink_port=ways[1])

    def set_rate(self, rate: float) -> None:
        """Change the rate, in bit/s."""
        self.rate = rate

    def close(self) -> None:
        for listener in self._listeners:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()

    def _lead_to(self, target: int, *, count: bool) -> int:
        listener = socket.create_server(("127.0.0.1", 0))
        self._listeners.append(listener)
        threading.Thread(target=self._listen, args=(listener, target, count), daemon=True).start()
        return int(listener.getsockname()[1])

    def _listen(self, listener: socket.socket, target: int, count: bool) -> None:
        while True:
            try:
                near, _ = listener.accept()
                far = socket.create_connection(("127.0.0.1", target))
            except OSError:
                if listener.fileno() < 0:
                    return
                continue
            for ends, up in (((near, far), True), ((far, near), False)):
                threading.Thread(target=self._forward, args=(*ends, up, count), daemon=True).start()

    def _forward(self, source: socket.socket, sink: socket.socket, up: bool, count: bool) -> None:
        try:
            while block := source.recv(4096):
                if up:
                    self._wait(len(block), count)
                sink.sendall(block)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            for side in (source, sink):
                side.close()

    def _wait(self, size: int, count: bool) -> None:
        """Hold a block back until the link has carried it and all before it."""
        with self._lock:
            self.bytes_up += size if count else 0
            self._free_at = max(self._free_at, time.monotonic()) + 8 * size / self.rate
            until = self._free_at
        time.sleep(max(0.0, until - time.monotonic()))


class NamespaceLink:
    """The uplink of a network namespace: a veth pair whose far end `tc` shapes.

    Bytes are the kernel's count of what arrives here. The namespace has a node in it and nothing else.
    """

    host = "10.213.77.1"
    _name, _here, _there, _own = "airflower-node", "af-here", "af-there", "10.213.77.2"

    @staticmethod
    def why_not() -> str:
        """Return why there can be none here, or "" if there can."""
        if not (shutil.which("ip") and shutil.which("tc")):
            return "ip and tc are not installed"
        try:
            NamespaceLink(1e6).close()
        except (OSError, subprocess.CalledProcessError) as error:
            return f"no network namespace: {getattr(error, 'stderr', error)}"
        return ""

    def __init__(self, rate: float) -> None:
        self.close()  # of a test that was killed
        try:
            _call("ip", "netns", "add", self._name)
            _call("ip", "link", "add", self._here, "type", "veth", "peer", "name", self._there)
            _call("ip", "link", "set", self._there, "netns", self._name)
            _call("ip", "addr", "add", f"{self.host}/30", "dev", self._here)
            _call("ip", "link", "set", self._here, "up")
            _call("ip", "-n", self._name, "link", "set", "lo", "up")
            _call("ip", "-n", self._name, "addr", "add", f"{self._own}/30", "dev", self._there)
            _call("ip", "-n", self._name, "link", "set", self._there, "up")
            self._shape("add", rate)
        except BaseException:
            self.close()
            raise

    def start_node(self, fleet: LocalFleet, index: int, probe_port: int, **config: Any) -> None:
        """Start a node in the namespace."""
        fleet.start_node(index, config, inside=("ip", "netns", "exec", self._name))

    def set_rate(self, rate: float) -> None:
        """Change the rate, in bit/s."""
        self._shape("change", rate)

    @property
    def bytes_up(self) -> int:
        """Bytes that have come up, those of the timed transfers among them."""
        return int(Path(f"/sys/class/net/{self._here}/statistics/rx_bytes").read_text())

    def close(self) -> None:
        subprocess.run(["ip", "link", "del", self._here], capture_output=True, check=False)
        subprocess.run(["ip", "netns", "del", self._name], capture_output=True, check=False)

    def _shape(self, verb: str, rate: float) -> None:
        where = ("-n", self._name, "qdisc", verb, "dev", self._there, "root")
        _call("tc", *where, "tbf", "rate", f"{rate:.0f}bit", "burst", "5000", "latency", "2s")


def _call(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)
