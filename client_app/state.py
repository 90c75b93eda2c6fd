"""A device's personal part between rounds: in Flower's Context, and on disk.

It never travels to the server. Flower's Context lives in the SuperNode's memory, so a node that is to
survive a restart names a folder of its own (node-config ``state-dir``); the personal part is then also
written there after every round, under a key of run and device. A checkpoint is one more copy.

Every copy knows the round after which it stands, and the last two rounds are kept: a checkpoint of the last
*finished* round can so be made while some devices have trained the next one already, and a device that
continues a run takes the part of exactly the round that the checkpoint expects, or says which it holds.

A file is written whole or not at all, with a SHA-256 over contents and key; one that is damaged or another's
is set aside under another name and never loaded.

One file, long as it is: the life of a personal part, in memory, on the disk and back.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import logging
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import ArrayRecord, Context

from protocol.archives import ArchiveError, Written, read_archive, write_archive
from protocol.arrays import read_array, read_vectors, replace_vector, vector_record, vectors_record
from protocol.messages import UNKNOWN_ROUND

log = logging.getLogger(__name__)

Personal = npt.NDArray[np.float32]

_RECORD = "personal"
_ARRAYS = "personal-arrays"
_PREFIX = "array."  # of the names of further arrays in a file
_VERSIONS = 2
_DAMAGED = ".damaged-"
_RUN_NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z-]{0,99}")
_FILE_NAME = re.compile(r"device-(\d{6,})-round-(\d{6,})\.npz")


class StateError(RuntimeError):
    """A stored personal part is damaged or belongs to something else, or it cannot be stored."""


@dataclass(frozen=True)
class Part:
    """A personal part.

    Attributes:
        weights: float32, shape (N_v,).
        round: after which it stands.
        arrays: what else belongs to it by name, vectors of any type: running statistics.
    """

    weights: Personal
    round: int
    arrays: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)


def remember(context: Context, part: Part) -> None:
    """Keep a part in the device's Context, beside that of the round before it."""
    record = context.state.get(_RECORD)
    if not isinstance(record, ArrayRecord):
        record = context.state[_RECORD] = ArrayRecord()
    now = str(part.round)
    stale = sorted((name for name in record if name != now), key=int)[: -(_VERSIONS - 1)]
    array = None if stale else record.pop(now, None)
    for name in stale:
        array = record.pop(name)
    if array is None or not replace_vector(array, part.weights):
        array = vector_record("weights", part.weights)["weights"]
    record[now] = array
    if part.arrays or _ARRAYS in context.state:
        _remember_arrays(context, part, set(record))


def _remember_arrays(context: Context, part: Part, rounds: set[str]) -> None:
    """Keep the arrays of a part beside those of the other rounds that are kept."""
    before = context.state.get(_ARRAYS)
    now = vectors_record({f"{part.round}/{name}": array for name, array in part.arrays.items()})
    if isinstance(before, ArrayRecord):
        for name in before:
            number = name.partition("/")[0]
            if number in rounds and number != str(part.round):
                now[name] = before[name]
    context.state[_ARRAYS] = now


def _recalled_arrays(context: Context, server_round: int) -> dict[str, npt.NDArray[Any]]:
    record = context.state.get(_ARRAYS)
    if not isinstance(record, ArrayRecord):
        return {}
    mine = ArrayRecord()
    for name in record:
        number, _, rest = name.partition("/")
        if number == str(server_round):
            mine[rest] = record[name]
    return read_vectors(mine)


def recall(context: Context, until: int | None = None) -> Part | None:
    """Return the newest part in the Context, of round `until` at the latest; None without one."""
    record = context.state.get(_RECORD)
    if not isinstance(record, ArrayRecord):
        return None
    rounds = [number for number in map(int, record) if until is None or number <= until]
    if not rounds:
        return None
    newest = max(rounds)
    weights = read_array(record, str(newest), np.float32)
    return Part(weights, newest, _recalled_arrays(context, newest) if _ARRAYS in context.state else {})


def _remembered(context: Context) -> set[int]:
    record = context.state.get(_RECORD)
    return {int(name) for name in record} if isinstance(record, ArrayRecord) else set()


@dataclass(frozen=True)
class Recovered:
    """What a device knows of its personal part.

    Attributes:
        part: its personal part; None for a device that has none yet.
        set_aside: number of damaged files that were found and set aside.
        lost: the round of the part that the checkpoint expects and nothing is left of; None if all is well.
    """

    part: Part | None
    set_aside: int = 0
    lost: int | None = None


@dataclass(frozen=True)
class Resume:
    """What a run that continues another expects of a device.

    Attributes:
        round: last round of the checkpoint; 0 for a run that continues none.
        part: the round of the device's part in it: 0 if it had none yet, `UNKNOWN_ROUND` if the checkpoint
            does not know; then the newest part up to `round` is right.
    """

    round: int = 0
    part: int = UNKNOWN_ROUND


@dataclass(frozen=True)
class StateStore:
    """Where a device of a run keeps its personal part.

    Attributes:
        context: Flower's memory of the device.
        device: index of the device.
        own: the device's own folder of this run, or None for a device without one.
        earlier: folder with its part in the checkpoint that the run continues, or None.
        resume: which part that has to be.
    """

    context: Context
    device: int
    own: Path | None
    earlier: Path | None
    resume: Resume = Resume()

    def recover(self, size: int, until: int | None = None) -> Recovered:
        """Find the personal part of `size` weights: in memory, on the device's disk, in the checkpoint.

        A file that cannot be used is set aside, and the next place is looked at.

        Args:
            size: N_v.
            until: its last round at most; None: the newest.

        Raises:
            StateError: if the device holds parts, but not the one that is asked for.
        """
        found = recall(self.context, until)
        if found is not None:
            return Recovered(found)
        set_aside = 0
        if self.own is not None:
            found, set_aside = self._newest(self._files(self.own, until), size)
        if found is None and self.earlier is not None and self.resume.part != 0:
            found, more = self._expected(size)
            set_aside += more
        if found is None and until is not None:
            later = {part for part in (*self._rounds(self.own), *_remembered(self.context)) if part > until}
            # A single one is that of a device which had none before.
            if len(later) >= _VERSIONS or (later and set_aside):
                raise StateError(
                    f"the personal part of round {until} is asked for; the device holds {_listed(later)} only"
                )
        expected = self.resume.part if self.resume.part > 0 else None
        return Recovered(found, set_aside, expected if found is None else None)

    def keep(
        self, personal: Personal, server_round: int, arrays: Mapping[str, npt.NDArray[Any]] | None = None
    ) -> None:
        """Store the personal part after a round, and what belongs to it: on disk first, then in memory.

        A device of which nothing is personal keeps nothing in memory, unless it continues a run: else it
        would look for its part in the checkpoint round after round.

        Raises:
            StateError: if the disk does not take it; the old part then stands, on disk and in memory.
        """
        part = Part(personal, server_round, arrays or {})
        if self.own is not None:
            save_file(state_file(self.own, self.device, server_round), self.device, part)
            for path in sorted(self._files(self.own, None), reverse=True)[_VERSIONS:]:
                path.unlink(missing_ok=True)
        elif not (personal.size or arrays or self.earlier or _remembered(self.context)):
            return  # a sixth of what a device of a tiny network takes
        remember(self.context, part)

    def save_for_checkpoint(
        self, part: Part, directory: str, server_round: int, keep: Sequence[int]
    ) -> Written:
        """Store the part for a checkpoint: in the device's own folder, else in `directory`.

        Args:
            part: the device's part.
            directory: where to, without a folder of one's own.
            server_round: of the checkpoint.
            keep: earlier checkpoints that are still kept; copies for others are removed.

        Raises:
            StateError: if the disk does not take it.
        """
        folder = Path(directory) if self.own is None else checkpoint_folder(self.own, server_round)
        written = save_file(state_file(folder, self.device, part.round), self.device, part)
        if self.own is not None:
            kept = {checkpoint_folder(self.own, number).name for number in (server_round, *keep)}
            for old in folder.parent.iterdir():
                if old.name not in kept:
                    shutil.rmtree(old, ignore_errors=True)
        return written

    def _expected(self, size: int) -> tuple[Part | None, int]:
        """Find the part of the checkpoint that the run continues, in it or beside it."""
        assert self.earlier is not None
        exact = self.resume.part > 0
        wanted = self.resume.part if exact else self.resume.round or None
        folders = (self.earlier, *sorted((self.earlier / "checkpoint").glob("round-*")))
        files = [
            path
            for folder in folders
            for path in self._files(folder, wanted)
            if not exact or _round_of(path) == wanted
        ]
        found, set_aside = self._newest(files, size)
        held = {part for folder in folders for part in self._rounds(folder)}
        if found is None and held and not set_aside:
            raise StateError(
                f"the checkpoint of round {self.resume.round} expects the device's personal part of round "
                f"{wanted}; the device holds {_listed(held)}. Continue from a checkpoint that it has a part "
                f"of, or remove {self.earlier} on the device to let it start afresh"
            )
        return found, set_aside

    def _newest(self, files: Iterable[Path], size: int) -> tuple[Part | None, int]:
        """Return the newest part that can be used, and how many files had to be set aside before."""
        set_aside = 0
        for path in sorted(files, key=_round_of, reverse=True):
            try:
                part = load_file(path, self.device)
                if part.weights.size != size:
                    raise StateError(
                        f"{path} holds {part.weights.size} weights; the personal part has {size}"
                    )
                return part, set_aside
            except StateError as error:
                set_aside += 1
                log.warning("device %d: %s; kept as %s", self.device, error, _set_aside(path))
        return None, set_aside

    def _files(self, folder: Path, until: int | None) -> Iterator[Path]:
        """Yield the device's files in a folder, those of round `until` at the latest."""
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            name = _FILE_NAME.fullmatch(path.name)
            if name and int(name[1]) == self.device and (until is None or int(name[2]) <= until):
                yield path

    def _rounds(self, folder: Path | None) -> set[int]:
        return set() if folder is None else {_round_of(path) for path in self._files(folder, None)}


def open_store(
    context: Context,
    device: int,
    *,
    run_key: str,
    run: str,
    resume_run: str,
    resume_dir: str,
    resume: Resume = Resume(),  # frozen
) -> StateStore:
    """Return where a device keeps its part: in its own folder if its node-config has a ``state-dir``.

    Args:
        context: the device's Context.
        device: its index.
        run_key, run, resume_run, resume_dir: as in `protocol.messages.DeviceSpec` and `TrainOrder`.
        resume: what the run that is continued expects of the device.

    Raises:
        StateError: if ``state-dir`` is no absolute path, or a run's name could lead out of it.
    """
    folder = context.node_config.get("state-dir", "")
    if not folder:
        return StateStore(context, device, None, Path(resume_dir) if resume_dir else None, resume)
    if not isinstance(folder, str) or not Path(folder).is_absolute():
        raise StateError(f"state-dir = {folder!r} in the node's configuration; it must be an absolute path")
    for name in (f"{run_key}-{run}", f"{run_key}-{resume_run or run}"):
        if not _RUN_NAME.fullmatch(name):
            raise StateError(f"the run is called {name!r}; letters, digits and hyphens are expected")
    earlier = Path(folder) / f"{run_key}-{resume_run}" if resume_run else None
    return StateStore(context, device, Path(folder) / f"{run_key}-{run}", earlier, resume)


def remove_runs(folder: Path, run_key: str, runs: Iterable[str], device: int) -> None:
    """Remove what a device keeps of runs that another one has replaced; other devices' files stay.

    Args:
        folder: the device's ``state-dir``.
        run_key: of the configuration.
        runs: their names; one that could lead out of the folder is passed over.
        device: its index.
    """
    for run in runs:
        name = f"{run_key}-{run}"
        own = folder / name
        if not _RUN_NAME.fullmatch(name) or not own.is_dir():
            continue
        for path in [*own.rglob(f"device-{device:06d}-*")]:
            if _DAMAGED not in path.name:  # the operator was told of it
                path.unlink(missing_ok=True)
        for place in (*(own / "checkpoint").glob("*"), own / "checkpoint", own):
            with contextlib.suppress(OSError):  # it is not empty, or not there
                place.rmdir()


def state_file(directory: Path, device: int, server_round: int) -> Path:
    """Return where a device's personal part of a round is stored below `directory`."""
    return directory / f"device-{device:06d}-round-{server_round:06d}.npz"


def part_files(directory: Path, device: int) -> list[Path]:
    """Return the files of a device's personal parts in a folder, the newest first."""
    named = [(path, _FILE_NAME.fullmatch(path.name)) for path in directory.iterdir()]
    mine = [path for path, name in named if name and int(name[1]) == device]
    return sorted(mine, key=_round_of, reverse=True)


def checkpoint_folder(own: Path, server_round: int) -> Path:
    """Return where a device's copies for a checkpoint lie below its folder of a run."""
    return own / "checkpoint" / f"round-{server_round:06d}"


def save_file(path: Path, device: int, part: Part) -> Written:
    """Write the personal part atomically, readable by its owner only.

    Raises:
        StateError: if the disk does not take it; an older file then stands.
    """
    digest = np.frombuffer(_digest(device, part), np.uint8)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        for abandoned in path.parent.glob(f"device-{device:06d}-*.tmp"):  # of a process that was killed
            abandoned.unlink(missing_ok=True)
        arrays: dict[str, npt.NDArray[Any]] = {
            "personal": part.weights,
            "device": np.array(device),
            "round": np.array(part.round),
            "sha256": digest,
            **{f"{_PREFIX}{name}": array for name, array in part.arrays.items()},
        }
        return write_archive(path, arrays, mode=0o600)
    except OSError as error:
        raise StateError(f"the personal part cannot be stored: {error}") from error


def load_file(path: Path, device: int) -> Part:
    """Return the stored personal part.

    Raises:
        StateError: if the file is damaged or is another device's.
    """
    try:
        arrays = read_archive(path)
        personal, owner = arrays["personal"], int(arrays["device"])
        further = {
            name.removeprefix(_PREFIX): array for name, array in arrays.items() if name.startswith(_PREFIX)
        }
        part = Part(personal, int(arrays["round"]), further)
        digest = arrays["sha256"].tobytes()
    except (ArchiveError, KeyError, ValueError, TypeError) as error:
        raise StateError(f"{path} is damaged: {error}") from error
    if owner != device or personal.dtype != np.float32 or personal.ndim != 1:
        raise StateError(f"{path} does not hold the personal part of device {device}")
    if digest != _digest(device, part):
        raise StateError(f"{path} is damaged: its checksum does not match")
    if part.round != _round_of(path):
        raise StateError(f"{path} holds the personal part of round {part.round}")
    if not all(np.isfinite(values).all() for values in (personal, *part.arrays.values())):
        raise StateError(f"{path} holds values that are not finite")
    return part


def _digest(device: int, part: Part) -> bytes:
    key = f"device {device}, round {part.round}, {part.weights.size} weights\n"
    digest = hashlib.sha256(key.encode())
    digest.update(np.ascontiguousarray(part.weights, dtype="<f4").tobytes())
    for name, array in sorted(part.arrays.items()):
        digest.update(f"{name} {array.dtype.str} {array.size}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.digest()


def _round_of(path: Path) -> int:
    name = _FILE_NAME.fullmatch(path.name)
    assert name is not None
    return int(name[2])


def _listed(rounds: Iterable[int]) -> str:
    numbers = ", ".join(str(number) for number in sorted(rounds))
    return f"that of round {numbers}" if "," not in numbers else f"those of rounds {numbers}"


def _set_aside(path: Path) -> Path | str:
    """Rename a file that cannot be used, without hiding one that was set aside before."""
    for number in itertools.count(1):
        target = path.with_suffix(f"{_DAMAGED}{number}")
        if not target.exists():
            break
    try:
        path.replace(target)
    except OSError as error:  # it is not loaded either way
        return f"{path} (not renamed: {error})"
    return target
