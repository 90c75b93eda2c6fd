"""Checkpoints: all that a resumed run needs to end like an uninterrupted one.

A checkpoint is a folder ``checkpoint/round-000010``: ``server.npz`` (the global part, the strategy's own
state), ``config.json``, ``personal/`` with one file per device, written by the device itself, and
``manifest.json``, which names the round, the run, every file with its SHA-256 and size, how far the tables of
the run folder were written, and the round of every device's personal part. Random streams are keyed by round
and device, so there is no generator to store.

It is written beside its place, flushed to the disk and renamed: it is there as a whole or not at all. The
last two are kept, and beyond them the last one that has every connected device's part. A device that cannot
store its part makes a checkpoint incomplete; the earlier one then stands. What is loaded is the newest
complete one of which nothing has changed; what is passed over, and why, is said.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import Message
from flwr.serverapp import Grid

from protocol.archives import (
    ArchiveError,
    digest_of,
    flush_folder,
    read_archive,
    write_archive,
    write_file,
)
from protocol.interrupts import held
from protocol.messages import SAVE, UNKNOWN_ROUND, MessageError, SaveOrder, SaveReport
from protocol.untrusted import last_line, safe_text
from records.ownership import status_of
from records.recorder import HistoryError, Mark, Marks, Recorder, read_until
from schema import ConfigError
from server_app.settings import Settings, decides_nothing
from strategies.base import NOT_CONNECTED, WirelessStrategy
from strategies.exchange import exchange
from strategies.records import RoundLog

log = logging.getLogger(__name__)

FOLDER = "checkpoint"
MANIFEST = "manifest.json"
_FORMAT = 1
_KEPT = 2
_NAME = re.compile(r"round-(\d{6,})")


class CheckpointError(RuntimeError):
    """A checkpoint cannot be used; the text says why."""


@dataclass(frozen=True)
class DevicePart:
    """What a checkpoint knows of a device's personal part.

    Attributes:
        round: after which it stands; 0: the device had none yet; `UNKNOWN_ROUND`: it holds its part itself,
            and was not there to tell.
        stored: whether the part of the checkpoint's own round is stored, here or on the device.
        own: whether it lies in a folder of the device's own.
        sha256, size: of its file; "" and 0 without one.
        reason: why it is not stored, or "".
    """

    round: int
    stored: bool = True
    own: bool = False
    sha256: str = ""
    size: int = 0
    reason: str = ""


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint holds.

    Attributes:
        run: names the run for what its devices keep on their disks.
        round: last finished round.
        files: digest and size of every file, by its path in the checkpoint.
        tables: how far the tables of the run folder were written.
        devices: the devices' personal parts.
    """

    run: str
    round: int
    files: Mapping[str, Mark]
    tables: Marks
    devices: Mapping[int, DevicePart]

    @property
    def missing(self) -> dict[int, str]:
        """Devices that were connected and have stored nothing, with the reason."""
        return {
            device: part.reason
            for device, part in self.devices.items()
            if not part.stored and part.reason != NOT_CONNECTED
        }

    def to_json(self) -> str:
        """Return the text of ``manifest.json``."""
        return json.dumps({"format": _FORMAT, **asdict(self)}, indent=1) + "\n"

    @staticmethod
    def read(folder: Path) -> Manifest:
        """Read the manifest of a checkpoint.

        Raises:
            CheckpointError: if there is none, or it makes no sense.
        """
        try:
            values = json.loads((folder / MANIFEST).read_bytes())
            if values["format"] != _FORMAT:
                raise ValueError(f"format {values['format']} of another version of airflower")
            return Manifest(
                str(values["run"]),
                int(values["round"]),
                {str(name): Mark(**mark) for name, mark in values["files"].items()},
                {str(name): Mark(**mark) for name, mark in values["tables"].items()},
                {int(device): DevicePart(**part) for device, part in values["devices"].items()},
            )
        except FileNotFoundError as error:
            raise CheckpointError(f"{MANIFEST} is missing") from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"{MANIFEST} is not readable: {error}") from error


@dataclass(frozen=True)
class Checkpoint:
    """A stored state of a run.

    Attributes:
        folder: the checkpoint folder.
        manifest: what it holds.
        weights: global part after its round, float32, shape (N_u,).
        state: what the strategy stored.
    """

    folder: Path
    manifest: Manifest
    weights: npt.NDArray[np.float32]
    state: Mapping[str, npt.NDArray[Any]]

    @property
    def round(self) -> int:
        """Last finished round."""
        return self.manifest.round

    @property
    def run(self) -> str:
        """Names the run for what its devices keep on their disks."""
        return self.manifest.run

    @property
    def personal_dir(self) -> Path:
        """Folder of the personal parts."""
        return self.folder / "personal"

    @property
    def run_folder(self) -> Path:
        """Folder of the run that wrote it."""
        return self.folder.parent.parent

    @property
    def parts(self) -> dict[int, int]:
        """The round of each device's personal part, where it is known."""
        return {device: part.round for device, part in self.manifest.devices.items()}


@dataclass(frozen=True)
class FinishedRound:
    """What a checkpoint is made of, as it was when a round was finished.

    Attributes:
        round: its number.
        weights: global part, float32, shape (N_u,).
        state: what the strategy needs to go on.
        tables: how far the tables were written.
    """

    round: int
    weights: npt.NDArray[np.float32]
    state: Mapping[str, npt.NDArray[Any]]
    tables: Marks


@dataclass
class Writer:
    """Writes the checkpoints of one run.

    Attributes:
        run_folder: folder of the run.
        settings: of the run.
        recorder: its tables.
        start: the checkpoint that the run continues, or None; it is kept while devices may need it.
    """

    run_folder: Path
    settings: Settings
    recorder: Recorder
    start: Checkpoint | None = None
    _last: Manifest | None = field(default=None, init=False)
    _asked: dict[int, int] = field(default_factory=dict, init=False)  # device -> last round of an order

    def note(self, log: RoundLog) -> None:
        """Learn from a finished round which devices had an order, and so may have a new part."""
        for device, row in log.devices.items():
            if row.get("status") is not None and row.get("reason") != NOT_CONNECTED:
                self._asked[device] = log.round

    @property
    def stored_round(self) -> int | None:
        """The round of the last checkpoint in the run folder, or None."""
        if self._last is not None:
            return self._last.round
        in_place = self.start is not None and self.start.run_folder == self.run_folder.resolve()
        return self.start.round if self.start is not None and in_place else None

    def save(
        self, finished: FinishedRound, grid: Grid, strategy: WirelessStrategy, timeout: float
    ) -> Manifest | None:
        """Write a checkpoint; return its manifest, or None if the disk does not take it."""
        place = self.run_folder / FOLDER / f"round-{finished.round:06d}"
        partial = place.with_name(f"{place.name}.partial")
        try:
            _remove(path for path in place.parent.glob("*.partial"))
            (partial / "personal").mkdir(parents=True)
            manifest = self._write(partial, finished, grid, strategy, timeout)
            with held():
                self._switch(partial, place)
                self._last = manifest
        except OSError as error:
            log.error(
                "the checkpoint of round %d cannot be stored: %s; %s",
                finished.round,
                error,
                f"that of round {self._last.round} stands" if self._last else "there is none",
            )
            return None
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        self._tell(manifest)
        self._tidy()
        return manifest

    def _write(
        self, partial: Path, finished: FinishedRound, grid: Grid, strategy: WirelessStrategy, timeout: float
    ) -> Manifest:
        devices = self._collect(partial / "personal", finished.round, grid, strategy, timeout)
        files = {f"personal/{name}": mark for name, mark in _files_of(devices).items()}
        arrays: dict[str, npt.NDArray[Any]] = {
            "weights": finished.weights,
            "round": np.array(finished.round),
            **{f"state.{name}": array for name, array in finished.state.items()},
        }
        written = write_archive(partial / "server.npz", arrays)
        files["server.npz"] = Mark(written.size, written.sha256)
        config = (json.dumps(self.settings.to_dict(), indent=2) + "\n").encode()
        written = write_file(partial / "config.json", config)
        files["config.json"] = Mark(written.size, written.sha256)
        self.recorder.flush()
        manifest = Manifest(strategy.run, finished.round, files, finished.tables, devices)
        flush_folder(partial / "personal")
        write_file(partial / MANIFEST, manifest.to_json().encode())
        return manifest

    def _switch(self, partial: Path, place: Path) -> None:
        """Put the complete checkpoint in its place."""
        if place.exists():  # one of the same round that could not be used
            aside = place.with_name(f"{place.name}.replaced.partial")
            place.replace(aside)
        partial.replace(place)
        flush_folder(place.parent)

    def _collect(
        self, folder: Path, server_round: int, grid: Grid, strategy: WirelessStrategy, timeout: float
    ) -> dict[int, DevicePart]:
        """Have every device store its part; return what is known of each."""
        fleet = strategy.fleet
        keep = tuple(number for number, _ in checkpoints(self.run_folder))

        def order(device: int, node: int) -> Message:
            what = SaveOrder(
                directory=str(folder.resolve()),
                round=server_round,
                spec=strategy.spec,
                keep=keep,
                resume_dir=strategy.resume_dir,
                run=strategy.run,
                resume_run=strategy.resume_run,
                resume_round=strategy.resume_round,
                resume_part=strategy.resume_parts.get(device, UNKNOWN_ROUND),
            )
            group = f"{server_round}/{device}"
            return Message(what.to_records(), dst_node_id=node, message_type=SAVE, group_id=group)

        nodes = {device: node for device in fleet.connected if (node := fleet.node_of(device)) is not None}
        parts = {
            device: DevicePart(UNKNOWN_ROUND, stored=False, reason="no answer before the time was up")
            for device in nodes
        }
        messages = [order(device, node) for device, node in nodes.items()]
        for reply in exchange(grid, messages, timeout):
            device = fleet.device_of(reply.metadata.src_node_id)
            if device is None and reply.has_error():  # by the SuperLink, of a node that is dead
                group = reply.metadata.group_id.rpartition("/")[2]
                device = int(group) if group.isdecimal() else None
            if device is not None and device in parts:
                parts[device] = _stored(device, reply, server_round, folder)
        for device in range(fleet.num_devices):
            part = parts.get(device, DevicePart(UNKNOWN_ROUND, stored=False, reason=NOT_CONNECTED))
            parts[device] = part if part.stored else self._earlier(device, part, folder)
        return dict(sorted(parts.items()))

    def _earlier(self, device: int, part: DevicePart, folder: Path) -> DevicePart:
        """Return what is left of a device that has not stored its part: the last copy, if there is one."""
        last = self._last or (self.start.manifest if self.start is not None else None)
        known = last.devices.get(device) if last is not None else None
        if known is None:
            never = device not in self._asked
            return DevicePart(0) if never and part.reason == NOT_CONNECTED else part
        assert last is not None
        if known.size and not known.own:
            source = self._source(last) / "personal" / _file_name(device, known.round)
            try:
                _link(source, folder / source.name)
            except OSError as error:
                return DevicePart(part.round, stored=False, reason=f"{part.reason}; {error}")
        if part.reason == NOT_CONNECTED and self._asked.get(device, 0) <= last.round and known.stored:
            return known  # nothing has changed since
        return DevicePart(known.round, False, known.own, known.sha256, known.size, part.reason)

    def _source(self, manifest: Manifest) -> Path:
        if self._last is None and self.start is not None:
            return self.start.folder
        return self.run_folder / FOLDER / f"round-{manifest.round:06d}"

    def _tell(self, manifest: Manifest) -> None:
        for device, reason in manifest.missing.items():
            part = manifest.devices[device]
            log.warning(
                "checkpoint of round %d: device %d did not store its personal part (%s)%s; "
                "the last complete checkpoint is kept",
                manifest.round,
                device,
                reason,
                f": that of round {part.round} is kept" if part.size else "",
            )

    def _tidy(self) -> None:
        """Remove checkpoints that nobody needs."""
        found = checkpoints(self.run_folder)
        kept = {path for _, path in found[:_KEPT]}
        for _, path in found:
            try:
                if not Manifest.read(path).missing:
                    kept.add(path)
                    break
            except CheckpointError:
                continue
        if self.start is not None:  # a device that has had no order yet takes its part from there
            kept.add(self.start.folder)
        _remove(path for _, path in found if path not in kept)


def _stored(device: int, reply: Message, server_round: int, folder: Path) -> DevicePart:
    """Return what a device's answer says of its part."""
    if reply.has_error():
        reason = last_line(reply.error.reason or f"error {reply.error.code}")
        return DevicePart(UNKNOWN_ROUND, stored=False, reason=reason)
    try:
        report = SaveReport.from_records(reply.content, server_round)
    except MessageError as error:
        return DevicePart(UNKNOWN_ROUND, stored=False, reason=safe_text(error))
    part = DevicePart(report.round, True, report.own, report.sha256, report.size)
    if report.round and not report.own:
        try:
            there = (folder / _file_name(device, report.round)).stat().st_size == report.size
        except OSError:
            there = False
        if not there:
            reason = "its file is not on the server; a device on another machine needs a state-dir"
            return DevicePart(UNKNOWN_ROUND, stored=False, reason=reason)
    return part


def _file_name(device: int, server_round: int) -> str:
    return f"device-{device:06d}-round-{server_round:06d}.npz"


def _files_of(devices: Mapping[int, DevicePart]) -> dict[str, Mark]:
    return {
        _file_name(device, part.round): Mark(part.size, part.sha256)
        for device, part in devices.items()
        if part.size and not part.own
    }


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


def _remove(folders: Iterable[Path]) -> None:
    """Remove folders; each is renamed first, so that no half of it is ever taken for a checkpoint."""
    for folder in folders:
        target = folder.with_name(f"{folder.name.removesuffix('.partial')}.partial")
        if target != folder:
            shutil.rmtree(target, ignore_errors=True)
            folder.replace(target)
        shutil.rmtree(target, ignore_errors=True)


def checkpoints(run_folder: Path) -> list[tuple[int, Path]]:
    """Return the checkpoints of a run folder, whatever their state, the newest first."""
    folder = run_folder / FOLDER
    found = [
        (int(name[1]), path)
        for path in (folder.iterdir() if folder.is_dir() else ())
        if (name := _NAME.fullmatch(path.name)) and path.is_dir()
    ]
    return sorted(found, reverse=True)


def discard_after(run_folder: Path, server_round: int) -> None:
    """Remove checkpoints of later rounds, which a run that goes on does again, and halves of them."""
    _remove((run_folder / FOLDER).glob("*.partial"))
    for number, folder in checkpoints(run_folder):
        if number > server_round:
            log.warning("removed: %s, of a round that is done again", folder)
            _remove([folder])


def latest(run_folder: Path) -> Path:
    """Return the newest checkpoint of a run folder.

    Raises:
        FileNotFoundError: if there is none.
    """
    if found := checkpoints(run_folder):
        return found[0][1]
    raise FileNotFoundError(f"no checkpoint in {run_folder}")


def source_of(path: str) -> Path:
    """Return the run folder that a value of `resume` leads to."""
    folder = Path(path).expanduser().resolve()
    if _NAME.fullmatch(folder.name):
        folder = folder.parent
    return folder.parent if folder.name == FOLDER else folder


def load(path: str, settings: Settings, *, quiet: bool = False) -> Checkpoint:
    """Open the newest usable checkpoint of a run folder, or a certain one, for a run with `settings`.

    Args:
        path: a run folder, its folder ``checkpoint``, or one checkpoint, which may be incomplete.
        settings: of the run that continues it.
        quiet: whether to say nothing of what is passed over or missing.

    Raises:
        ConfigError: if there is none, or it belongs to a different configuration.
    """
    given = Path(path).expanduser().resolve()
    certain = _NAME.fullmatch(given.name) is not None
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
        _fits(path, checkpoint, settings)
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
    name = _NAME.fullmatch(folder.name)
    if name is None or int(name[1]) != manifest.round:
        raise CheckpointError(f"it says that it is of round {manifest.round}")
    expected = {f"personal/{file}": mark for file, mark in _files_of(manifest.devices).items()}
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


def _fits(path: str, checkpoint: Checkpoint, settings: Settings) -> None:
    """See that a run with `settings` may continue the checkpoint."""
    stored = json.loads((checkpoint.folder / "config.json").read_bytes())
    differences = [
        f"{name} is {mine!r} here and {theirs!r} there"
        for name, (mine, theirs) in _differences(json.loads(json.dumps(settings.to_dict())), stored).items()
        if name != "rounds" and not decides_nothing(name)
    ]
    if differences:
        raise ConfigError(f"resume = {path}: that run had another configuration: {'; '.join(differences)}")
    # A run that was stopped behind its last round has its summary and figure left to do.
    done = status_of(checkpoint.run_folder)[0] == "completed"
    if settings.rounds < checkpoint.round or (settings.rounds == checkpoint.round and done):
        raise ConfigError(
            f"rounds = {settings.rounds}, but the checkpoint of resume = {path} has finished round "
            f"{checkpoint.round}; set rounds above it"
        )


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
