"""Rounds of many devices computed as one set of tensors against the same devices one after the other.

On a GPU: the paper's CNN with 10 and 100 devices. Without one: the MLP with 200 devices on one thread.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from flwr.app import Context, RecordDict

from benchmarks.local_training import paper_job, threads
from benchmarks.measure import Figure, interleave, peak_mib, ratio_of
from client_app.device import RunContext, run_context, train
from client_app.fast.stacked import StackedNetwork
from client_app.local_round import DeviceRound, LocalTraining
from client_app.many import train_many
from client_app.samples import StoredPool
from engines.allocator import keep_freed_memory
from protocol.arrays import weights_record
from protocol.messages import TrainOrder
from protocol.streams import torch_seed
from server_app.job import prepare
from server_app.settings import compose_settings

MLP_DEVICES, MLP_CHUNK, RATIO = 200, 16, 0.475
GPU_CHUNK = 100


def figures(*, quick: bool) -> list[Figure]:
    """Measure on the GPU where there is one, else on the processor."""
    if torch.cuda.is_available():
        return [gpu_figure(number, quick=quick) for number in (10, 100)]
    return [processor_figure(quick=quick)]


def processor_figure(*, quick: bool) -> Figure:
    """Measure whole train orders of the MLP, in processor time: reading, training, encoding the upload."""
    keep_freed_memory()
    job = prepare(
        compose_settings(
            ["model=mlp", "partition=iid", f"fleet.num_devices={MLP_DEVICES}", "dataset.name=digits"]
        )
    )
    spec = job.spec.to_json()
    order = TrainOrder(
        round=1,
        num_pruned=int(RATIO * job.initial_weights.size),
        spec=spec,
        weights=weights_record(job.initial_weights),
    )
    orders = [order] * MLP_DEVICES
    fleets = {name: [_context(index) for index in range(MLP_DEVICES)] for name in ("one", "many")}

    def one_after_the_other() -> None:
        for context in fleets["one"]:
            train(order, context)

    def together() -> None:
        answers = train_many(orders, fleets["many"], batch_devices=MLP_CHUNK)
        assert not any(isinstance(answer, Exception) for answer in answers)

    times = _in_turn({"one": one_after_the_other, "many": together}, 5 if quick else 15)
    ratio, spread = ratio_of(times["one"], times["many"])
    samples = len(run_context(spec).parts[0].train)
    return Figure(
        name=f"round of {MLP_DEVICES} devices x {samples} images, MLP, {MLP_CHUNK} devices per batch",
        value=statistics.median(times["many"]),
        unit="processor s",
        baseline="one device after the other",
        ratio=ratio,
        spread=spread,
        memory_mib=peak_mib(),
        details={
            "baseline": round(statistics.median(times["one"]), 3),
            "ms per device": round(1e3 * statistics.median(times["many"]) / MLP_DEVICES, 3),
        },
    )


def gpu_figure(num_devices: int, *, quick: bool) -> Figure:
    """Measure local rounds of the paper's CNN on the GPU; both sides run the same code, batched or not."""
    job = paper_job()
    run: RunContext = run_context(job.spec.to_json())
    devices = [_device(run, number) for number in range(num_devices)]
    sides = {
        name: LocalTraining(
            StackedNetwork(run.network.module, run.network.split, device="cuda"),
            StoredPool(*run.task.data.train, run.task.transform, None, torch.device("cuda")),
            run.algorithm,
            run.training,
            devices_at_once=chunk,
        )
        for name, chunk in (("one", 1), ("many", GPU_CHUNK))
    }

    def local_rounds(name: str) -> None:
        # The results are on the processor at the end, so the GPU is waited for.
        for chunk in sides[name].rounds(job.initial_weights, devices):
            assert not any(isinstance(result, Exception) for result in chunk.values())

    def side(name: str) -> Callable[[], object]:
        return lambda: local_rounds(name)

    times = interleave({name: side(name) for name in sides}, 3 if quick else 7)
    ratio, spread = ratio_of(times["one"], times["many"])
    return Figure(
        name=f"paper CNN, {num_devices} devices x {len(devices[0].samples)} images, batched",
        value=1.0 / statistics.median(times["many"]),
        unit="rounds per s",
        baseline="one device after the other on the same GPU",
        ratio=ratio,
        spread=spread,
        threads=torch.cuda.get_device_name(),
        memory_mib=torch.cuda.max_memory_allocated() / 2**20,
        details={"baseline": round(1.0 / statistics.median(times["one"]), 3)},
    )


def _in_turn(sides: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    with threads(1):
        return interleave(sides, repeats, clock=time.process_time)


def _context(index: int) -> Context:
    node: dict[str, bool | float | int | str] = {"partition-id": index, "num-partitions": MLP_DEVICES}
    return Context(run_id=1, node_id=index, node_config=node, state=RecordDict(), run_config={})


def _device(run: RunContext, number: int) -> DeviceRound:
    """Return a device's round; devices beyond the data set's share the images of earlier ones."""
    seed = torch_seed(run.spec.seed, "batches", 1, number)
    return DeviceRound(
        samples=np.asarray(run.parts[number % len(run.parts)].train),
        personal=run.initial_personal,
        num_pruned=int(RATIO * run.network.split.global_part.size),
        generator=lambda: torch.Generator().manual_seed(seed),
    )
