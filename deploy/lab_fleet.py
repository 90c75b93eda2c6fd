"""A fleet whose SuperLink somebody else keeps running: systemd or a container, on this machine.

Its ServerApps outlive the process that submits them. The id of the last run is therefore noted in the run's
folder, so that a supervisor that is started again finds a run at work instead of submitting another one.
"""

from __future__ import annotations

import json
import logging
import os
import time
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from engines.superlink import (
    CONNECTION,
    Flwr,
    app_folder,
    commands,
    environment,
    follow,
    log_size,
    stop_run,
    toml_text,
)
from records.ownership import SUMMARY, holder_of
from records.recorder import write_json
from schema import ConfigError
from server_app.run import RunFailedError

log = logging.getLogger(__name__)

SUBMITTED = "submitted.json"
_PATIENCE_SECONDS = 600.0
_LOOK_SECONDS = 5.0
_COMING = ("pending", "starting", "running")


class LabFleet:
    """The SuperLink of a connection in the Flower home.

    Args:
        superlink: the name of a connection, as ``flwr run . NAME`` knows it, or ``host:port``.
        scratch: an empty folder.
        trust: certificate of the CA, of ``host:port``.

    Attributes:
        run_id: of the last run that was submitted or found; "" before.
    """

    def __init__(self, superlink: str, scratch: Path, trust: Path | None = None) -> None:
        self.scratch = scratch
        self.run_id = ""
        self.flwr = flwr_of(superlink, scratch, trust)
        self._app: Path | None = None

    def bring_up(self) -> None:
        """Wait until the SuperLink answers.

        Raises:
            RunFailedError: if it does not within ten minutes.
        """
        deadline, said = time.monotonic() + _PATIENCE_SECONDS, False
        while reason := self.flwr.answers():
            if time.monotonic() > deadline:
                raise RunFailedError(f"the SuperLink does not answer: {reason}")
            if not said:
                log.warning("the SuperLink does not answer; waiting for it: %s", reason.splitlines()[0])
                said = True
            time.sleep(_LOOK_SECONDS)

    def at_work(self, folder: Path) -> bool:
        """Return whether the run that was submitted last is at work in a folder, or is about to be."""
        self.run_id = self.run_id or _noted(folder)
        if holder_of(folder) is not None:
            return True
        if not self.run_id or (folder / SUMMARY).is_file():
            return False
        return self.flwr.status(self.run_id)[0] in _COMING  # submitted, and not begun

    def run(
        self, overrides: Sequence[str], folder: Path, watch: Callable[[], None] = lambda: None
    ) -> dict[str, Any]:
        """Submit the run, unless it is at work, log its progress and return its summary.

        Raises:
            RunFailedError: if it does not complete.
        """
        shown = log_size(folder) if any(given.startswith("resume=") for given in overrides) else 0
        if self.at_work(folder):
            shown = log_size(folder)
            log.info("run %s is at work; following it", self.run_id or "(of unknown id)")
        else:
            if self.run_id:
                self.flwr.stop(self.run_id)  # what the SuperLink may still hold for running
            folder.mkdir(parents=True, exist_ok=True)
            (folder / SUMMARY).unlink(missing_ok=True)
            if self._app is None:
                self._app = app_folder(self.scratch)
            self.run_id = self.flwr.submit(self._app, overrides, folder, self.scratch)
            write_json(folder / SUBMITTED, {"run-id": self.run_id})
        try:
            return follow(self.flwr, self.run_id, None, folder, watch, shown=shown)
        except KeyboardInterrupt as signal:
            stop_run(folder, signal)
            raise


def flwr_of(superlink: str, folder: Path, trust: Path | None = None) -> Flwr:
    """Return the operator's `flwr` command.

    Args:
        superlink: a connection in the Flower home, or ``host:port``; "": the default of the Flower home.
        folder: an empty one, to work in.
        trust: certificate of the CA, of ``host:port``.

    Raises:
        ConfigError: if there is no such connection, or of an address no such certificate.
    """
    home = Path(os.environ.get("FLWR_HOME", "~/.flwr")).expanduser()
    found = commands()
    if ":" in superlink:
        home, superlink = _home_for(superlink, folder, trust), CONNECTION
    elif trust is not None:
        raise ConfigError("--root-certificates is for --superlink HOST:PORT; a connection has its own")
    elif superlink and superlink not in (known := _connections(home / "config.toml")):
        raise ConfigError(
            f"--superlink {superlink}: no such connection in {home / 'config.toml'} "
            f"({', '.join(known) or 'there is none'}); name one, or give HOST:PORT and --root-certificates"
        )
    return Flwr(found / "flwr", folder, environment(found, home), connection=superlink)


def _home_for(address: str, folder: Path, trust: Path | None) -> Path:
    """Make a Flower home that knows one SuperLink, and return it."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise ConfigError(f"--superlink {address}: it must be a connection's name, or HOST:PORT")
    if trust is None or not trust.is_file():
        what = f"{trust} is no file" if trust else "it is not there"
        raise ConfigError(
            f"--superlink {address} needs --root-certificates, the certificate of its CA: {what}"
        )
    home = folder / "flwr-home"
    home.mkdir(mode=0o700)
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "{CONNECTION}"\n[superlink.{CONNECTION}]\n'
        f"address = {toml_text(address)}\nroot-certificates = {toml_text(str(trust.resolve()))}\n"
    )
    return home


def _connections(config: Path) -> list[str]:
    """Return the names of the connections of a Flower home."""
    try:
        found = tomllib.loads(config.read_text(encoding="utf-8")).get("superlink", {})
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise ConfigError(f"{config}: {error}") from error
    return [name for name, values in found.items() if isinstance(values, dict)]


def _noted(folder: Path) -> str:
    try:
        return str(json.loads((folder / SUBMITTED).read_bytes())["run-id"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
