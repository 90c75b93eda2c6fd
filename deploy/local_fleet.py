"""A whole fleet on this machine: a SuperLink with TLS, SuperNodes with keys, real processes, real sockets.

Everything listens on loopback, on free ports, with a Flower home and an empty working directory of its
own for each process, so that neither another fleet nor code lying around can mix in. As on real machines the
nodes reach the gate only (see `gate`), and the SuperLink listens on loopback. Nothing stays behind when the
`LocalFleet` is closed, or when its process is killed. Tests give nodes network namespaces and links.

One file, long as it is: one fleet from its start to its end.
"""

from __future__ import annotations

import logging
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from deploy import gate, warm
from deploy.credentials import Credentials, make_credentials
from deploy.supernode import Waits
from engines.flower_command import start_command
from engines.superlink import (
    CONNECTION,
    Flwr,
    app_folder,
    commands,
    environment,
    follow,
    free_ports,
    kill_all,
    log_size,
    stop_run,
    wait_for,
)
from protocol.guard import Guard, end_marked
from records.ownership import SUMMARY
from server_app.settings import compose_settings

log = logging.getLogger(__name__)

NodeConfig = Mapping[str, str | int | float | bool]

# SuperExec looks for work this often, in s (Flower's default is 1).
_TASK_POLL_SECONDS = "0.1"
# Marks each of the fleet's processes with what it starts, which may outlive it.
_PART = "AIRFLOWER_PART"


class LocalFleet:
    """A SuperLink and its SuperNodes.

    Args:
        scratch: an empty folder for keys, homes and working directories.
        num_nodes: SuperNodes whose keys are made and registered.
        logs: folder of the processes' logs, ``superlink.log`` and ``node-000.log`` ...
        state_dir: folder below which the devices keep their personal parts; default: in `scratch`.
        host: address of this machine on which the gate listens for nodes.
        warm_start: whether the nodes share a process that has torch imported already (see `warm`).
        throw_away: whether `scratch` is removed in the end, also if this process is killed.
        allowed_users: further users of this machine that may use the SuperLink, such as a reverse proxy's.

    Attributes:
        port: of the gate, for nodes.
        control_port: of the SuperLink, on loopback: for the operator.
    """

    def __init__(
        self,
        scratch: Path,
        num_nodes: int,
        logs: Path,
        *,
        state_dir: Path | None = None,
        host: str = "127.0.0.1",
        warm_start: bool = True,
        throw_away: bool = False,
        allowed_users: Sequence[str] = (),
    ) -> None:
        if num_nodes < 1:
            raise ValueError(f"num_nodes = {num_nodes}; a fleet has at least 1 node")
        self.num_nodes = num_nodes
        self.scratch, self.logs = scratch, logs
        self._allowed_users = allowed_users
        self.state_dir = state_dir or scratch / "state"
        self.host = host
        self.credentials: Credentials = make_credentials(scratch / "keys", nodes=num_nodes, hosts=(host,))
        self.port, self.control_port = free_ports(2)
        self._guard = Guard(*([scratch] if throw_away else []))
        self.nodes: dict[int, subprocess.Popen[bytes]] = {}
        self.run_id = ""
        self._commands = commands()
        self._all: list[subprocess.Popen[bytes]] = []
        self._parts: dict[int, str] = {}  # process id -> mark of what it has started
        self._tended: dict[str, _Tended] = {}
        home, folder = self._places("operator")
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "{CONNECTION}"\n[superlink.{CONNECTION}]\n'
            f'address = "127.0.0.1:{self.control_port}"\n'
            f'root-certificates = "{self.credentials.ca_certificate}"\n'
        )
        self.flwr = Flwr(
            self._commands / "flwr",
            folder,
            {**environment(self._commands, home), **self._guard.variables},
            address=f"127.0.0.1:{self.control_port}",
            trust=self.credentials.ca_certificate,
        )
        try:
            self._node_variables = self._start_warm_server() if warm_start else {}
            self.superlink = self.start_superlink()
            self._start_gate()
            for index in range(num_nodes):
                self.flwr.register(self._public_key(index), f"node-{index:03d}")
        except BaseException:  # nobody has the fleet yet who could close it
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End every process of the fleet, and wait until they are gone."""
        self._guard.close()
        for process in self._all:
            process.wait()
        self._all.clear()
        self.nodes.clear()

    def start_superlink(self) -> subprocess.Popen[bytes]:
        """Start the SuperLink, again after it was ended: runs, keys and node ids are in its database.

        Raises:
            RunFailedError: if it does not listen in time.
        """
        home, folder = self._places("superlink")
        keys = self.credentials
        self.superlink = self._start(
            [
                *start_command("flower-superlink", self._allowed_users),
                *("--ssl-ca-certfile", str(keys.ca_certificate)),
                *("--ssl-certfile", str(keys.server_certificate)),
                *("--ssl-keyfile", str(keys.server_key)),
                *("--enable-supernode-auth", "--disable-runtime-dependency-installation"),
                *("--host", "127.0.0.1", "--port", str(self.control_port)),
                *("--isolation", "subprocess", "--database", str(home / "state.db")),
            ],
            home,
            folder,
            self.logs / "superlink.log",
        )
        wait_for(self.control_port, self.superlink, self.logs / "superlink.log", trust=keys.ca_certificate)
        return self.superlink

    def start_node(
        self,
        index: int,
        config: NodeConfig | None = None,
        *,
        key: Path | None = None,
        tls: bool = True,
        superlink_port: int | None = None,
        name: str | None = None,
        kept_running: bool = False,
        tended: bool = False,
        inside: Sequence[str] = (),
    ) -> subprocess.Popen[bytes]:
        """Start SuperNode `index` (again, if it has ended).

        Args:
            index: its device index, unless `config` says otherwise.
            config: more of its node-config.
            key: its private key; default: the registered one.
            tls: whether it speaks TLS; without, it has no key either.
            superlink_port: a port of this machine that leads to the SuperLink; default: the gate's.
            name: names its log and its folders; default: by its index.
            kept_running: whether `deploy/supernode` starts it again when it ends.
            tended: whether `tend` does.
            inside: a command that runs its arguments in a network of their own, such as ``ip netns exec
                NAME``; the node then has a warm process of its own. Implies `kept_running`.
        """
        name = name or f"node-{index:03d}"
        home, folder = self._places(name)
        values: dict[str, str | int | float | bool] = {
            "partition-id": index,
            "num-partitions": self.num_nodes,
            "state-dir": str(self.state_dir / name),
            **(config or {}),
        }
        security = (
            (
                *("--root-certificates", str(self.credentials.ca_certificate)),
                *("--auth-supernode-private-key", str(key or self.credentials.node_key(index))),
            )
            if tls
            else ("--insecure",)
        )
        command = start_command("flower-supernode") if tended else ["flower-supernode"]
        if kept_running or inside:
            command = [*inside, sys.executable, str(Path(__file__).with_name("supernode"))]
        process = self._start(
            [
                *command,
                *security,
                *("--superlink", f"{self.host}:{superlink_port or self.port}"),
                *("--host", "127.0.0.1", "--port", str(free_ports(1)[0])),
                *("--isolation", "subprocess"),
                *("--node-config", " ".join(f"{key}={_toml(value)}" for key, value in values.items())),
            ],
            home,
            folder,
            self.logs / f"{name}.log",
            {} if inside else self._node_variables,
        )
        if name == f"node-{index:03d}":
            self.nodes[index] = process
        if tended:

            def again() -> subprocess.Popen[bytes]:
                return self.start_node(
                    index, config, key=key, tls=tls, superlink_port=superlink_port, name=name, tended=True
                )

            waits = self._tended[name].waits if name in self._tended else Waits()
            self._tended[name] = _Tended(process, again, waits)
        return process

    def kill_node(self, index: int) -> None:
        """Kill SuperNode `index` with everything that it started, as a power cut does."""
        process = self.nodes.pop(index)
        kill_all(process)
        process.wait(60)

    def kill_superlink(self) -> None:
        """Kill the SuperLink and the ServerApps that it runs, as a power cut does."""
        kill_all(self.superlink)
        self.superlink.wait(60)

    def bring_up(self) -> None:
        """Start the SuperLink again if it has ended, and end what it has left behind.

        Raises:
            RunFailedError: if it does not start.
        """
        if self.superlink.poll() is not None:
            self._end_rest(self.superlink)  # a ServerApp without its SuperLink can do nothing more
            log.warning("the SuperLink has ended; starting it again")
            self.start_superlink()
        if self.run_id:
            self.flwr.stop(self.run_id)  # what the SuperLink may still hold for running

    def at_work(self, folder: Path) -> bool:
        """Return False: what works for this fleet ends with it."""
        return False

    def tend(self) -> None:
        """Start the gate, the warm process and tended nodes again if they have ended."""
        for name, one in list(self._tended.items()):
            if one.due():
                log.warning("%s has ended (exit code %s); starting it again", name, one.process.returncode)
                self._end_rest(one.process)
                one.started = time.monotonic()
                one.process = one.again()
                one.ended = None

    def submit(self, overrides: Sequence[str], folder: Path) -> str:
        """Submit the app; its records go to `folder`. Return the run's id.

        Raises:
            ConfigError: for settings that the app would refuse; nothing is submitted then.
            RunFailedError: if the SuperLink does not accept it.
        """
        overrides = [f"fleet.num_devices={self.num_nodes}", *overrides]
        compose_settings(overrides)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SUMMARY).unlink(missing_ok=True)
        with tempfile.TemporaryDirectory(dir=self.scratch) as folder_of_app:
            app = app_folder(Path(folder_of_app))
            self.run_id = self.flwr.submit(app, overrides, folder.resolve(), self.scratch)
        return self.run_id

    def run(
        self, overrides: Sequence[str], folder: Path, watch: Callable[[], None] = lambda: None
    ) -> dict[str, Any]:
        """Submit the app, log its progress, and return its summary.

        Raises:
            RunFailedError: if the run does not complete.
        """
        shown = log_size(folder) if any(given.startswith("resume=") for given in overrides) else 0
        run_id = self.submit(overrides, folder)
        try:
            return follow(self.flwr, run_id, self.superlink, folder, watch, shown=shown)
        except KeyboardInterrupt as signal:  # while the nodes are there to store their parts
            stop_run(folder, signal)
            raise

    def _start_gate(self) -> None:
        keys = self.credentials
        options = gate.GateOptions(
            self.host,
            self.port,
            f"127.0.0.1:{self.control_port}",
            keys.server_certificate,
            keys.server_key,
            keys.ca_certificate,
        )
        home, folder = self._places("gate")
        command = [sys.executable, "-I", gate.__file__, *gate.arguments(options)]

        def start() -> subprocess.Popen[bytes]:
            return self._start(command, home, folder, self.logs / "gate.log")

        process = start()
        self._tended["gate"] = _Tended(process, start)
        wait_for(self.port, process, self.logs / "gate.log", self.host, trust=keys.ca_certificate)

    def _start_warm_server(self) -> dict[str, str]:
        folder = self.scratch / "warm"
        variables = warm.environment(folder, self._commands)
        home, neutral = self._places("warm-server")
        command = [sys.executable, "-I", str(Path(warm.__file__)), variables["AIRFLOWER_WARM_SOCKET"]]

        def start() -> subprocess.Popen[bytes]:
            return self._start(command, home, neutral, self.logs / "warm.log")

        self._tended["warm process"] = _Tended(start(), start)
        return variables

    def _start(
        self,
        command: Sequence[str],
        home: Path,
        folder: Path,
        output: Path,
        variables: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[bytes]:
        output.parent.mkdir(parents=True, exist_ok=True)
        part = secrets.token_hex(16)
        settings = {
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": _TASK_POLL_SECONDS,
            **environment(self._commands, home),
            **(variables or {}),
            **self._guard.variables,
            _PART: part,
        }
        with output.open("ab") as stream:
            process = subprocess.Popen(
                [self._found(command[0]), *command[1:]],
                cwd=folder,
                env=settings,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._parts[process.pid] = part
        self._all = [*(one for one in self._all if one.poll() is None), process]
        return process

    def _end_rest(self, process: subprocess.Popen[bytes]) -> None:
        """End what a process that has ended has left behind."""
        if part := self._parts.pop(process.pid, ""):
            end_marked(part, 0.0, _PART)

    def _found(self, command: str) -> str:
        own = self._commands / command
        return str(own) if own.is_file() else command

    def _places(self, name: str) -> tuple[Path, Path]:
        """Return the Flower home and the working directory of a process."""
        home, folder = self.scratch / name / "home", self.scratch / name / "cwd"
        for path in (home, folder):
            path.mkdir(parents=True, exist_ok=True)
        return home, folder

    def _public_key(self, index: int) -> Path:
        private = self.credentials.node_key(index)
        return private.with_name(f"{private.name}.pub")


@dataclass
class _Tended:
    """A process that is started again when it has ended.

    Attributes:
        process: of which the last start has made it.
        again: starts it again.
        waits: how long to wait before each start.
        started: when it was started last.
        ended: when its next start is due, once it was found to have ended.
    """

    process: subprocess.Popen[bytes]
    again: Callable[[], subprocess.Popen[bytes]]
    waits: Waits = field(default_factory=Waits)
    started: float = field(default_factory=time.monotonic)
    ended: float | None = None

    def due(self) -> bool:
        """Return whether it is to be started again now."""
        if self.process.poll() is None:
            return False
        now = time.monotonic()
        if self.ended is None:
            self.ended = now + self.waits.after(now - self.started)
        return now >= self.ended


def _toml(value: str | int | float | bool) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)
