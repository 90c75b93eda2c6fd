"""The settings of a run: one tree of groups, each declared in the package that it configures.

The groups of packages that stand above this one are here. The values are in ``conf/``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import schema
from protocol.training import TrainingSpec
from radio.settings import AirSettings, ChannelSettings, RadioSettings, SchedulerSettings
from records.settings import TrackerSettings
from records.stop import StopSettings
from schema import Unit, key
from schema.uses import STUDY, TRAINING
from strategies.settings import (
    AdaptiveSettings,
    FleetSettings,
    MeasuredSettings,
    PrivacySettings,
    SchemeSettings,
    SelectionSettings,
    ServerSettings,
)
from task.settings import DatasetSettings, ModelSettings, PartitionSettings, TaskSettings

_STAND_FOR_OTHERS = ("experiment", "size")  # conf/experiment and conf/size: choices of values, no keys
_MIB = Unit("MiB", "B", lambda value: value * 2**20)


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """What runs the devices."""

    name: Literal["inprocess", "flower", "ray"] = key(
        "inprocess: worker processes of this command; flower: its simulation; ray: called from this command",
        decides=False,
    )
    workers: int | None = key(
        "processes or Ray actors; null: one per CPU core (device=cuda: 1); 1: inside the main process",
        minimum=1, decides=False,
    )  # fmt: skip
    state_memory_mib: float = key(
        "personal parts kept in memory (inprocess only); those beyond it go to a temporary folder",
        unit=_MIB, minimum=0, decides=False,
    )  # fmt: skip
    batch_devices: int | None = key(
        "devices trained as one set of tensors (inprocess only): much faster for tiny models or on a GPU; "
        "equal to 1 up to rounding; null: several in rounds of 32 tiny models or more",
        minimum=1, decides=False,
    )  # fmt: skip
    device: Literal["cpu", "cuda"] = key("cuda together with batch_devices (inprocess only)", decides=False)


@dataclass(frozen=True, kw_only=True)
class StudySettings:
    """A job that looks at the radio and trains nothing."""

    name: str | None = key(
        "scheduling, optimality, planning, printed_formula, or package.module:function; null: train"
    )
    draws: int = key("channel draws of a study", minimum=1, used=STUDY)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that decides a run."""

    seed: int = key("one seed makes the whole run reproducible", minimum=0)
    rounds: int = key(
        "global rounds; counts from the start of the run, also after a resume", minimum=1, used=TRAINING
    )
    evaluate_every: int = key(
        "rounds between two evaluations (the last round is always evaluated)",
        unit="rounds", minimum=1, used=TRAINING,
    )  # fmt: skip
    evaluate_global: bool = key(
        "also test the global model on the whole test set; where nothing is personal", used=TRAINING
    )
    checkpoint_every: int | None = key(
        "rounds between two checkpoints; 0: only at the end; null: 1 on a fleet of nodes, else 0",
        unit="rounds", minimum=0, used=TRAINING, decides=False,
    )  # fmt: skip
    resume: str | None = key(
        "run folder (or its checkpoint folder) to continue", path=True, used=TRAINING, decides=False
    )
    fleet: FleetSettings
    radio: RadioSettings
    channel: ChannelSettings
    measured: MeasuredSettings
    model: ModelSettings
    dataset: DatasetSettings
    partition: PartitionSettings
    task: TaskSettings
    training: TrainingSpec
    scheme: SchemeSettings
    server: ServerSettings
    selection: SelectionSettings
    stop: StopSettings
    air: AirSettings
    adaptive: AdaptiveSettings
    scheduler: SchedulerSettings
    privacy: PrivacySettings
    engine: EngineSettings
    study: StudySettings
    tracker: TrackerSettings
    report: Mapping[str, Any] = key(
        "how airflower-report draws these runs (docs/new_experiment.md); empty: curves of what differs",
        decides=False,
    )

    @property
    def personal_patterns(self) -> tuple[str, ...] | None:
        """Patterns of the personal parameters under this scheme; None where the user has to choose them."""
        return self.model.personal if self.scheme.personalization else ()

    @property
    def learning(self) -> dict[str, Any]:
        """Return the fields of `task.build.Learning`."""
        data, task = self.dataset, self.task
        return {
            "transform": data.transform,
            "transform_options": dict(data.transform_options),
            "augment": data.augment,
            "augment_options": dict(data.augment_options),
            "loss": task.loss,
            "loss_options": dict(task.loss_options),
            "metrics": None if task.metrics is None else list(task.metrics),
            "buffers": self.model.buffers,
        }

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain values, as in the configuration files."""
        return dataclasses.asdict(self)


def decides_nothing(name: str) -> bool:
    """Return whether a key, or all keys of a group, can change where or how a run is done, but no record."""
    return schema.decides_nothing(Settings, name)


def names_that_decide_nothing() -> list[str]:
    """Return all keys and groups of that kind, and the groups that only stand for values of others."""
    names = {*schema.declarations(Settings), *(field.name for field in dataclasses.fields(Settings))}
    return [*_STAND_FOR_OTHERS, *sorted(name for name in names if decides_nothing(name))]


def flatten(tree: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Return nested values under dotted keys, as on the command line."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        full = f"{path}.{name}" if path else str(name)
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, full))
        else:
            flat[full] = value
    return flat
