"""Our run of a workload as what the other sides are given: images, first weights, orders, participants."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import torch

from benchmarks.peers.given import Given, save
from benchmarks.peers.workloads import Workload
from client_app.device import run_context
from client_app.samples import spawn
from protocol.streams import torch_seed
from server_app.job import prepare
from server_app.settings import compose_settings

_PERSONAL, _GLOBAL = 0, 2  # streams of a device's round; see `client_app.phases`


def participants(run_folder: Path) -> list[list[int]]:
    """Return the devices that took part in each round of a run."""
    found: dict[int, list[int]] = {}
    with (run_folder / "devices.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if row["status"] == "ok":
                found.setdefault(int(row["round"]), []).append(int(row["device"]))
    return [sorted(found[number]) for number in sorted(found)]


def give(workload: Workload, run_folder: Path, folder: Path, threads: int) -> Given:
    """Write what the other sides need to do the rounds of a run, and return it."""
    job = prepare(compose_settings(workload.overrides()))
    run = run_context(job.spec.to_json())
    pairs = [run.task.train(part.train) for part in run.parts]
    parameters = {name: value.detach().clone() for name, value in run.network.module.named_parameters()}
    split = run.network.split
    for layout, vector in (
        (split.personal, run.initial_personal),
        (split.global_part, job.initial_weights),
    ):
        for (name, place), shape in zip(layout.slices().items(), layout.shapes, strict=True):
            parameters[name] = torch.from_numpy(np.array(vector[place])).view(shape)
    phases = [_PERSONAL, _GLOBAL] if workload.alternating else [_GLOBAL]
    orders = torch.stack(
        [
            torch.stack(
                [_orders(run.spec.seed, number, device, workload, phases) for device in range(len(pairs))]
            )
            for number in range(1, workload.rounds + 1)
        ]
    )
    given = Given(
        model=workload.model,
        options=dict(workload.options),
        images=torch.stack([images for images, _ in pairs]),
        labels=torch.stack([labels for _, labels in pairs]),
        weights=parameters,
        personal=tuple(split.personal.names),
        batch=workload.batch,
        rate=workload.rate,
        orders=orders,
        participants=participants(run_folder),
        threads=threads,
    )
    save(given, folder)
    return given


def _orders(seed: int, number: int, device: int, workload: Workload, phases: list[int]) -> torch.Tensor:
    """Return the orders (phases, n) in which a device goes through its images in a round."""
    if workload.batch >= workload.images:
        return torch.arange(workload.images).expand(len(phases), -1)
    first = torch.Generator().manual_seed(torch_seed(seed, "batches", number, device))
    streams = spawn(first, 3)
    return torch.stack([torch.randperm(workload.images, generator=streams[phase]) for phase in phases])
