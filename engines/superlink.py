"""What engines with a SuperLink of their own share: the `flwr` command, following a run, ending processes.

The run's own summary decides success. ``flwr run`` exits with 0 even when the ServerApp crashed, and an
overloaded machine can mark a finished run as failed.

One file, long as it is: all that is done with Flower's commands and their processes.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from engines.diagnose import trouble
from engines.process_table import descendants
from protocol.interrupts import request
from protocol.own_files import for_other_processes
from records.ownership import KILLED, RUNNING, SUMMARY, is_over, read_summary, settle
from records.recorder import write_json
from schema import ConfigError, build, path_keys
from server_app.run import LOG_FILE, STOP_FILE, RunFailedError
from server_app.settings import Settings, flatten
from server_app.settings.overrides import joined, override

log = logging.getLogger(__name__)

CONNECTION = "airflower"
START_SECONDS = 90.0
_STATUS_SECONDS = 5.0  # after which a run's folder, and then Flower, are asked whether it is still at work
_STATUS_MOST_SECONDS = 60.0  # between two questions to Flower; each costs two seconds of a processor
_STOP_SECONDS = 60.0  # a run that is told to stop has so long to store its last round


def app_folder(scratch: Path) -> Path:
    """Return the folder that `flwr run` packs: the clone, or, where there is none, a copy in `scratch`."""
    root = Path(__file__).resolve().parents[1]
    project = root / "pyproject.toml"
    if project.is_file() and tomllib.loads(project.read_text())["project"]["name"] == "airflower":
        return root
    project = Path(__file__).with_name("pyproject.toml")  # the wheel brings the clone's
    patterns = tomllib.loads(project.read_text())["tool"]["flwr"]["app"]["fab-include"]
    made = scratch / "app"
    made.mkdir()
    shutil.copy(project, made)
    for pattern in patterns:
        if pattern.startswith("/"):  # a single file of the clone: the wheel brings it beside this module
            shutil.copy(Path(__file__).with_name(pattern[1:]), made)
            continue
        for source in root.glob(pattern):
            target = made / source.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
    return made


class Flwr:
    """The `flwr` command against our own SuperLink.

    Args:
        command: its path.
        folder: its working directory.
        environment: its environment; the Flower home is in it.
        address, trust: of the SuperLink and its CA, to say what is wrong with the connection; "": no TLS.
        connection: its name in the Flower home; "": the default there.
    """

    def __init__(
        self,
        command: Path,
        folder: Path,
        environment: dict[str, str],
        *,
        address: str = "",
        trust: Path | None = None,
        connection: str = CONNECTION,
    ) -> None:
        self._address, self._trust = address, trust
        self._connection = (connection,) if connection else ()
        self._command = command
        self._folder = folder
        self._environment = environment

    def submit(
        self,
        app: Path,
        job: Sequence[str] | Settings,
        folder: Path,
        scratch: Path,
        *,
        federation: str = "",
    ) -> str:
        """Submit the app with a job and return the run's id.

        Args:
            app: the source tree.
            job: Hydra overrides, which the ServerApp composes; or settings, which it takes as they are.
            folder: where the ServerApp leaves its records.
            scratch: a folder for the run-config file.
            federation: settings of Flower's simulation, or "".

        Raises:
            RunFailedError: if the SuperLink does not accept it.
        """
        run_config = scratch / "run-config.toml"
        described = (
            {"settings": json.dumps(job.to_dict())}
            if isinstance(job, Settings)
            else {"overrides": joined(job)}
        )
        values = {**described, "out-dir": str(folder)}
        text = "".join(f"{name} = {toml_text(value)}\n" for name, value in values.items())
        run_config.write_text(text, encoding="utf-8")
        simulation = ("--federation-config", federation) if federation else ()
        answer = self._json("run", str(app), *self._connection, "--run-config", str(run_config), *simulation)
        if not answer.get("success"):
            raise RunFailedError(f"`flwr run` could not submit the run: {answer}")
        return str(answer["run-id"])

    def register(self, public_key: Path, name: str) -> str:
        """Register a SuperNode's public key and return the id that its node will have.

        Raises:
            RunFailedError: if the SuperLink does not accept it.
        """
        answer = self._json("supernode", "register", str(public_key), *self._connection, "--name", name)
        if not answer.get("success"):
            raise RunFailedError(f"`flwr supernode register` did not take {public_key.name}: {answer}")
        return str(answer["node-id"])

    def unregister(self, node: str) -> None:
        """Have a SuperNode refused from now on; its key cannot be registered again.

        Raises:
            RunFailedError: if the SuperLink does not do it.
        """
        answer = self._json("supernode", "unregister", node, *self._connection)
        if answer.get("success"):
            return
        # An answer may be lost, and the command be given again: what counts is how the node stands now.
        left = [one for one in self.nodes() if one["status"] != "unregistered"]
        if node in [one["node-id"] for one in left]:
            raise RunFailedError(f"`flwr supernode unregister` did not take node {node}: {answer}")

    def nodes(self) -> list[dict[str, str]]:
        """Return what the SuperLink knows of each SuperNode, its ``node-id`` and ``status`` among it.

        Raises:
            RunFailedError: if it does not say.
        """
        answer = self._json("supernode", "list", *self._connection)
        if not answer.get("success"):
            raise RunFailedError(f"`flwr supernode list` failed: {answer.get('error') or answer}")
        return [{str(name): str(value) for name, value in node.items()} for node in answer["nodes"]]

    def run_facts(self, run_id: str) -> dict[str, Any]:
        """Return what the SuperLink knows of a run, its network traffic among it."""
        return dict((self._json("list", *self._connection, "--run-id", run_id).get("runs") or [{}])[0])

    def answers(self) -> str:
        """Return "" if the SuperLink answers, else what is wrong."""
        answer = self._json("list", *self._connection)
        return "" if answer.get("success") else str(answer.get("error") or answer)

    def status(self, run_id: str) -> tuple[str, str]:
        """Return the run's status and its details."""
        facts = self.run_facts(run_id)
        return str(facts.get("status", "")), str(facts.get("status-details", ""))

    def log(self, run_id: str) -> str:
        """Return the last lines of what the app printed."""
        result = self._call("log", run_id, *self._connection, "--show")
        lines = [line for line in result.stdout.splitlines() if line.strip() and "HTTP Request" not in line]
        return "\n".join(lines[-30:])

    def stop(self, run_id: str) -> None:
        """Ask the SuperLink to stop the run."""
        self._call("stop", run_id, *self._connection)

    def _json(self, *arguments: str) -> dict[str, Any]:
        result = self._call(*arguments, "--format", "json")
        try:
            answer = json.loads(result.stdout)
        except json.JSONDecodeError:
            answer = {"success": False, "error": (result.stdout + result.stderr).strip()[-2000:]}
        if not isinstance(answer, dict):
            return {}
        failed = answer.get("success") is False and self._address
        if failed and (reason := trouble(self._address, self._trust)):
            return {"success": False, "error": reason}
        return answer

    def _call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(self._command), *arguments]
        try:
            return subprocess.run(
                command,
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=START_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:  # a busy machine, or a SuperLink that has just gone
            return subprocess.CompletedProcess(command, 1, "", f"no answer within {START_SECONDS:g} s")


def follow(
    flwr: Flwr,
    run_id: str,
    superlink: subprocess.Popen[bytes] | None,
    folder: Path,
    watch: Callable[[], None] = lambda: None,
    *,
    shown: int = 0,
) -> dict[str, Any]:
    """Log the run's own lines as they come and return its summary; `watch` is called now and then.

    Args:
        flwr: asks its SuperLink.
        run_id: of the run.
        superlink: its process, if it is ours.
        folder: of the run.
        watch: called now and then.
        shown: bytes of the run's log that have been shown before.

    Raises:
        RunFailedError: if the run does not complete.
    """
    next_look = next_question = time.monotonic() + _STATUS_SECONDS
    pause, over = _STATUS_SECONDS, ""
    while True:
        before, shown = shown, _show(folder / LOG_FILE, shown)
        if shown > before:  # it is at work
            pause = _STATUS_SECONDS
            next_question = time.monotonic() + pause
        if (summary := finished(folder)) is not None:
            _show(folder / LOG_FILE, shown)
            if summary["status"] == "completed":
                return summary
            raise RunFailedError(str(summary.get("reason", "no reason given")))
        if over:
            raise RunFailedError(f"the ServerApp ended without a result ({over})\n{flwr.log(run_id)}")
        if superlink is not None and superlink.poll() is not None:
            raise RunFailedError(f"the SuperLink died (exit code {superlink.returncode}); see superlink.log")
        if time.monotonic() > next_look:
            settle(folder)  # where the guard of the ServerApp was killed with it
            next_look = time.monotonic() + _STATUS_SECONDS
        if time.monotonic() > next_question:
            status, details = flwr.status(run_id)
            if status.startswith("finished"):
                over = f"{status}: {details}"  # one more look at the summary before giving up
            pause = min(2 * pause, _STATUS_MOST_SECONDS)
            next_question = time.monotonic() + pause
        watch()
        time.sleep(0.2)


def log_size(folder: Path) -> int:
    """Return how many bytes the log of a run has: what was shown before, where it goes on in place."""
    path = folder / LOG_FILE
    return path.stat().st_size if path.is_file() else 0


def _show(path: Path, shown: int) -> int:
    """Log the complete lines of a growing file from position `shown` on; return the new position."""
    if not path.is_file():
        return shown
    with path.open("rb") as file:
        file.seek(shown)
        text = file.read()
    end = text.rfind(b"\n") + 1
    for line in text[:end].decode(errors="replace").splitlines():
        log.info("%s", line)
    return shown + end


def finished(folder: Path) -> dict[str, Any] | None:
    """Return the run's summary once it is final."""
    summary = read_summary(folder)
    return dict(summary) if is_over(summary) else None


def stop_run(folder: Path, signal_: KeyboardInterrupt) -> None:
    """Have the ServerApp of a folder leave its last finished round as a checkpoint, if it is at work."""
    if finished(folder) is not None or not (folder / SUMMARY).is_file():
        return
    request(folder / STOP_FILE, getattr(signal_, "number", signal.SIGINT))
    deadline = time.monotonic() + _STOP_SECONDS
    while time.monotonic() < deadline and finished(folder) is None:
        time.sleep(0.1)


def tell_the_end(folder: Path) -> None:
    """See that the summary of a run that is over does not call it running."""
    summary = read_summary(folder)
    if summary.get("status") == RUNNING:
        reason = "its ServerApp ended without having said how"
        write_json(folder / SUMMARY, {**summary, "status": KILLED, "reason": reason})
    (folder / STOP_FILE).unlink(missing_ok=True)


def wait_for(
    port: int,
    process: subprocess.Popen[bytes],
    log_file: Path,
    host: str = "127.0.0.1",
    *,
    trust: Path | None = None,
) -> None:
    """Wait until a process listens on a port of this machine.

    Args:
        port: the port.
        process: is to listen on it.
        log_file: what it has to say if it does not.
        host: its address.
        trust: the CA of its certificate: what another process answers on that port does not count.

    Raises:
        RunFailedError: with the end of its log, if it does not.
    """
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        if trust is not None:
            if not trouble(f"{host}:{port}", trust):
                return
        else:
            with socket.socket() as probe:
                probe.settimeout(1)
                if probe.connect_ex((host, port)) == 0:
                    return
        time.sleep(0.2)
    code = process.poll()
    why = f"it did not listen within {START_SECONDS:g} s" if code is None else f"it ended with status {code}"
    text = log_file.read_text(errors="replace")[-2000:]
    raise RunFailedError(f"{log_file.stem} did not start on {host}:{port}, {why}:\n{text}")


def kill_all(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and what it started, in whatever sessions, at once: what a power cut leaves."""
    for pid in [process.pid, *descendants(process.pid)]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def absolute(settings: Settings, overrides: Sequence[str]) -> list[str]:
    """Return the overrides with paths that hold in any working directory."""
    held = flatten(with_absolute_paths(settings).to_dict())
    return [*overrides, *(override(name, held[name]) for name in path_keys(Settings) if held[name])]


def with_absolute_paths(settings: Settings) -> Settings:
    """Return settings whose paths hold in any working directory."""
    tree = settings.to_dict()
    for name in path_keys(Settings):
        *groups, last = name.split(".")
        node = tree
        for group in groups:
            node = node[group]
        if node[last]:
            node[last] = str(Path(node[last]).expanduser().resolve())
    return build(Settings, tree)


def toml_text(text: str) -> str:
    """Return a text as TOML writes it: as JSON, but for letters beyond the first plane and DEL."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def commands() -> Path:
    """Return the folder of Flower's commands."""
    beside = Path(sys.executable).parent
    if (beside / "flower-superlink").is_file():
        return beside
    found = shutil.which("flower-superlink")
    if found is None:
        raise ConfigError("engine = flower needs Flower's command flower-superlink on the PATH")
    return Path(found).parent


def free_ports(number: int) -> list[int]:
    """Return that many distinct TCP ports that nobody listens on."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(number)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def environment(commands_folder: Path, home: Path) -> dict[str, str]:
    """Return the environment of Flower's processes: their own home; nothing fetched, nothing reported."""
    return {
        **os.environ,
        **for_other_processes(),
        "FLWR_HOME": str(home),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "PATH": os.pathsep.join([str(commands_folder), os.environ.get("PATH", "")]),
    }
