"""What a run left, for use from Python: its configuration, its tables, and its trained models.

from server_app.results import load_run, load_runs

run = load_run("outputs/2026-11-26/12-00-00-proposed-digits")
run.rounds["accuracy"]        # a pandas column if pandas is installed, else a NumPy array
model = run.model(device=3)   # an nn.Module: pictures as bytes in, logits out
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from omegaconf import OmegaConf

from client_app.algorithms import algorithm_state, make_algorithm, statistics
from protocol.archives import ArchiveError, read_archive
from protocol.streams import torch_seed
from records import checkpoint
from records.recorder import DEVICE_TIMING, DEVICES, ROUNDS, TIMING
from task.trained import TaskFacts, TrainedModel, WeightsError, trained_model

SUMMARY, CONFIG, TASK = "summary.json", "config.yaml", "task.json"
_ARRAY = "array."  # of the names of what else a stored personal part holds


class ResultsError(ValueError):
    """A folder holds no such result; the text says what is missing."""


@dataclass(frozen=True)
class Run:
    """A run folder.

    Attributes:
        folder: where it is.
        config: the configuration, nested.
        summary: ``summary.json``: how it ended, final values, versions.
    """

    folder: Path
    config: Mapping[str, Any]
    summary: Mapping[str, Any]

    @cached_property
    def rounds(self) -> Any:
        """One row per round: a pandas DataFrame if pandas is installed, else a dict of NumPy arrays."""
        return _table(self.folder / ROUNDS)

    @cached_property
    def devices(self) -> Any:
        """One row per device and round."""
        return _table(self.folder / DEVICES)

    @cached_property
    def timing(self) -> Any:
        """Measured seconds, one row per round."""
        return _table(self.folder / TIMING)

    @cached_property
    def device_timing(self) -> Any:
        """Seconds that devices measured, one row per device and round."""
        return _table(self.folder / DEVICE_TIMING)

    def model(self, device: int | None = None) -> TrainedModel:
        """Return the trained model of the newest checkpoint, ready to predict.

        Args:
            device: whose personal part it has; None: the global model, where nothing is personal.

        Raises:
            ResultsError: if there is no checkpoint, or it lacks the device's part.
        """
        try:
            facts = self._facts()
        except WeightsError as error:
            raise ResultsError(f"{self.folder / TASK}: {error}") from error
        kept = self._checkpoint()
        personal, buffers = None, dict(_shared_buffers(kept.state))
        global_part = kept.weights
        if device is not None:
            personal, own = self._personal(kept, device)
            buffers |= own
            state = algorithm_state(own)
            buffers = dict(statistics(buffers, state))
            training = self.config["training"]
            algorithm = make_algorithm(training["algorithm"], training["options"])
            global_part = np.asarray(algorithm.personalised(global_part, state), dtype=np.float32)
        elif facts.personal:
            raise ResultsError(
                f"{self.folder}: the model has a personal part ({', '.join(facts.personal)}), so that each "
                "device has a model of its own; say which device's (device = 0, 1, ...)"
            )
        owner = "the global model" if device is None else f"device {device}"
        seed = int(self.config["seed"])
        try:
            return trained_model(
                facts,
                global_part=global_part,
                personal=personal,
                buffers=buffers,
                init=torch.Generator().manual_seed(torch_seed(seed, "init")),
                origin=f"{owner} after round {kept.round} of {self.folder.name}",
            )
        except WeightsError as error:
            raise ResultsError(f"{self.folder}: {error}") from error

    def _facts(self) -> TaskFacts:
        try:
            return TaskFacts.from_json((self.folder / TASK).read_text())
        except OSError as error:
            raise ResultsError(
                f"{self.folder / TASK} is missing: the run trained nothing, or is of an earlier version"
            ) from error

    def _checkpoint(self) -> checkpoint.Checkpoint:
        refused = []
        for _, folder in checkpoint.checkpoints(self.folder):
            try:
                return checkpoint.open_checkpoint(folder)
            except checkpoint.CheckpointError as error:
                refused.append(f"{folder.name}: {error}")
        raise ResultsError(f"{self.folder}: no usable checkpoint; {'; '.join(refused) or 'there is none'}")

    def _personal(
        self, kept: checkpoint.Checkpoint, device: int
    ) -> tuple[npt.NDArray[np.float32] | None, dict[str, npt.NDArray[Any]]]:
        part = kept.manifest.devices.get(device)
        if part is None:
            raise ResultsError(
                f"device = {device}; the run has devices 0 to {len(kept.manifest.devices) - 1}"
            )
        if part.own:
            raise ResultsError(
                f"device = {device}: its personal part is on the node itself, in its state-dir; use "
                "airflower-supernode predict there"
            )
        if part.round == 0:
            return None, {}  # it never trained: its part is the initial one
        if not part.sha256:
            raise ResultsError(f"device = {device}: its personal part was not stored ({part.reason})")
        path = kept.personal_dir / f"device-{device:06d}-round-{part.round:06d}.npz"
        try:
            arrays = read_archive(path)
            personal = arrays["personal"]
        except (ArchiveError, KeyError) as error:
            raise ResultsError(f"{path} cannot be read: {error}") from error
        return personal, {
            name.removeprefix(_ARRAY): array for name, array in arrays.items() if name.startswith(_ARRAY)
        }


def load_run(path: str | Path) -> Run:
    """Return the run of a folder.

    Raises:
        ResultsError: if the folder holds no run.
    """
    folder = Path(path).expanduser()
    try:
        tree = OmegaConf.to_container(OmegaConf.load(folder / CONFIG), resolve=True)
        summary = json.loads((folder / SUMMARY).read_text())
    except Exception as error:  # yaml fails in ways of its own
        raise ResultsError(
            f"{folder} is no run folder: {CONFIG} and {SUMMARY} are needed ({error})"
        ) from error
    if not isinstance(tree, dict) or not isinstance(summary, dict):
        raise ResultsError(f"{folder}: {CONFIG} or {SUMMARY} is not a mapping")
    return Run(folder, {str(name): value for name, value in tree.items()}, summary)


def load_runs(path: str | Path) -> list[Run]:
    """Return all runs at or below a folder, ordered by their paths.

    Raises:
        ResultsError: if there is none.
    """
    found = [
        load_run(summary.parent)
        for summary in sorted(Path(path).expanduser().rglob(SUMMARY))
        if (summary.parent / CONFIG).is_file()
    ]
    if not found:
        raise ResultsError(f"no run folder at or below {path}")
    return found


def _table(path: Path) -> Any:
    try:
        import pandas
    except ImportError:
        return _columns(path)
    return pandas.read_csv(path) if path.is_file() else pandas.DataFrame()


def _columns(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Return the columns of a CSV file: numbers as float64, NaN where there is none, else text."""
    if not path.is_file():
        return {}
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        rows = [row for row in reader if None not in row.values()]  # the last may be cut short
        names = list(reader.fieldnames or ())
    return {name: _column([row[name] for row in rows]) for name in names}


def _column(cells: list[str]) -> npt.NDArray[Any]:
    try:
        return np.array([float(cell) if cell else np.nan for cell in cells])
    except ValueError:
        return np.array(cells)


def _shared_buffers(state: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    return {
        name.removeprefix("buffer."): array for name, array in state.items() if name.startswith("buffer.")
    }
