"""What a node keeps so that it can use its model without the server: the global part as it last came.

Beside the personal parts (`client_app.state`), in the device's own folder of a run, lies one more file,
``device-<index>-global-<round>.npz``: the global part after that round, shared running statistics, and what
the network is. With the device's newest personal part it is the personalised model, which never leaves the
node.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from client_app.algorithms import algorithm_state, make_algorithm, statistics
from client_app.state import Part, StateError, load_file, part_files
from protocol.archives import ArchiveError, read_archive, write_archive
from protocol.streams import torch_seed
from task.trained import TaskFacts, TrainedModel, WeightsError, trained_model

log = logging.getLogger(__name__)

_FILE_NAME = re.compile(r"device-(\d{6,})-global-(\d{6,})\.npz")
_BUFFER = "buffer."


@dataclass(frozen=True)
class Origin:
    """What belongs to a run, and is the same for all its rounds.

    Attributes:
        facts: what the network is.
        seed: of the run: a device that never trained has the initial personal part.
        algorithm, options: of the local training; it says which global part a device uses.
    """

    facts: TaskFacts
    seed: int
    algorithm: str
    options: Mapping[str, Any]


def keep_global(
    folder: Path,
    device: int,
    after: int,
    weights: npt.NDArray[np.float32],
    buffers: Mapping[str, npt.NDArray[Any]],
    origin: Origin,
) -> None:
    """Write the global part after round `after`, unless it or a later one is there; older ones are removed.

    A disk that does not take it is logged: training and testing do not need this file.
    """
    there = {int(name[2]): path for path, name in _found(folder) if int(name[1]) == device}
    if there and max(there) >= after:
        return
    about = {"seed": origin.seed, "algorithm": origin.algorithm, "options": dict(origin.options)}
    arrays: dict[str, npt.NDArray[Any]] = {
        "global": weights,
        "facts": _text(origin.facts.to_json()),
        "about": _text(json.dumps(about)),
        **{f"{_BUFFER}{name}": array for name, array in buffers.items()},
    }
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_archive(folder / f"device-{device:06d}-global-{after:06d}.npz", arrays, mode=0o600)
        for path in there.values():
            path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("device %d: the global part cannot be stored for predictions: %s", device, error)


def own_model(state_dir: Path, *, run: str | None = None, device: int | None = None) -> TrainedModel:
    """Return the personalised model of a node from its ``state-dir``.

    Args:
        state_dir: the folder that the node's configuration names, or that of one run in it.
        run: name of the run's folder; None: the one that was written last.
        device: the index; None: the only one there.

    Raises:
        StateError: if there is no model, or several devices have one there; the text says what there is.
        WeightsError: if the stored weights are not those of the network.
        ValueError: if the network cannot be built, such as when its module is not installed here.
    """
    path, number, after = _newest(state_dir, run, device)
    try:
        arrays = read_archive(path)
        global_part = arrays["global"]
        about = json.loads(arrays["about"].tobytes())
        facts = TaskFacts.from_json(arrays["facts"].tobytes().decode())
    except (ArchiveError, KeyError, ValueError) as error:
        raise StateError(f"{path} is damaged: {error}") from error
    part = _part(path.parent, number)
    kept = {} if part is None else dict(part.arrays)
    state = algorithm_state(kept)
    buffers = {
        name.removeprefix(_BUFFER): array for name, array in arrays.items() if name.startswith(_BUFFER)
    } | kept
    algorithm = make_algorithm(about["algorithm"], about["options"])
    global_part = np.asarray(algorithm.personalised(global_part, state), dtype=np.float32)
    if not all(np.isfinite(one).all() for one in (global_part, *buffers.values())):
        raise StateError(f"{path} holds values that are not finite")
    trained = "its initial personal part" if part is None else f"its personal part of round {part.round}"
    return trained_model(
        facts,
        global_part=global_part,
        personal=None if part is None else part.weights,
        buffers=statistics(buffers, state),
        init=torch.Generator().manual_seed(torch_seed(about["seed"], "init")),
        origin=f"device {number}, the global part after round {after} and {trained}, of {path.parent.name}",
    )


def _part(folder: Path, device: int) -> Part | None:
    """Return the device's newest personal part that can be read, or None where it has none."""
    refused = []
    for path in part_files(folder, device):
        try:
            return load_file(path, device)
        except StateError as error:
            refused.append(str(error))
    if refused:
        raise StateError("; ".join(refused))
    return None


def _newest(state_dir: Path, run: str | None, device: int | None) -> tuple[Path, int, int]:
    folders = [state_dir, *sorted(state_dir.glob("*/"))] if run is None else [state_dir / run]
    found = [(path, int(name[1]), int(name[2])) for folder in folders for path, name in _found(folder)]
    if not found:
        there = sorted(path.name for path in state_dir.glob("*/")) if state_dir.is_dir() else []
        raise StateError(
            f"{state_dir if run is None else state_dir / run} holds no model of a node; a node writes it in "
            f"the first round, below the state-dir of its node-config. There: {', '.join(there) or 'nothing'}"
        )
    devices = sorted({number for _, number, _ in found})
    if device is None and len(devices) > 1:
        raise StateError(f"{state_dir} holds the models of devices {devices}; say which: --device")
    found = [one for one in found if device in (None, one[1])]
    if not found:
        raise StateError(f"{state_dir} holds the models of devices {devices}, none of device {device}")
    return max(found, key=lambda one: (one[0].stat().st_mtime_ns, one[2]))


def _found(folder: Path) -> list[tuple[Path, re.Match[str]]]:
    if not folder.is_dir():
        return []
    return [(path, name) for path in folder.iterdir() if (name := _FILE_NAME.fullmatch(path.name))]


def _text(text: str) -> npt.NDArray[np.uint8]:
    return np.frombuffer(text.encode(), np.uint8)


__all__ = ["Origin", "StateError", "WeightsError", "keep_global", "own_model"]
