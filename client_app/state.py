"""A device's personal part between rounds: in Flower's Context, and on disk.

It never travels to the server. Flower's Context lives in the SuperNode's memory, so a box that is to
survive a restart names a folder of its own (node-config ``state-dir``); the personal part is then also
written there after every round, under a key of run and device. A checkpoint is one more copy.

A file is written to a temporary name, flushed and renamed, so that a crash or a full disk leaves the old
file or the new one. The format is NumPy's zip archive without pickle, with a SHA-256 over contents and
key; a file that is damaged or another's is set aside under another name and never loaded.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from flwr.app import ArrayRecord, Context

from protocol.messages import read_array, replace_vector, vector_record

log = logging.getLogger(__name__)

Personal = npt.NDArray[np.float32]

_RECORD = "personal"
_RUN_NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z-]{0,99}")


class StateError(RuntimeError):
    """A stored personal part is damaged or belongs to something else, or it cannot be stored."""


def remember(context: Context, personal: Personal) -> None:
    """Keep the personal part, float32 of shape (N_v,), in the device's Context for the next round."""
    record = context.state.get(_RECORD)
    array = record.get("weights") if isinstance(record, ArrayRecord) else None
    if array is None or not replace_vector(array, personal):
        context.state[_RECORD] = vector_record("weights", personal)


def recall(context: Context) -> Personal | None:
    """Return the personal part of the last finished round, or None for a new device."""
    record = context.state.get(_RECORD)
    return read_array(record, "weights", np.float32) if isinstance(record, ArrayRecord) else None


@dataclass(frozen=True)
class Recovered:
    """What a device knows of its personal part.

    Attributes:
        personal: float32, shape (N_v,); None for a device that has none yet.
        set_aside: number of damaged files that were found and set aside.
    """

    personal: Personal | None
    set_aside: int = 0


@dataclass(frozen=True)
class Places:
    """Where a device of a run keeps its personal part.

    Attributes:
        context: Flower's memory of the device.
        device: index of the device.
        own: the device's own file of this run, or None for a device without a folder of its own.
        earlier: its part in the checkpoint that the run continues, or None.
        checkpoint: where its part of the next checkpoint goes, or None where the server says it.
    """

    context: Context
    device: int
    own: Path | None
    earlier: Path | None
    checkpoint: Path | None

    def recover(self, size: int) -> Recovered:
        """Find the personal part of `size` weights: in memory, on the box's disk, in the checkpoint.

        A file that cannot be used is set aside, and the next place is looked at.
        """
        found, set_aside = recall(self.context), 0
        for path in (self.own, self.earlier):
            if found is not None:
                break
            if path is None:
                continue
            try:
                found = load_file(path, self.device)
                if found is not None and found.size != size:
                    raise StateError(f"{path} holds {found.size} weights; the personal part has {size}")
            except StateError as error:
                found, set_aside = None, set_aside + 1
                log.warning("device %d: %s; kept as %s", self.device, error, _set_aside(path))
        return Recovered(found, set_aside)

    def keep(self, personal: Personal) -> None:
        """Store the personal part after a round: on disk first, then in memory.

        Raises:
            StateError: if the disk does not take it; the old part then stands, in both places.
        """
        if self.own is not None:
            save_file(self.own, self.device, personal)
        remember(self.context, personal)


def places(
    context: Context, device: int, *, run_key: str, run: str, resume_run: str, resume_dir: str
) -> Places:
    """Return where a device keeps its part: in its own folder if its node-config has a ``state-dir``.

    Args:
        context: the device's Context.
        device: its index.
        run_key, run, resume_run, resume_dir: as in `protocol.messages.DeviceSpec` and `TrainOrder`.

    Raises:
        StateError: if ``state-dir`` is no absolute path, or a run's name could lead out of it.
    """
    folder = context.node_config.get("state-dir", "")
    if not folder:
        earlier = state_file(resume_dir, device) if resume_dir else None
        return Places(context, device, None, earlier, None)
    if not isinstance(folder, str) or not Path(folder).is_absolute():
        raise StateError(f"state-dir = {folder!r} in the node's configuration; it must be an absolute path")
    for name in (f"{run_key}-{run}", f"{run_key}-{resume_run or run}"):
        if not _RUN_NAME.fullmatch(name):
            raise StateError(f"the run is called {name!r}; letters, digits and hyphens are expected")
    own = Path(folder) / f"{run_key}-{run}"
    before = Path(folder) / f"{run_key}-{resume_run}" / "checkpoint"
    return Places(
        context,
        device,
        own=state_file(own, device),
        earlier=state_file(before, device) if resume_run else None,
        checkpoint=state_file(own / "checkpoint", device),
    )


def state_file(directory: str | os.PathLike[str], device: int) -> Path:
    """Return where a device's personal part is stored below `directory`."""
    return Path(directory) / f"device-{device:06d}.npz"


def save_file(path: Path, device: int, personal: Personal) -> None:
    """Write the personal part atomically, readable by its owner only.

    Raises:
        StateError: if the disk does not take it; an older file then stands.
    """
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    digest = np.frombuffer(_digest(device, personal), np.uint8)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        for abandoned in path.parent.glob(f"{path.stem}.*.tmp"):  # of a process that was killed
            abandoned.unlink(missing_ok=True)
        try:
            with open(temporary, "wb", opener=_private) as file:
                np.savez(file, allow_pickle=False, personal=personal, device=np.int64(device), sha256=digest)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            _flush_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise StateError(f"the personal part cannot be stored: {error}") from error


def load_file(path: Path, device: int) -> Personal | None:
    """Return the stored personal part, or None where there is no such file.

    Raises:
        StateError: if the file is damaged or is another device's.
    """
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as archive:
            personal, owner = archive["personal"], int(archive["device"])
            digest = archive["sha256"].tobytes()
    except (
        OSError,
        ValueError,
        TypeError,
        KeyError,
        EOFError,
        zipfile.BadZipFile,
        NotImplementedError,
    ) as error:
        raise StateError(f"{path} is damaged: {error}") from error
    if owner != device or personal.dtype != np.float32 or personal.ndim != 1:
        raise StateError(f"{path} does not hold the personal part of device {device}")
    if digest != _digest(device, personal):
        raise StateError(f"{path} is damaged: its checksum does not match")
    if not np.isfinite(personal).all():
        raise StateError(f"{path} holds values that are not finite")
    return np.asarray(personal, dtype=np.float32)


def _digest(device: int, personal: Personal) -> bytes:
    digest = hashlib.sha256(f"device {device}, {personal.size} weights\n".encode())
    digest.update(np.ascontiguousarray(personal, dtype="<f4").tobytes())
    return digest.digest()


def _set_aside(path: Path) -> Path | str:
    """Rename a file that cannot be used, without hiding one that was set aside before."""
    for number in itertools.count(1):
        target = path.with_suffix(f".damaged-{number}")
        if not target.exists():
            break
    try:
        path.replace(target)
    except OSError as error:  # it is not loaded either way
        return f"{path} (not renamed: {error})"
    return target


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _flush_folder(folder: Path) -> None:
    """Make the renaming itself survive a power cut."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
