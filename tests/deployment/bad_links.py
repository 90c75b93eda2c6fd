"""Links that lose, delay, break and are cut: by the kernel (netem between network namespaces), or by a proxy.

Both are 5 % loss and 0.2 s there and back. `bad_links` takes the kernel's where it can.
"""

from __future__ import annotations

import random
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from deploy.local_fleet import LocalFleet

DELAY, LOSS = 0.2, 0.05  # s there and back; share of packets


class Link(Protocol):
    """The way of one node to the gate."""

    cut: bool

    def start_node(self, fleet: LocalFleet, index: int) -> None:
        """Start a node behind it, which is started again when it ends."""
        ...

    def break_off(self) -> None:
        """End every connection."""
        ...

    def close(self) -> None:
        """Close the way for good."""
        ...


class LossyProxy:
    """A way on loopback that handles blocks as TCP handles packets: one that is lost arrives later.

    Args:
        target: port of the gate.
        rng: decides what is lost.
        delay, loss: as of the module.
    """

    host = "127.0.0.1"

    def __init__(self, target: int, rng: random.Random, delay: float = DELAY, loss: float = LOSS) -> None:
        self._target, self._rng = target, rng
        self._delay, self._loss = delay, loss
        self.cut = False
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server((self.host, 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._listen, daemon=True).start()

    def start_node(self, fleet: LocalFleet, index: int) -> None:
        fleet.start_node(index, tended=True, superlink_port=self.port)

    def break_off(self) -> None:
        for side in list(self._open):
            with suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut = False
        self.break_off()

    def _listen(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self.cut:
                near.close()
                continue
            try:
                far = socket.create_connection((self.host, self._target), timeout=10)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            self._open |= {near, far}
            for ends in ((near, far), (far, near)):
                threading.Thread(target=self._forward, args=ends, daemon=True).start()

    def _forward(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while block := source.recv(65536):
                time.sleep(self._delay / 2)  # each way
                if self._rng.random() < self._loss:
                    time.sleep(self._rng.choice((0.2, 0.4, 0.8)))  # until it is sent again
                while self.cut:
                    time.sleep(0.2)
                sink.sendall(block)
        except OSError:
            pass
        finally:
            for side in (source, sink):
                self._open.discard(side)
                with suppress(OSError):
                    side.shutdown(socket.SHUT_RDWR)
                side.close()


class NetemLink:
    """A network namespace on a bridge of this machine, with netem at both ends of its cable.

    Args:
        index: of the node.
        impaired: whether netem is asked for; without, the link is as good as any (to try the rest of it).
    """

    host = "10.213.78.1"
    _bridge = "af-bridge"

    def __init__(self, index: int, *, impaired: bool = True) -> None:
        self._name, self._here, self._there = f"af-soak-{index}", f"af-h{index}", f"af-t{index}"
        self._cut = False
        try:
            self._lay(index, impaired)
        except BaseException:
            self.close()
            raise

    def _lay(self, index: int, impaired: bool) -> None:
        if not Path(f"/sys/class/net/{self._bridge}").exists():
            _call("ip", "link", "add", self._bridge, "type", "bridge")
            _call("ip", "addr", "add", f"{self.host}/24", "dev", self._bridge)
            _call("ip", "link", "set", self._bridge, "up")
        self._remove()  # of a soak that was killed
        _call("ip", "netns", "add", self._name)
        _call("ip", "link", "add", self._here, "type", "veth", "peer", "name", self._there)
        _call("ip", "link", "set", self._there, "netns", self._name)
        _call("ip", "link", "set", self._here, "master", self._bridge)
        _call("ip", "link", "set", self._here, "up")
        _call("ip", "-n", self._name, "link", "set", "lo", "up")
        _call("ip", "-n", self._name, "addr", "add", f"10.213.78.{10 + index}/24", "dev", self._there)
        _call("ip", "-n", self._name, "link", "set", self._there, "up")
        netem = ("netem", "delay", f"{500 * DELAY:.0f}ms", "loss", f"{100 * LOSS:.0f}%")
        if impaired:  # at both ends
            _call("tc", "qdisc", "add", "dev", self._here, "root", *netem)
            _call("tc", "-n", self._name, "qdisc", "add", "dev", self._there, "root", *netem)

    @property
    def inside(self) -> Sequence[str]:
        """A command that runs its arguments behind the link."""
        return ("ip", "netns", "exec", self._name)

    @property
    def cut(self) -> bool:
        return self._cut

    @cut.setter
    def cut(self, cut: bool) -> None:
        self._cut = cut
        _call("ip", "link", "set", self._here, "down" if cut else "up")

    def start_node(self, fleet: LocalFleet, index: int) -> None:
        fleet.start_node(index, inside=self.inside)

    def break_off(self) -> None:
        """Have the kernel reset the connections of the namespace, where it can."""
        _try(*self.inside, "ss", "-K", "dst", self.host)

    def close(self) -> None:
        self._remove()
        if not list(Path(f"/sys/class/net/{self._bridge}/brif").glob("*")):  # the last one
            _try("ip", "link", "del", self._bridge)

    def _remove(self) -> None:
        _try("ip", "link", "del", self._here)
        _try("ip", "netns", "del", self._name)


def why_no_netem() -> str:
    """Return why the kernel cannot impair links here, or "" if it can."""
    if not (shutil.which("ip") and shutil.which("tc")):
        return "no ip and tc here"
    try:
        NetemLink(99).close()
    except (OSError, subprocess.CalledProcessError) as error:
        return str(getattr(error, "stderr", "")).strip() or str(error)
    return ""


def _call(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


def _try(*command: str) -> None:
    subprocess.run(command, capture_output=True, check=False)
