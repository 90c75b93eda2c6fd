"""What a checkpoint holds, and what it knows of every device's personal part."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from records.recorder import Mark, Marks
from strategies.base import NOT_CONNECTED
from strategies.continuation import Continuation, HeldPart

MANIFEST = "manifest.json"
_FORMAT = 1


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
        run: the run in whose folder the device keeps it, where it has a folder of its own.
    """

    round: int
    stored: bool = True
    own: bool = False
    sha256: str = ""
    size: int = 0
    reason: str = ""
    run: str = ""


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
            run = str(values["run"])
            return Manifest(
                run,
                int(values["round"]),
                {str(name): Mark(**mark) for name, mark in values["files"].items()},
                {str(name): Mark(**mark) for name, mark in values["tables"].items()},
                {
                    int(device): DevicePart(**{**part, "run": str(part.get("run") or run)})
                    for device, part in values["devices"].items()
                },
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
    def run_folder(self) -> Path:
        """Folder of the run that wrote it."""
        return self.folder.parent.parent

    @property
    def personal_dir(self) -> Path:
        """Folder of the personal parts."""
        return self.folder / "personal"

    @property
    def continuation(self) -> Continuation:
        """What a run that goes on from here tells its devices."""
        parts = {device: HeldPart(part.round, part.run) for device, part in self.manifest.devices.items()}
        return Continuation(str(self.personal_dir), self.round, self.manifest.run, parts)


def file_name(device: int, server_round: int) -> str:
    """Return the name of the file of a device's part."""
    return f"device-{device:06d}-round-{server_round:06d}.npz"


def files_of(devices: Mapping[int, DevicePart]) -> dict[str, Mark]:
    """Return digest and size of the files of the devices' parts that lie in the checkpoint."""
    return {
        file_name(device, part.round): Mark(part.size, part.sha256)
        for device, part in devices.items()
        if part.size and not part.own
    }
