"""Opens the newest usable checkpoint of a run, and says what was passed over and why."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from protocol.archives import ArchiveError, digest_of, read_archive
from records.checkpoint.folders import FOLDER, NAME, checkpoints, source_of
from records.checkpoint.manifest import MANIFEST, Checkpoint, CheckpointError, Manifest, files_of
from records.ownership import status_of
from records.recorder import HistoryError, Mark, read_until
from schema import ConfigError

log = logging.getLogger(__name__)


def load(
    path: str, config: Mapping[str, Any], *, decides_nothing: Callable[[str], bool], quiet: bool = False
) -> Checkpoint:
    """Open the newest usable checkpoint of a run folder, or a certain one, for a run to continue.

    Args:
        path: a run folder, its folder ``checkpoint``, or one checkpoint, which may be incomplete.
        config: nested configuration of the run that continues it.
        decides_nothing: whether a dotted key may differ from the stored configuration.
        quiet: whether to say nothing of what is passed over or missing.

    Raises:
        ConfigError: if there is none, or it belongs to a different configuration.
    """
    given = Path(path).expanduser().resolve()
    certain = NAME.fullmatch(given.name) is not None
    found = [given] if certain else [folder for _, folder in checkpoints(source_of(path))]
    refused, incomplete = [], []
    for folder in found:
        try:
            checkpoint = open_checkpoint(folder)
        except CheckpointError as error:
            refused.append(f"{folder.name}: {error}")
            continue
        if checkpoint.manifest.missing and not certain:
            incomplete.append(folder)
            refused.append(f"{folder.name} is incomplete: {_why(checkpoint.manifest)}")
            continue
        _fits(path, checkpoint, config, decides_nothing)
        if quiet:
            return checkpoint
        for reason in refused:
            log.warning("resume = %s: not used: %s", path, reason)
        _warn(checkpoint)
        log.info("continuing after round %d, from %s", checkpoint.round, folder)
        return checkpoint
    raise ConfigError(f"resume = {path}: no usable checkpoint there: {_nothing(path, refused, incomplete)}")


def open_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint, and see that nothing of it has changed.

    Raises:
        CheckpointError: if it has, or cannot be read.
    """
    manifest = Manifest.read(folder)
    name = NAME.fullmatch(folder.name)
    if name is None or int(name[1]) != manifest.round:
        raise CheckpointError(f"it says that it is of round {manifest.round}")
    expected = {f"personal/{file}": mark for file, mark in files_of(manifest.devices).items()}
    if {name: mark for name, mark in manifest.files.items() if name.startswith("personal/")} != expected:
        raise CheckpointError(f"{MANIFEST} contradicts itself")
    for file in ("server.npz", "config.json", *expected):
        try:
            written = digest_of(folder / file)
        except OSError as error:
            raise CheckpointError(f"{file} cannot be read: {error.strerror or error}") from error
        if Mark(written.size, written.sha256) != manifest.files.get(file):
            raise CheckpointError(f"{file} is not the file that was stored: its checksum does not match")
    try:
        for table, mark in manifest.tables.items():
            read_until(folder.parent.parent / table, mark)
        arrays = read_archive(folder / "server.npz")
        server_round, weights = int(arrays.pop("round")), arrays.pop("weights")
    except (HistoryError, ArchiveError) as error:
        raise CheckpointError(str(error)) from error
    except (KeyError, ValueError, TypeError) as error:
        raise CheckpointError(f"server.npz lacks what it should hold: {error}") from error
    if server_round != manifest.round:
        raise CheckpointError(f"server.npz is of round {server_round}, {MANIFEST} of round {manifest.round}")
    state = {name.removeprefix("state."): array for name, array in arrays.items()}
    return Checkpoint(folder, manifest, weights.astype(np.float32, copy=False), state)


def _fits(
    path: str, checkpoint: Checkpoint, config: Mapping[str, Any], decides_nothing: Callable[[str], bool]
) -> None:
    """See that a run with `config` may continue the checkpoint."""
    stored = json.loads((checkpoint.folder / "config.json").read_bytes())
    refuse_other(f"resume = {path}", config, stored, decides_nothing=decides_nothing)
    # A run that was stopped behind its last round has its summary and figure left to do.
    done = status_of(checkpoint.run_folder)[0] == "completed"
    if config["rounds"] < checkpoint.round or (config["rounds"] == checkpoint.round and done):
        raise ConfigError(
            f"rounds = {config['rounds']}, but the checkpoint of resume = {path} has finished round "
            f"{checkpoint.round}; set rounds above it"
        )


def refuse_other(
    where: str, config: Mapping[str, Any], stored: Any, *, decides_nothing: Callable[[str], bool]
) -> None:
    """See that a run with `config` may go on where one with the configuration `stored` was.

    Raises:
        ConfigError: beginning with `where`, if they differ in what decides a run.
    """
    differences = [
        f"{name} is {mine!r} here and {theirs!r} there"
        for name, (mine, theirs) in _differences(json.loads(json.dumps(config)), stored).items()
        # How far the run goes changes none of the rows that are there.
        if name != "rounds" and not name.startswith("stop.") and not decides_nothing(name)
    ]
    if differences:
        raise ConfigError(f"{where}: that run had another configuration: {'; '.join(differences)}")


def _why(manifest: Manifest) -> str:
    return "; ".join(
        f"device {device} did not store its personal part ({reason})"
        for device, reason in list(manifest.missing.items())[:3]
    ) + (f"; and {len(manifest.missing) - 3} more" if len(manifest.missing) > 3 else "")


def _warn(checkpoint: Checkpoint) -> None:
    """Say what of the checkpoint is not as an uninterrupted run would have it."""
    for device, part in checkpoint.manifest.devices.items():
        if part.stored:
            continue
        held = (
            f"it goes on from its part of round {part.round}"
            if part.round >= 0
            else "it goes on from what it holds itself, or starts afresh"
        )
        log.warning(
            "checkpoint of round %d: device %d did not store its personal part (%s): %s, and the results may "
            "differ from those of an uninterrupted run",
            checkpoint.round,
            device,
            part.reason,
            held,
        )


def _nothing(path: str, refused: Sequence[str], incomplete: Sequence[Path]) -> str:
    if incomplete:
        hint = f"to go on without what is missing, set resume={incomplete[0]}"
        return f"{'; '.join(refused)}; {hint}"
    if refused:
        return "; ".join(refused)
    folder = source_of(path)
    if (folder / FOLDER / "server.npz").is_file():
        return "it was written by an earlier version of airflower; finish that run with that version"
    if not folder.is_dir():
        return f"{folder} is no folder"
    return f"no round of a run was stored in {folder}; run it anew"


def _differences(mine: Any, theirs: Any, path: str = "") -> dict[str, tuple[Any, Any]]:
    if isinstance(mine, dict) and isinstance(theirs, dict):
        found = {}
        for name in sorted({*mine, *theirs}):
            inner = f"{path}.{name}" if path else name
            found.update(_differences(mine.get(name), theirs.get(name), inner))
        return found
    return {} if mine == theirs else {path: (mine, theirs)}
