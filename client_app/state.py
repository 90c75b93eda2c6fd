"""A device's personal part between rounds: in Flower's Context, and on disk for checkpoints.

It never travels to the server. On disk it is one file per device, written to a temporary name and
renamed, so that a crash leaves the old file or the new one. The format is NumPy's zip archive without
pickle; the archive's CRC-32 is checked on reading.
"""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, Context

_RECORD = "personal"


class StateError(RuntimeError):
    """A stored personal part is damaged or belongs to something else."""


def remember(context: Context, personal: npt.NDArray[np.float32]) -> None:
    """Keep the personal part, float32 of shape (N_v,), in the device's Context for the next round."""
    context.state[_RECORD] = ArrayRecord({"weights": Array(personal)})


def recall(context: Context) -> npt.NDArray[np.float32] | None:
    """Return the personal part of the last finished round, or None for a new device."""
    record = context.state.get(_RECORD)
    return record["weights"].numpy() if isinstance(record, ArrayRecord) else None


def state_file(directory: str | os.PathLike[str], device: int) -> Path:
    """Return where a device's personal part is stored below `directory`."""
    return Path(directory) / f"device-{device:06d}.npz"


def save(directory: str | os.PathLike[str], device: int, personal: npt.NDArray[np.float32]) -> Path:
    """Write the personal part atomically and return its file."""
    path = state_file(directory, device)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            np.savez(file, personal=personal, device=np.int64(device))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def load(directory: str | os.PathLike[str], device: int) -> npt.NDArray[np.float32] | None:
    """Return the stored personal part, or None where the device has stored none.

    Raises:
        StateError: if the file is damaged or is another device's.
    """
    path = state_file(directory, device)
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as archive:
            personal, owner = archive["personal"], int(archive["device"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise StateError(f"{path} is damaged: {error}") from error
    if owner != device or personal.dtype != np.float32 or personal.ndim != 1:
        raise StateError(f"{path} does not hold the personal part of device {device}")
    return np.asarray(personal, dtype=np.float32)
