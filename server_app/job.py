"""From settings to the parts of a run: model sizes, device specification, strategy.

All that can be wrong with a configuration is found here, before anything is trained.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from client_app.algorithms import Steps, check_training, steps_per_round
from protocol.messages import DeviceSpec
from protocol.streams import generator, torch_seed
from radio.latency import ComputeModel
from schema import ConfigError, in_si
from schema.uses import TRIAL_STEPS
from server_app.channels import channel_model, try_channels
from server_app.data_facts import DataFacts
from server_app.devices import device_energy, device_values
from server_app.settings import Settings
from strategies.aggregation import ChosenAggregation, choose
from strategies.base import WirelessStrategy
from strategies.buffers import SharedBuffers
from strategies.evaluation import ACCURACY, MetricColumns
from strategies.fleet import Fleet
from strategies.identity import read_roster
from strategies.limits import NormLimit
from strategies.measured import MeasuredLink, MeasuredStrategy, UplinkProbe
from strategies.ofdma import OfdmaCell, OfdmaStrategy
from strategies.sample_counts import SampleCounts
from strategies.server_optimizers import ServerStep
from task.build import Learning, Task, TaskError, build_task
from task.check import check_task
from task.dataset import Dataset
from task.global_evaluation import test_global
from task.metrics import combined, lower_is_better
from task.split import Split, flatten, persistent_buffers
from task.trained import TaskFacts

if TYPE_CHECKING:
    from strategies.over_the_air import AirInterface

# Clocks of server and nodes may differ by this much before a short round makes orders void on arrival.
_TTL_SLACK_SECONDS = 60.0


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
        data, spec = self.task.data, self.spec
        real = not data.train[0].is_floating_point() and not data.pictures
        mean, std = ((), ()) if real else data.statistics
        return TaskFacts(
            model=spec.model,
            personal=tuple(spec.personal),
            learning=spec.learning,
            num_classes=data.num_classes or 0,
            outputs=data.num_classes or math.prod(data.train[1].shape[1:]),
            sample_shape=data.sample_shape,
            sample_dtype=str(data.train[0].dtype).removeprefix("torch."),
            mean=mean,
            std=std,
            label_names=data.label_names,
        )


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
            personal=spec.personal,
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
        vectors=_vectors(settings, algorithm.sends),
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


def _metric_columns(task: Task) -> tuple[MetricColumns, ...]:
    return tuple(
        ACCURACY
        if metric.name == "accuracy"
        else MetricColumns(
            metric.name, partial(combined, metric.name), lower_is_better=lower_is_better(metric.name)
        )
        for metric in task.metrics
    )


def _normalisation(data: Dataset) -> dict[str, Any]:
    """Return what a node with pictures of its own normalises them by: agreed once per run."""
    if not data.pictures:
        return {}
    mean, std = data.statistics
    return {"mean": mean, "std": std}


def _vectors(settings: Settings, names: tuple[str, ...]) -> tuple[str, ...]:
    """Return what the local algorithm sends beside the global part.

    Raises:
        ConfigError: if it sends something, and the uplink cannot carry it.
    """
    if names and settings.scheme.uplink != "ofdma":
        raise ConfigError(
            f"training.algorithm = {settings.training.algorithm} sends {', '.join(names)} beside the global "
            f"part, which scheme.uplink = {settings.scheme.uplink} cannot carry: the air adds updates of the "
            "global part only; use a scheme with scheme.uplink = ofdma, or another algorithm"
        )
    return names


def device_spec(settings: Settings) -> DeviceSpec:
    """Return what every device is told; also the identity of the run for what devices store."""
    values: dict[str, Any] = {
        "seed": settings.seed,
        "num_devices": settings.fleet.num_devices,
        "model": {"name": settings.model.name, "options": dict(settings.model.options)},
        "personal": settings.personal_patterns,
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
    deciding = {
        **values,
        "dataset": [settings.dataset.name, dict(settings.dataset.options)],
    }  # not whether it may be downloaded
    digest = hashlib.sha256(json.dumps([deciding, settings.scheme.name], sort_keys=True).encode()).hexdigest()
    return DeviceSpec(run_key=digest[:16], **values)


def _fleet(settings: Settings, spec: str) -> Fleet:
    """Return the fleet, with the roster that the settings name.

    Raises:
        ConfigError: if the roster cannot be used.
    """
    fleet = settings.fleet
    if fleet.roster is None:
        return Fleet(fleet.num_devices, spec=spec, by_key=fleet.identity == "key")
    path = Path(fleet.roster).expanduser()
    try:
        return Fleet(fleet.num_devices, spec=spec, roster=read_roster(path, fleet.num_devices))
    except (OSError, ValueError) as error:
        raise ConfigError(f"fleet.roster = {fleet.roster}: {error}") from error


def build_strategy(
    job: Job,
    *,
    resume_dir: str = "",
    run: str = "",
    resume_run: str = "",
    resume_round: int = 0,
    resume_parts: Mapping[int, int] | None = None,
    probe: UplinkProbe | None = None,
) -> WirelessStrategy:
    """Return the strategy that the scheme names; the rest as in `WirelessStrategy`.

    `probe` measures the uplink where the radio is a measured one.

    Raises:
        ConfigError: if the scheme's policy is unknown or a radio value does not fit.
    """
    settings = job.settings
    skeleton: dict[str, Any] = {
        "seed": settings.seed,
        "num_weights": job.split.global_part.size,
        "spec": job.spec.to_json(),
        "fleet": _fleet(settings, job.spec.to_json()),
        "devices_per_round": settings.fleet.devices_per_round,
        "evaluate_every": settings.evaluate_every,
        "evaluate_participants": settings.fleet.evaluate == "participants",
        "last_round": settings.rounds,
        "min_replies": settings.fleet.min_replies,
        "resume_dir": resume_dir,
        "run": run,
        "resume_run": resume_run,
        "resume_round": resume_round,
        "resume_parts": resume_parts,
        "norm_limit": _norm_limit(settings),
        "train_counts": SampleCounts(job.data.train, settings.fleet.max_own_images),
        "test_counts": SampleCounts(job.data.test, settings.fleet.max_own_images, "test images"),
        "message_ttl": settings.fleet.round_timeout_s + _TTL_SLACK_SECONDS,
    }
    task = job.task
    first = {name: buffer.flatten().numpy() for name, buffer in persistent_buffers(task.model).items()}
    skeleton["buffers"] = SharedBuffers({name: first[name] for name in task.split.shared_buffers})
    skeleton["metrics"] = _metric_columns(task)
    if settings.evaluate_global:
        skeleton["global_test"] = partial(test_global, task)
    skeleton["vectors"] = job.vectors
    skeleton["server"] = _server_step(settings)
    skeleton["divergence_loss"] = settings.fleet.divergence_loss
    if settings.channel.source == "measured":
        return MeasuredStrategy(
            link=measured_link(settings),
            probe=probe,
            weighting=settings.scheme.weighting,
            aggregation=_aggregation(settings),
            **skeleton,
        )
    if settings.scheme.uplink != "ofdma":
        return _over_the_air(job, skeleton)
    cell = ofdma_cell(job)
    try_channels(cell.emulate(partial(generator, settings.seed)), settings.rounds)
    aggregation = _aggregation(settings)
    try:
        return OfdmaStrategy(
            cell=cell,
            policy=settings.scheme.allocation,
            pruning_ratio=settings.scheme.pruning_ratio,
            weighting=settings.scheme.weighting,
            aggregation=aggregation,
            **skeleton,
        )
    except ValueError as error:
        raise ConfigError(f"scheme.allocation = {settings.scheme.allocation}: {error}") from error


def _server_step(settings: Settings) -> ServerStep:
    """Return the server's step.

    Raises:
        ConfigError: if it is not valid.
    """
    server = settings.server
    try:
        return ServerStep(server.optimizer, server.learning_rate, server.options)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"server: {error}") from error


def _aggregation(settings: Settings) -> ChosenAggregation:
    """Return what becomes of the uploads.

    Raises:
        ConfigError: if it is not valid.
    """
    try:
        return choose(settings.scheme.aggregation, settings.scheme.aggregation_options)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"scheme.aggregation = {settings.scheme.aggregation}: {error}") from error


def _norm_limit(settings: Settings) -> NormLimit:
    limit, action = settings.fleet.upload_norm_limit, settings.fleet.upload_norm_action
    if limit == "auto":
        return NormLimit(None, action)
    return NormLimit(math.inf if limit is None else limit, action)


def measured_link(settings: Settings) -> MeasuredLink:
    """Return the budget of a round on real nodes, in SI units."""
    measured, radio = settings.measured, in_si(settings.radio)
    return MeasuredLink(
        threshold=radio["latency_threshold"],
        bits_per_weight=radio["bits_per_weight"],
        window=measured.window,
        margin=measured.margin,
        initial_pruning_ratio=measured.initial_pruning_ratio,
        max_pruning_ratio=radio["max_pruning_ratio"],
    )


def _over_the_air(job: Job, skeleton: dict[str, Any]) -> WirelessStrategy:
    from strategies.over_the_air import OverTheAir  # half a second of imports
    from strategies.pruned_over_the_air import PrunedOverTheAir

    settings, air = job.settings, job.settings.air
    try:
        interface = air_interface(job)
        try_channels(interface.cell(partial(generator, settings.seed)), settings.rounds)
        parts = {"air": interface, "weighting": settings.scheme.weighting, **skeleton}
        if settings.scheme.uplink == "over_the_air":
            return OverTheAir(**parts)
        return PrunedOverTheAir(
            count_mode=air.count_mode,
            shrinkage=air.shrinkage,
            explore=air.explore,
            min_count=air.min_count,
            **parts,
        )
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"scheduler.method = {settings.scheduler.method}: {error}") from error


def air_interface(job: Job) -> AirInterface:
    """Return the analog uplink in SI and linear units."""
    from strategies.over_the_air import AirInterface

    air, scheduler, radio = job.settings.air, job.settings.scheduler, in_si(job.settings.radio)
    fixed_time, compute_time = device_times(job)
    return AirInterface(
        channel=channel_model(job.settings, air.antennas),
        path_loss=air.path_loss,
        snr=in_si(air)["snr"],
        noise=air.noise,
        num_selected=air.num_selected,
        method=scheduler.method,
        beamformer=scheduler.beamformer,
        scheduler_options=scheduler.options,
        mode=air.normalization,
        packing=air.packing,
        payload=air.payload,
        channel_error_variance=air.channel_error_variance,
        csi_delay=job.settings.channel.csi_delay_rounds,
        recompute_beam=air.recompute_beam,
        certificate=air.certificate,
        bandwidth=radio["bandwidth"],
        fixed_time=fixed_time,
        compute_time=compute_time,
        latency_threshold=radio["latency_threshold"],
    )


def ofdma_cell(job: Job) -> OfdmaCell:
    """Return the emulated cell in SI units."""
    radio = in_si(job.settings.radio)
    fixed_time, compute_time = device_times(job)
    energy = device_energy(device_values(job.settings))
    return OfdmaCell(
        channel=channel_model(job.settings, job.settings.channel.antennas),
        fixed_time=fixed_time,
        compute_time=compute_time,
        bandwidth=radio["bandwidth"],
        transmit_power=energy.power,
        energy=energy,
        fairness=job.settings.scheme.fairness,
        tie_break=job.settings.scheme.tie_break,
        objective=job.settings.scheme.objective,
        noise_power=radio["noise_power"],
        latency_threshold=radio["latency_threshold"],
        bits_per_weight=radio["bits_per_weight"],
        noise_model=radio["noise_model"],
        charge_mask_bits=radio["charge_mask_bits"],
        max_pruning_ratio=radio["max_pruning_ratio"],
        when_infeasible=radio["when_infeasible"],
        csi_delay=job.settings.channel.csi_delay_rounds,
        csi_error=job.settings.channel.csi_error_variance,
        margin=radio["rate_backoff"],
        on_outage=job.settings.channel.on_outage,
    )


def device_times(job: Job) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return T0 and G of every device, in s, shape (K,) each.

    Devices differ where training is counted in epochs over parts of different size.
    """
    radio, training = job.settings.radio, job.settings.training
    values = device_values(job.settings)
    taken = np.stack(job.steps, axis=1)
    fixed, compute = np.empty(len(taken)), np.empty(len(taken))
    for steps in sorted({tuple(row) for row in taken.tolist()}):
        model = ComputeModel(
            personal_weights=job.split.personal.size,
            global_weights=job.split.global_part.size,
            personal_steps=steps[0],
            global_steps=steps[1],
            importance_steps=training.importance_steps,
            copy_steps=steps[2],
            personal_cycles=values["cycles_per_weight_personal"],
            global_cycles=values["cycles_per_weight"],
            include_importance_cost=radio.include_importance_cost and TRIAL_STEPS.holds(job.settings),
        )
        members = (taken == steps).all(axis=1)
        fixed[members] = model.fixed_time(values["cpu_hz"])[members]
        compute[members] = model.compute_time(values["cpu_hz"])[members]
    return fixed, compute
