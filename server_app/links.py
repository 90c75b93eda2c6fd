"""From settings to the uplink of a run, in SI units: emulated bands and beams, or a measured network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from radio.latency import ComputeModel
from schema import in_si
from schema.uses import TRIAL_STEPS
from server_app.channels import channel_model
from server_app.devices import device_energy, device_values, device_weights
from strategies.measured import MeasuredLink
from strategies.ofdma import OfdmaCell
from strategies.settings import MeasuredSettings
from task.build import Task
from task.work import multiply_adds

Vector = npt.NDArray[np.float64]

if TYPE_CHECKING:
    from server_app.job import Job
    from strategies.air_interface import AirInterface


def measured_link(measured: MeasuredSettings, radio: Mapping[str, Any]) -> MeasuredLink:
    """Return the budget of a round on real nodes; `radio` holds its settings in SI units."""
    return MeasuredLink(
        threshold=radio["latency_threshold"],
        bits_per_weight=radio["bits_per_weight"],
        window=measured.window,
        margin=measured.margin,
        initial_pruning_ratio=measured.initial_pruning_ratio,
        max_pruning_ratio=radio["max_pruning_ratio"],
    )


def air_interface(job: Job) -> AirInterface:
    """Return the analog uplink in SI and linear units."""
    from radio.air.ofdm import ofdm
    from strategies.air_interface import AirInterface

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
        energy=device_energy(device_values(job.settings)),
        charge_side_information=air.charge_side_information,
        clip_norm=job.settings.privacy.clip_norm,
        ofdm=None if job.settings.scheme.uplink == "over_the_air_pruned" else ofdm(air),
    )


def ofdma_cell(job: Job) -> OfdmaCell:
    """Return the emulated cell in SI units."""
    radio = in_si(job.settings.radio)
    fixed_time, compute_time = device_times(job)
    values = device_values(job.settings)
    energy = device_energy(values)
    return OfdmaCell(
        channel=channel_model(job.settings, job.settings.channel.antennas),
        fixed_time=fixed_time,
        compute_time=compute_time,
        bandwidth=radio["bandwidth"],
        transmit_power=energy.power,
        energy=energy,
        weights=device_weights(values),
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
    personal_cycles, global_cycles = _cycles(job.task, radio.cycles, training.batch_size, values)
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
            personal_cycles=personal_cycles,
            global_cycles=global_cycles,
            include_importance_cost=radio.include_importance_cost and TRIAL_STEPS.holds(job.settings),
        )
        members = (taken == steps).all(axis=1)
        fixed[members] = model.fixed_time(values["cpu_hz"])[members]
        compute[members] = model.compute_time(values["cpu_hz"])[members]
    return fixed, compute


def _cycles(task: Task, by: str, batch_size: int, values: Mapping[str, Vector]) -> tuple[Vector, Vector]:
    """Return the cycles per weight and local step of the personal and of the global part, (K,) each.

    By flops, each part's multiply-adds for a batch of the device, spread over the part's weights: pruning
    then saves its share of them.
    """
    if by == "weights":
        return values["cycles_per_weight_personal"], values["cycles_per_weight"]
    sizes = np.array([part.train.size for part in task.parts])
    first = next(part.train[:1] for part in task.parts if part.train.size)
    work = multiply_adds(task.model, task.split, task.train(first)[0])
    cycles = values["cycles_per_multiply_add"] * np.minimum(sizes, batch_size)
    personal, of_global = task.split.personal.size, task.split.global_part.size
    return cycles * work.personal / max(1, personal), cycles * work.of_global / of_global
