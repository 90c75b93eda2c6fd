"""Keeps a SuperNode running: `deploy/supernode` is ``flower-supernode`` that does not stay down.

A SuperNode ends where an operator would simply start it again: the SuperLink still lists the one that was
killed a moment ago and refuses its successor (exit code 305), its key is not registered yet, or a connection
broke in the middle of a TLS handshake. In the last case Flower's own command does not even end: its work is
over, and a server thread keeps the process; here it ends when Flower's main function does, and only its own
user's processes reach it (see `engines.flower_command`). It is started
again after a wait that doubles up to a quarter of a minute; one that had been up for a while starts over with
a short wait. What no new start mends (a wrong argument, an unreadable key, another Flower version) ends it.

Before it is started, what its operator has set is looked at: a picture folder that is of no use, a
missing index or a taken port is said here, not in the third failed round. Without ``--port`` it
gets a free one, so that several nodes may share a machine. Beside it runs the warm process (see `warm`),
unless one is there already. However this process ends, nothing of it stays behind (see `protocol.guard`).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from flwr.app import Context, RecordDict
from flwr.common.config import parse_config_args

from client_app.device import device_index
from deploy import warm
from engines.diagnose import trouble
from engines.flower_command import start_command
from engines.superlink import commands, free_ports
from engines.temporary import SOCKET, short_folder
from protocol.fields import MessageError
from protocol.guard import Guard
from schema import ConfigError
from task.datasets import DatasetUnavailableError
from task.datasets.image_folder import describe_images

_FIRST_WAIT, _LONGEST_WAIT = 1.0, 15.0
_SETTLED_SECONDS = 60.0

_NOT_CONNECTED = 305  # Flower's code; the reason that it gives is not always the true one
_USUAL_PORT = 9094
# Exit codes of Flower for what a new start does not mend; argparse ends with 2 for a wrong argument.
_HOPELESS = frozenset({2, 302, 303, 304, 600, 602, 603, 604, 605, 606})
_EXIT_CODE = re.compile(rb"Exit Code: (\d+)")


@dataclass(frozen=True)
class NodeOptions:
    """What this command looks at of the arguments that it hands on."""

    superlink: str
    root_certificates: Path | None
    insecure: bool
    node_config: str
    host: str
    port: int | None

    @staticmethod
    def read(arguments: Sequence[str]) -> NodeOptions:
        """Read them.

        Raises:
            ConfigError: if one is not what it should be.
        """
        parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
        parser.add_argument("--superlink", default="127.0.0.1:8000")
        parser.add_argument("--root-certificates", type=Path)
        parser.add_argument("--insecure", action="store_true")
        parser.add_argument("--node-config", default="")
        parser.add_argument("--host", default="127.0.0.1")
        parser.add_argument("--port", type=int)
        try:
            known, _ = parser.parse_known_args(arguments)
        except argparse.ArgumentError as error:
            raise ConfigError(str(error)) from error
        return NodeOptions(**vars(known))

    def check(self) -> str:
        """Check the node's own settings, and say what is there.

        Raises:
            ConfigError: if one of them is of no use.
        """
        if self.port is not None and not _free(self.host, self.port):
            raise ConfigError(
                f"--port {self.port}: another process has taken it (a second SuperNode on this machine?); "
                "leave the option out, and a free port is chosen"
            )
        if not self.node_config:
            return "no --node-config: the runs of airflower ask for partition-id and num-partitions"
        try:
            config = parse_config_args([self.node_config])
        except (ValueError, SystemExit) as error:
            raise ConfigError(f"--node-config {self.node_config!r}: {error}") from error
        try:
            index, number = device_index(Context(0, 0, config, RecordDict(), {}))
            if not 0 <= index < number:
                raise ConfigError(
                    f"partition-id = {index} and num-partitions = {number} in --node-config; the first "
                    "counts from 0 and must be below the second"
                )
            lines = [f"device {index} of {number}"]
            if images := config.get("data-dir"):
                lines.append(describe_images(str(images)))
        except (MessageError, DatasetUnavailableError) as error:
            raise ConfigError(str(error)) from error
        return "\n".join(lines)

    def port_arguments(self) -> list[str]:
        """Return ``--port`` with a port that is free now, or nothing where the operator has chosen."""
        if self.port is not None:
            return []
        port = _USUAL_PORT if _free(self.host, _USUAL_PORT) else free_ports(1)[0]
        return ["--port", str(port)]

    def trouble(self) -> str:
        """Return what is wrong with the connection to the SuperLink, or ""."""
        return "" if self.insecure else trouble(self.superlink, self.root_certificates)


def with_state_dir(arguments: Sequence[str]) -> tuple[list[str], str]:
    """Return the arguments with a ``state-dir`` in the node-config, and what is to be said of it.

    A node that names none gets a folder of its user's, so that a restart does not lose its personal part; one
    that names "" keeps nothing. Where no folder can be made, nothing is kept either.
    """
    given = list(arguments)
    places = [
        i for i, word in enumerate(given) if word == "--node-config" or word.startswith("--node-config=")
    ]
    if not places:
        return given, ""
    last = places[-1]
    joined = given[last].startswith("--node-config=")
    text = given[last].partition("=")[2] if joined else given[last + 1]
    config = parse_config_args([text])
    if "state-dir" in config:
        return given, ""
    try:
        base = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
        folder = base / "airflower" / f"device-{config['partition-id']}"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(f"{folder} cannot be written")
    except (OSError, RuntimeError, KeyError) as error:
        return given, f"no state-dir, and none can be made ({error}): a restart loses the personal part"
    text = f"{text} state-dir={json.dumps(str(folder), ensure_ascii=False)}"
    given[last if joined else last + 1] = f"--node-config={text}" if joined else text
    return given, f'state-dir = {folder}, by default; state-dir="" keeps the personal part in memory only'


def _free(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


class Waits:
    """How long to wait before each new start."""

    def __init__(self) -> None:
        self._next = _FIRST_WAIT

    def after(self, up_seconds: float) -> float:
        """Return the wait, in s, after a SuperNode that was up for so long."""
        if up_seconds >= _SETTLED_SECONDS:
            self._next = _FIRST_WAIT
        wait, self._next = self._next, min(2 * self._next, _LONGEST_WAIT)
        return wait


def keep_running(arguments: Sequence[str], options: NodeOptions | None = None) -> int:
    """Run ``flower-supernode`` with these arguments until it is stopped.

    `options`, as read from the arguments, say which port it gets and what is wrong with its connection.

    It is stopped by an exception, such as a handler of SIGTERM raises; nothing of it then stays behind.
    It returns only where starting it again is no use: 2.
    """
    found = commands()
    with (
        short_folder("airflower-warm-", SOCKET) as folder,
        Guard(Path(folder)) as guard,
    ):
        variables = {**os.environ, "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
        variables.setdefault("FLWR_SUPEREXEC_TASK_POLL_INTERVAL", "0.1")
        variables |= guard.variables
        variables["PYTHONUNBUFFERED"] = "1"  # its output goes through a pipe, and is to be seen at once
        if "AIRFLOWER_WARM_SOCKET" not in variables:
            variables |= warm.environment(Path(folder), found)
            subprocess.Popen(
                [sys.executable, "-I", warm.__file__, variables["AIRFLOWER_WARM_SOCKET"]],
                env=variables,
                start_new_session=True,
            )
        return _keep([*start_command("flower-supernode"), *arguments], options, variables)


def _keep(command: Sequence[str], options: NodeOptions | None, variables: Mapping[str, str]) -> int:
    waits = Waits()
    while True:
        started = time.monotonic()
        code = _run([*command, *(options.port_arguments() if options else [])], variables)
        if code in _HOPELESS:
            return 2
        if code == _NOT_CONNECTED and options and (reason := options.trouble()):
            print(f"supernode: {reason}", flush=True)
        wait = waits.after(time.monotonic() - started)
        print(f"supernode: ended with {_named(code)}; starting it again in {wait:g} s", flush=True)
        time.sleep(wait)


def _run(command: Sequence[str], variables: Mapping[str, str]) -> int:
    """Run the SuperNode to its end, and return Flower's exit code or, without one, the process's."""
    named: list[int] = []
    with Guard() as guard:  # what it starts holds its pipe and its port, and is to end with it
        process = subprocess.Popen(
            command,
            env={**variables, **guard.variables},
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert process.stdout is not None
        reader = threading.Thread(target=_pass_on, args=(process.stdout, named), daemon=True)
        reader.start()
        code = process.wait()
    reader.join(5.0)
    return named[-1] if named and code else code


def _pass_on(stream: IO[bytes], named: list[int]) -> None:
    """Copy the SuperNode's output to ours, and note the exit code that it names."""
    for line in stream:
        os.write(1, line)
        if match := _EXIT_CODE.search(line):
            named.append(int(match[1]))


def _named(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
