"""From settings to a job: the task, the sizes of its model, what every device is told.

All that can be wrong with a configuration is found here, before anything is trained.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from client_app.algorithms import Steps, check_training, steps_per_round
from protocol.messages import DeviceSpec
from protocol.streams import generator, torch_seed
from schema import ConfigError
from server_app.data_facts import DataFacts
from server_app.settings import Settings
from task.build import Learning, Task, TaskError, build_task
from task.check import check_task
from task.dataset import Dataset
from task.split import Split, flatten
from task.trained import TaskFacts, facts_of


@dataclass(frozen=True)
class Job:
    """A run that is ready to start.

    Attributes:
        settings: the checked settings.
        spec: what every device is told.
        split: names and sizes of the personal and the global part.
        initial_weights: global part before the first round, float32, shape (N_u,).
        steps: steps of each device in a round, (K,) each.
        vectors: names of what the local algorithm sends beside the global part.
        data: what each device learns from.
        task: what is learned.
    """

    settings: Settings
    spec: DeviceSpec
    split: Split
    initial_weights: npt.NDArray[np.float32]
    steps: Steps
    vectors: tuple[str, ...]
    data: DataFacts
    task: Task

    @property
    def facts(self) -> TaskFacts:
        """Return what the trained network is, for those who use it without the data."""
        spec = self.spec
        return facts_of(self.task.data, model=spec.model, personal=spec.personal, learning=spec.learning)


def prepare(settings: Settings, *, on_nodes: bool = False) -> Job:
    """Build the model, the data set and the partition once, as the devices will.

    Args:
        settings: the checked settings.
        on_nodes: whether the devices are nodes of a fleet, which may keep their data sets elsewhere.

    Raises:
        ConfigError: naming the configuration key, the value and what would be valid.
    """
    torch.set_num_threads(1)  # the same arithmetic on every machine, and no thread pool before workers fork
    spec = device_spec(settings)
    try:
        task = build_task(
            dataset={**spec.dataset, "root": settings.dataset.root},
            parts=spec.partition,
            num_devices=spec.num_devices,
            model=spec.model,
            personal=settings.personal_patterns,
            deal=generator(settings.seed, "partition"),
            init=torch.Generator().manual_seed(torch_seed(settings.seed, "init")),
            learning=Learning(**spec.learning),
        )
        check_task(task, batch_size=settings.training.batch_size, model_name=settings.model.name)
    except TaskError as error:
        raise ConfigError(str(error)) from error
    data, split = task.data, task.split
    _check_buffers(settings, split)
    spec = dataclasses.replace(
        spec,
        data_root=settings.dataset.root or "",
        own_data_root=on_nodes,
        data_digest=data.digest(),
        num_classes=data.num_classes or 0,
        sample_shape=data.sample_shape,
        label_names=data.label_names,
        **_normalisation(data),
    )
    sizes = np.array([part.train.size for part in task.parts])
    try:
        algorithm = check_training(settings.training)
        steps = steps_per_round(settings.training, sizes, has_personal=split.personal.size > 0)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"training: {error}") from error
    return Job(
        settings=settings,
        spec=spec,
        split=split,
        initial_weights=flatten(task.model, split.global_part),
        steps=steps,
        vectors=_vectors(algorithm.sends, settings),
        data=DataFacts.of(
            settings.dataset.name, task, capped=settings.partition.samples_per_device is not None
        ),
        task=task,
    )


def _check_buffers(settings: Settings, split: Split) -> None:
    """Refuse shared buffers where they cannot be sent, and a global model that there is not.

    Raises:
        ConfigError: naming the key.
    """
    if settings.model.buffers == "shared" and not split.shared_buffers:
        raise ConfigError(
            f"model.buffers = shared: {settings.model.name} has no running statistics to share; use personal"
        )
    if split.shared_buffers and settings.scheme.uplink != "ofdma":
        raise ConfigError(
            f"model.buffers = shared with scheme.uplink = {settings.scheme.uplink}: running statistics are "
            "sent as numbers, which needs a digital uplink (OFDMA or measured); use model.buffers=personal"
        )
    if settings.evaluate_global and (split.personal.size or split.personal_buffers):
        raise ConfigError(
            f"evaluate_global = true: {split.personal.size} weights and {len(split.personal_buffers)} "
            "buffers are personal, so that there is no global model; set model.personal=[] (or "
            "scheme.personalization=false) and model.buffers=shared"
        )


def _normalisation(data: Dataset) -> dict[str, Any]:
    """Return what a node with pictures of its own normalises them by: agreed once per run."""
    if not data.pictures:
        return {}
    mean, std = data.statistics
    return {"mean": mean, "std": std}


def _vectors(names: tuple[str, ...], settings: Settings) -> tuple[str, ...]:
    """Return what the local algorithm sends beside the global part.

    Raises:
        ConfigError: if it sends something, and the uplink cannot carry it, or it is to be private.
    """
    algorithm, uplink = settings.training.algorithm, settings.scheme.uplink
    if names and settings.privacy.clip_norm is not None:
        raise ConfigError(
            f"privacy.clip_norm = {settings.privacy.clip_norm:g}: training.algorithm = {algorithm} sends "
            f"{', '.join(names)} beside the update, without noise; use another algorithm, or set "
            "privacy.clip_norm=null"
        )
    if names and uplink != "ofdma":
        raise ConfigError(
            f"training.algorithm = {algorithm} sends {', '.join(names)} beside the global "
            f"part, which scheme.uplink = {uplink} cannot carry: the air adds updates of the "
            "global part only; use a scheme with scheme.uplink = ofdma, or another algorithm"
        )
    return names


def device_spec(settings: Settings) -> DeviceSpec:
    """Return what every device is told; also the identity of the run for what devices store."""
    values: dict[str, Any] = {
        "seed": settings.seed,
        "num_devices": settings.fleet.num_devices,
        "model": {"name": settings.model.name, "options": dict(settings.model.options)},
        "personal": settings.personal_patterns or (),
        "dataset": {
            "name": settings.dataset.name,
            "download": settings.dataset.download,
            "options": dict(settings.dataset.options),
        },
        "learning": settings.learning,
        "partition": {
            "name": settings.partition.name,
            "samples_per_device": settings.partition.samples_per_device,
            "test_samples_per_device": settings.partition.test_samples_per_device,
            **settings.partition.options,
        },
        "training": settings.to_dict()["training"],
        "bits_per_weight": settings.radio.bits_per_weight,
        "uplink": "digital" if settings.scheme.uplink == "ofdma" else "analog",
    }
    if settings.privacy.clip_norm is not None:  # else what devices have stored keeps its name
        values["clip_norm"] = settings.privacy.clip_norm
        digital = settings.scheme.uplink == "ofdma"
        noise = settings.privacy.clip_norm * settings.privacy.noise_multiplier if digital else 0.0
        values["noise_deviation"] = noise
    deciding = {
        **values,
        "dataset": [settings.dataset.name, dict(settings.dataset.options)],
    }  # not whether it may be downloaded
    digest = hashlib.sha256(json.dumps([deciding, settings.scheme.name], sort_keys=True).encode()).hexdigest()
    return DeviceSpec(run_key=digest[:16], **values)
