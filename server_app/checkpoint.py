"""Checkpoints: all that a resumed run needs to end like an uninterrupted one.

A checkpoint is a folder: ``server.npz`` (the global part, the round, the strategy's own state),
``config.json`` and ``personal/`` with one file per device, written by the device itself. Random streams
are keyed by round and device, so there is no generator to store.
"""

from __future__ import annotations

import json
import logging
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import Message
from flwr.serverapp import Grid

from protocol.messages import SAVE, SaveOrder
from protocol.untrusted import last_line
from server_app.recorder import write_json
from server_app.schema import ConfigError
from server_app.settings import Settings
from strategies.base import WirelessStrategy
from strategies.exchange import exchange

log = logging.getLogger(__name__)

FOLDER = "checkpoint"

# Keys that may differ between a run and the one that it resumes: they do not decide the results.
_FREE = (
    "rounds",
    "resume",
    "engine",
    "tracker",
    "report",
    "checkpoint_every",
    "dataset.root",
    "dataset.download",
    "fleet.round_timeout_s",
    "fleet.start_timeout_s",
    "fleet.min_devices",
    "fleet.max_failed_rounds",
    "fleet.identity",
    "fleet.roster",
)


@dataclass(frozen=True)
class Checkpoint:
    """A stored state of a run.

    Attributes:
        folder: the checkpoint folder.
        round: last finished round.
        weights: global part after it, float32, shape (N_u,).
        state: what the strategy stored.
        run: names the run for what its devices keep on their disks; "" if unknown.
    """

    folder: Path
    round: int
    weights: npt.NDArray[np.float32]
    state: Mapping[str, npt.NDArray[Any]]
    run: str = ""

    @property
    def personal_dir(self) -> Path:
        """Folder of the personal parts."""
        return self.folder / "personal"

    @property
    def run_folder(self) -> Path:
        """Folder of the run that wrote it."""
        return self.folder.parent


def save(
    run_folder: Path,
    *,
    settings: Settings,
    server_round: int,
    weights: npt.NDArray[np.float32],
    grid: Grid,
    strategy: WirelessStrategy,
    timeout: float,
) -> None:
    """Write a checkpoint; the previous one is replaced when the new one is complete."""
    final = run_folder / FOLDER
    partial = run_folder / f"{FOLDER}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    personal = partial / "personal"
    personal.mkdir(parents=True)
    fleet = strategy.fleet
    state = {**strategy.state(), **fleet.state()}
    order = SaveOrder(
        str(personal.resolve()), strategy.spec, strategy.resume_dir, strategy.run, strategy.resume_run
    ).to_records()
    messages = [
        Message(order, dst_node_id=node, message_type=SAVE, group_id=f"{server_round}/{device}")
        for device in fleet.connected
        if (node := fleet.node_of(device)) is not None
    ]
    for reply in exchange(grid, messages, timeout):
        if reply.has_error():
            device = fleet.device_of(reply.metadata.src_node_id)
            log.warning(
                "device %s did not store its personal part: %s", device, last_line(reply.error.reason)
            )
    np.savez(
        partial / "server.npz",
        allow_pickle=False,
        weights=weights,
        round=np.int64(server_round),
        **{f"state.{name}": array for name, array in state.items()},
    )
    write_json(partial / "config.json", settings.to_dict())
    write_json(partial / "run.json", {"run": strategy.run})
    shutil.rmtree(final, ignore_errors=True)
    partial.replace(final)


def load(path: str, settings: Settings) -> Checkpoint:
    """Open the checkpoint of a run folder (or a checkpoint folder) for a run with `settings`.

    Raises:
        ConfigError: if there is none, it is damaged, or it belongs to a different configuration.
    """
    folder = Path(path).expanduser().resolve()
    if (folder / FOLDER).is_dir():
        folder /= FOLDER
    try:
        stored = json.loads((folder / "config.json").read_text())
        with np.load(folder / "server.npz", allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        server_round, weights = int(arrays.pop("round")), arrays.pop("weights")
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ConfigError(f"resume = {path}: no usable checkpoint there: {error}") from error
    differences = [
        f"{name} is {mine!r} here and {theirs!r} there"
        for name, (mine, theirs) in _differences(json.loads(json.dumps(settings.to_dict())), stored).items()
        if not name.startswith(_FREE)
    ]
    if differences:
        raise ConfigError(f"resume = {path}: that run had another configuration: {'; '.join(differences)}")
    if settings.rounds <= server_round:
        raise ConfigError(
            f"rounds = {settings.rounds}, but the checkpoint of resume = {path} has finished round "
            f"{server_round}; set rounds above it"
        )
    state = {name.removeprefix("state."): array for name, array in arrays.items()}
    return Checkpoint(folder, server_round, weights.astype(np.float32, copy=False), state, _run_name(folder))


def _run_name(folder: Path) -> str:
    path = folder / "run.json"
    return str(json.loads(path.read_text()).get("run", "")) if path.is_file() else ""


def _differences(mine: Any, theirs: Any, path: str = "") -> dict[str, tuple[Any, Any]]:
    if isinstance(mine, dict) and isinstance(theirs, dict):
        found = {}
        for name in sorted({*mine, *theirs}):
            inner = f"{path}.{name}" if path else name
            found.update(_differences(mine.get(name), theirs.get(name), inner))
        return found
    return {} if mine == theirs else {path: (mine, theirs)}
