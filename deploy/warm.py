"""Spares a node the seconds that importing torch takes for every message.

A SuperNode starts a new ``flwr-clientapp`` process per message, and most of that process's time goes
into imports. Here one process imports Flower and torch once and is forked for each message; the app's
own code is imported in the fork, from the app that the message belongs to. The SuperNode finds
`clientapp_shim` under the name of the command, first on its PATH.

The forks have the rights, the environment, the working directory and the output of the process that
they replace, and end when it ends. Only the same user can reach the socket.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import resource
import signal
import socket
import struct
import sys
import threading
from pathlib import Path

_MODULES = (
    "flwr.supernode.cli",
    "flwr.clientapp",
    "torch",
    "torch._dynamo",
    "sklearn.datasets",
    "scipy.special",
)
_LONGEST_TASK = 1 << 22


def environment(folder: Path, commands: Path) -> dict[str, str]:
    """Write the stand-in command into `folder` and return the variables that make a SuperNode use it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    stand_in = folder / "flwr-clientapp"
    shim = Path(__file__).with_name("clientapp_shim.py")
    stand_in.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "{shim}" "$@"\n')
    stand_in.chmod(0o700)
    return {
        "AIRFLOWER_WARM_SOCKET": str(folder / "socket"),
        "AIRFLOWER_CLIENTAPP": str(commands / "flwr-clientapp"),
        "PATH": os.pathsep.join([str(folder), str(commands), os.environ.get("PATH", "")]),
    }


def serve(path: Path) -> None:
    """Serve tasks on a Unix socket at `path` until the process is ended."""
    for module in _MODULES:
        importlib.import_module(module)
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    listener.bind(str(path))
    os.umask(before)
    listener.listen(64)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # forks are not waited for
    gc.collect()
    # The collector would touch, and so copy, what the forks share: 60 MB and a fifth of a second in each.
    gc.freeze()
    while True:
        connection, _ = listener.accept()
        if _peer(connection) == os.getuid() and os.fork() == 0:
            listener.close()
            _work(connection)
        connection.close()


def _peer(connection: socket.socket) -> int:
    """Return the user id of the other side."""
    if not hasattr(socket, "SO_PEERCRED"):  # macOS: LOCAL_PEERCRED of level 0, a struct xucred
        return int(struct.unpack("2I", connection.getsockopt(0, 1, 76)[:8])[1])
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[1])


def _work(connection: socket.socket) -> None:
    """Be the process that the shim stands for; does not return."""
    code, journal = 1, 2
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        size, outputs, _, _ = socket.recv_fds(connection, 4, 2)
        left = int.from_bytes(size, "big")
        if len(size) != 4 or len(outputs) != 2 or left > _LONGEST_TASK:
            os._exit(2)
        text = b""
        while len(text) < left and (more := connection.recv(left - len(text))):
            text += more
        task = json.loads(text)
        journal = os.dup(2)
        for number, output in zip((1, 2), outputs, strict=True):
            os.dup2(output, number)
        os.environ.clear()
        os.environ.update(task["environment"])
        os.chdir(task["folder"])
        sys.argv = task["argv"]
        threading.Thread(target=_end_with, args=(connection,), daemon=True).start()
        from flwr.supernode.cli import flwr_clientapp

        flwr_clientapp()
        code = 0
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os.write(journal, _used())
        try:
            connection.sendall(bytes([code & 0xFF]))
        finally:
            os._exit(code & 0xFF)


def _used() -> bytes:
    """Return a line on what this message took, for the warm process's own output."""
    times = os.times()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return f"warm: message: {times.user + times.system:.2f} s of processor time, {peak:.0f} MB\n".encode()


def _end_with(connection: socket.socket) -> None:
    """End when the shim has gone: it was killed in our place."""
    if not connection.recv(1):
        os._exit(137)


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
