"""Writes the checkpoints of a run: beside their place, then moved there."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.serverapp import Grid

from protocol.archives import flush_folder, write_archive, write_file
from protocol.interrupts import held
from protocol.messages import UNKNOWN_ROUND
from records.checkpoint.collect import collect
from records.checkpoint.folders import FOLDER, checkpoints, remove
from records.checkpoint.manifest import (
    MANIFEST,
    Checkpoint,
    CheckpointError,
    DevicePart,
    Manifest,
    file_name,
    files_of,
)
from records.recorder import Mark, Marks, Recorder
from strategies.base import NOT_CONNECTED, WirelessStrategy
from strategies.records import RoundLog
from strategies.wall_clock import AT_WORK

log = logging.getLogger(__name__)

_KEPT = 2
_UNASKED = (NOT_CONNECTED, AT_WORK)  # why a device was not asked for its part


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
        config: nested configuration of the run.
        recorder: its tables.
        start: the checkpoint that the run continues, or None; it is kept while devices may need it.
        every: rounds between two checkpoints; 0: none but the last.
        replaced: runs that went on in this folder before, of which devices may still keep something.
    """

    run_folder: Path
    config: Mapping[str, Any]
    recorder: Recorder
    start: Checkpoint | None = None
    every: int = 0
    replaced: tuple[str, ...] = ()
    _last: Manifest | None = field(default=None, init=False)
    _asked: dict[int, int] = field(default_factory=dict, init=False)  # device -> where its last order ended

    def note(self, log: RoundLog) -> None:
        """Learn from a finished round whose order has ended in it: these may have a new part."""
        for device, row in log.devices.items():
            if row.get("status") not in (None, AT_WORK) and row.get("reason") != NOT_CONNECTED:
                self._asked[device] = log.round

    def due(self, server_round: int) -> bool:
        """Return whether a checkpoint is to be written after a round that is not the last."""
        return bool(self.every) and server_round % self.every == 0

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
            remove(path for path in place.parent.glob("*.partial"))
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
        devices = self._parts(partial / "personal", finished.round, grid, strategy, timeout)
        files = {f"personal/{name}": mark for name, mark in files_of(devices).items()}
        arrays: dict[str, npt.NDArray[Any]] = {
            "weights": finished.weights,
            "round": np.array(finished.round),
            **{f"state.{name}": array for name, array in finished.state.items()},
        }
        written = write_archive(partial / "server.npz", arrays)
        files["server.npz"] = Mark(written.size, written.sha256)
        config = (json.dumps(self.config, indent=2) + "\n").encode()
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

    def _parts(
        self, folder: Path, server_round: int, grid: Grid, strategy: WirelessStrategy, timeout: float
    ) -> dict[int, DevicePart]:
        """Have every device store its part; return what is known of each."""
        keep = tuple(number for number, _ in checkpoints(self.run_folder))
        asked = collect(folder, server_round, keep, self._discarded_runs(), grid, strategy, timeout)
        return {
            device: part if part.stored else self._earlier(device, part, folder)
            for device, part in asked.items()
        }

    def _earlier(self, device: int, part: DevicePart, folder: Path) -> DevicePart:
        """Return what is left of a device that has not stored its part: the last copy, if there is one."""
        last = self._last or (self.start.manifest if self.start is not None else None)
        known = last.devices.get(device) if last is not None else None
        if known is None:
            never = device not in self._asked
            return DevicePart(0) if never and part.reason in _UNASKED else part
        assert last is not None
        if known.size and not known.own:
            source = self._source(last) / "personal" / file_name(device, known.round)
            try:
                _link(source, folder / source.name)
            except OSError as error:
                return DevicePart(part.round, stored=False, reason=f"{part.reason}; {error}")
        if part.reason in _UNASKED and self._asked.get(device, 0) <= last.round and known.stored:
            return known  # nothing has changed since
        newer = known.round == UNKNOWN_ROUND and device in self._asked
        run = part.run if newer else known.run
        return DevicePart(known.round, False, known.own, known.sha256, known.size, part.reason, run)

    def _discarded_runs(self) -> dict[int, tuple[str, ...]]:
        """Return by device the replaced runs of which no checkpoint here needs what it keeps of them."""
        if not self.replaced:
            return {}
        try:
            found = [Manifest.read(path).devices for _, path in checkpoints(self.run_folder)]
        except CheckpointError:  # it may need any of them
            return {}
        devices = {device for parts in found for device in parts}
        needed = {device: {parts[device].run for parts in found if device in parts} for device in devices}
        return {
            device: tuple(run for run in self.replaced if run not in runs) for device, runs in needed.items()
        }

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
        remove(path for _, path in found if path not in kept)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)
