"""Flower's own simulation as an engine: a private SuperLink, `flwr run`, and an honest exit code.

What a bare ``flwr run .`` leaves to chance is settled here:

- The SuperLink is ours: its own state folder, port and lifetime, so no leftover of another run (its
  environment, working directory or code) is reused, and nothing stays behind.
- It starts in an empty folder: Ray's workers put that folder ahead of the app on ``sys.path``, and a
  folder with packages of the same names would shadow the app's.
- Runtime installation of dependencies is off: it would fetch other packages than those installed.
- The run's own summary decides success. ``flwr run`` exits with 0 even when the ServerApp crashed, and
  an overloaded machine can mark a finished run as failed.
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
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from server_app.run import LOG_FILE, SUMMARY, RunFailedError
from server_app.schema import ConfigError
from server_app.settings import Settings

log = logging.getLogger(__name__)

_CONNECTION = "airflower"
_START_SECONDS = 90.0
_STATUS_SECONDS = 5.0
_GRACE_SECONDS = 20.0


def run_flower(settings: Settings, overrides: Sequence[str], folder: Path) -> dict[str, Any]:
    """Run a job through `flwr run` on a private SuperLink and return its summary.

    Args:
        settings: the checked settings.
        overrides: the Hydra overrides that gave them; the ServerApp composes them again.
        folder: where the records go.

    Raises:
        ConfigError: if the app's source tree or Flower's commands cannot be found.
        RunFailedError: if the SuperLink does not start or the run does not complete.
    """
    app, commands = app_folder(), _commands()
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SUMMARY).unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="airflower-") as scratch:
        home, neutral = Path(scratch, "home"), Path(scratch, "cwd")
        home.mkdir()
        neutral.mkdir()
        port = _free_port()
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "{_CONNECTION}"\n'
            f'[superlink.{_CONNECTION}]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
        )
        environment = {
            **os.environ,
            "FLWR_HOME": str(home),
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "RAY_DEDUP_LOGS": "0",
            "PATH": os.pathsep.join([str(commands), os.environ.get("PATH", "")]),
        }
        with (folder / "superlink.log").open("wb") as output:
            superlink = subprocess.Popen(
                [
                    str(commands / "flower-superlink"),
                    *("--insecure", "--simulation", "--disable-runtime-dependency-installation"),
                    *("--host", "127.0.0.1", "--port", str(port)),
                ],
                cwd=neutral,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        flwr = _Flwr(commands / "flwr", neutral, environment)
        run_id = ""
        try:
            _wait_for(port, superlink, folder)
            run_id = flwr.submit(app, settings, _absolute(settings, overrides), folder, Path(scratch))
            return _follow(flwr, run_id, superlink, folder)
        finally:
            if run_id and not _finished(folder):
                flwr.stop(run_id)
            _end(superlink)


def app_folder() -> Path:
    """Return the source tree that `flwr run` packs.

    Raises:
        ConfigError: if only the installed packages are there.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / "pyproject.toml").is_file():
        raise ConfigError(
            "engine = flower needs airflower's source tree (with its pyproject.toml) for `flwr run`; "
            "install it with `pip install -e .` from a clone, or use engine=inprocess"
        )
    return root


class _Flwr:
    """The `flwr` command against the private SuperLink."""

    def __init__(self, command: Path, folder: Path, environment: dict[str, str]) -> None:
        self._command = command
        self._folder = folder
        self._environment = environment

    def submit(
        self, app: Path, settings: Settings, overrides: Sequence[str], folder: Path, scratch: Path
    ) -> str:
        """Submit the app and return the run's id."""
        run_config = scratch / "run-config.toml"
        text = " ".join(_quoted(override) for override in overrides)
        values = {"overrides": text, "out-dir": str(folder)}
        lines = [f"{name} = {json.dumps(value)}\n" for name, value in values.items()]
        run_config.write_text("".join(lines))
        workers = settings.engine.workers or os.cpu_count() or 1
        federation = (
            f"num-supernodes={settings.fleet.num_devices} client-resources-num-cpus=1 "
            f"init-args-num-cpus={workers}"
        )
        answer = self._json(
            "run", str(app), _CONNECTION, "--run-config", str(run_config), "--federation-config", federation
        )
        if not answer.get("success"):
            raise RunFailedError(f"`flwr run` could not submit the run: {answer}")
        return str(answer["run-id"])

    def status(self, run_id: str) -> tuple[str, str]:
        """Return the run's status and its details."""
        runs = self._json("list", _CONNECTION, "--run-id", run_id).get("runs") or [{}]
        return str(runs[0].get("status", "")), str(runs[0].get("status-details", ""))

    def log(self, run_id: str) -> str:
        """Return the last lines of what the app printed."""
        result = self._call("log", run_id, _CONNECTION, "--show")
        lines = [line for line in result.stdout.splitlines() if line.strip() and "HTTP Request" not in line]
        return "\n".join(lines[-30:])

    def stop(self, run_id: str) -> None:
        """Ask the SuperLink to stop the run."""
        self._call("stop", run_id, _CONNECTION)

    def _json(self, *arguments: str) -> dict[str, Any]:
        result = self._call(*arguments, "--format", "json")
        try:
            answer = json.loads(result.stdout)
        except json.JSONDecodeError:
            return {"success": False, "error": (result.stdout + result.stderr).strip()[-2000:]}
        return answer if isinstance(answer, dict) else {}

    def _call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self._command), *arguments],
            cwd=self._folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_START_SECONDS,
            check=False,
        )


def _follow(flwr: _Flwr, run_id: str, superlink: subprocess.Popen[bytes], folder: Path) -> dict[str, Any]:
    """Print the run's own log as it grows, until the run is over."""
    shown, next_status, over = 0, time.monotonic() + _STATUS_SECONDS, ""
    while True:
        shown = _show(folder / LOG_FILE, shown)
        if (summary := _finished(folder)) is not None:
            _show(folder / LOG_FILE, shown)
            if summary["status"] == "completed":
                return summary
            raise RunFailedError(str(summary.get("reason", "no reason given")))
        if over:
            raise RunFailedError(f"the ServerApp ended without a result ({over})\n{flwr.log(run_id)}")
        if superlink.poll() is not None:
            raise RunFailedError(f"the SuperLink died (exit code {superlink.returncode}); see superlink.log")
        if time.monotonic() > next_status:
            status, details = flwr.status(run_id)
            if status.startswith("finished"):
                over = f"{status}: {details}"  # one more look at the summary before giving up
            next_status = time.monotonic() + _STATUS_SECONDS
        time.sleep(0.2)


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


def _finished(folder: Path) -> dict[str, Any] | None:
    """Return the run's summary once it is final."""
    path = folder / SUMMARY
    if not path.is_file():
        return None
    summary = json.loads(path.read_text())
    return summary if summary.get("status") in ("completed", "failed") else None


def _wait_for(port: int, superlink: subprocess.Popen[bytes], folder: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if superlink.poll() is not None:
            break
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    text = (folder / "superlink.log").read_text(errors="replace")[-2000:]
    raise RunFailedError(f"the SuperLink did not start on 127.0.0.1:{port}:\n{text}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the SuperLink and what it started: politely, then not."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
        except ProcessLookupError:
            return
        try:
            process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            continue


def _absolute(settings: Settings, overrides: Sequence[str]) -> list[str]:
    """Return the overrides with paths that hold in any working directory."""
    paths = {"resume": settings.resume, "dataset.root": settings.dataset.root}
    extra = [f"{name}={Path(path).expanduser().resolve()}" for name, path in paths.items() if path]
    return [*overrides, *extra]


def _quoted(override: str) -> str:
    return "'" + override.replace("'", "'\"'\"'") + "'"


def _commands() -> Path:
    """Return the folder of Flower's commands."""
    beside = Path(sys.executable).parent
    if (beside / "flower-superlink").is_file():
        return beside
    found = shutil.which("flower-superlink")
    if found is None:
        raise ConfigError("engine = flower needs Flower's command flower-superlink on the PATH")
    return Path(found).parent


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
