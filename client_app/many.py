"""Many devices' train orders, answered together by one process: what `device.train` does for one."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import ArrayRecord, Context

from client_app import device as devices
from client_app.fast.layers import UnknownLayerError
from client_app.fast.stacked import StackedNetwork
from client_app.fast.vmapped import VmappedNetwork
from client_app.local_round import DeviceRound, LocalTraining
from client_app.network import ModuleNetwork, Network
from client_app.precision import product_type
from client_app.samples import StoredPool
from protocol.arrays import read_weights
from protocol.messages import TrainOrder, TrainReport

log = logging.getLogger(__name__)


def train_many(
    orders: Sequence[TrainOrder],
    contexts: Sequence[Context],
    *,
    batch_devices: int,
    device: str = "cpu",
) -> list[TrainReport | Exception]:
    """Do the local training of many devices; each personal part is kept in its Context once all went well.

    The results are those of `device.train` within float32 rounding, and do not depend on which devices are
    asked together. The measured seconds of a device are its equal share of the time of its chunk: what it
    would need alone is not measured here.

    Args:
        orders: one for each device, of the same run and round (others are right, too, but not batched).
        contexts: the devices' Contexts, in the same order.
        batch_devices: devices that are computed as one; 1: one after the other by `device.train` itself,
            bit for bit (on the CPU).
        device: where the tensors are: "cpu", "cuda", ...

    Returns:
        For each device its report, or the exception that `device.train` would have raised.

    Raises:
        ValueError: if `batch_devices` is not positive.
    """
    if batch_devices < 1:
        raise ValueError(f"batch_devices = {batch_devices}; it must be at least 1")
    answers: dict[int, TrainReport | Exception] = {}
    read = _Reader()
    groups: dict[tuple[object, ...], dict[int, devices.Assignment]] = {}
    for position, (order, context) in enumerate(zip(orders, contexts, strict=True)):
        try:
            if batch_devices == 1 and device == "cpu":
                answers[position] = devices.train(order, context)
                continue
            work = devices.accept(order, context, read=read)
        except Exception as error:  # of this device alone
            answers[position] = error
        else:
            folder = str(context.node_config.get("data-dir", ""))
            # The server's vectors are those of the broadcast of the same round.
            key = order.spec, folder, id(work.broadcast), order.round
            groups.setdefault(key, {})[position] = work
    for (spec, data_dir, *_), group in groups.items():
        try:
            training = _training(str(spec), str(data_dir), batch_devices, device)
            answers |= _train_group(training, group)
        except Exception as error:  # of them all: no such device, or its memory is full
            answers |= dict.fromkeys(group, error)
    return [answers[position] for position in range(len(orders))]


def _train_group(
    training: LocalTraining, group: dict[int, devices.Assignment]
) -> dict[int, TrainReport | Exception]:
    """Train devices that hold the same broadcast."""
    positions, works = list(group), list(group.values())
    parts = [
        DeviceRound(
            samples=work.run.parts[work.index].train,
            personal=work.personal,
            num_pruned=work.order.num_pruned,
            generator=work.batch_generator,
            mask=work.mask,
            buffers=work.buffers,
            state=work.state,
        )
        for work in works
    ]
    answers: dict[int, TrainReport | Exception] = {}
    started = time.perf_counter()
    first = works[0]
    for chunk in training.rounds(first.broadcast, parts, received=first.vectors, rate=first.rate):
        seconds = (time.perf_counter() - started) / len(chunk)
        for number, result in chunk.items():
            try:
                answers[positions[number]] = (
                    result
                    if isinstance(result, Exception)
                    else devices.report(works[number], result, seconds)
                )
            except Exception as error:  # of this device alone
                answers[positions[number]] = error
        started = time.perf_counter()
    return answers


@lru_cache(maxsize=1)
def _training(spec: str, data_dir: str, batch_devices: int, device: str) -> LocalTraining:
    run = devices.run_context(spec, data_dir)
    network, task = _network(run, device), run.task
    return LocalTraining(
        network,
        StoredPool(*task.data.train, task.transform, task.augment, network.device),
        run.algorithm,
        run.training,
        devices_at_once=batch_devices,
    )


def _network(run: devices.RunContext, device: str) -> Network:
    """Return the devices' copies as one set of tensors, with written-out layers where all are known.

    A network that cannot be computed so (it draws random numbers, or asks for the values of tensors) is that
    of one device after the other, in plain torch.
    """
    module, split, loss = run.network.module, run.network.split, run.task.loss
    dtype = product_type(run.training.precision, device)
    try:
        if not loss.plain_cross_entropy:
            raise UnknownLayerError(f"task.loss = {loss.name} has no gradient written out")
        return StackedNetwork(module, split, device=device, dtype=dtype)
    except UnknownLayerError as error:
        log.info("engine.batch_devices: by torch.func.vmap, since %s", error)
    try:
        if run.network.draws:
            raise RuntimeError("it may draw random numbers, each device's from a stream of its own")
        return _vmapped(run, device)
    except Exception as error:  # code of a user's own fails in every way
        if device != "cpu":
            raise
        log.info("engine.batch_devices: one after the other, since the network cannot be mapped: %s", error)
        return run.network


def _vmapped(run: devices.RunContext, device: str) -> VmappedNetwork:
    """Return the network mapped over devices, after a trial."""
    task, network = run.task, run.network
    inputs, targets = task.train(run.parts[0].train[:3])
    apart = len(inputs) == 3 and _samples_apart(network, inputs)
    mapped = VmappedNetwork(
        network.module, network.split, loss=task.loss, fill_to=8 if apart else 1, device=device
    )
    mapped.use(2)
    for rows, own in ((mapped.personal, network.personal), (mapped.global_part, network.global_part)):
        rows.copy_(own.expand(2, -1))
    mapped.train_only(personal=True, global_part=True)
    mapped.backward(torch.stack([inputs, inputs]).to(device), torch.stack([targets, targets]).to(device))
    return mapped


@torch.no_grad()
def _samples_apart(network: ModuleNetwork, inputs: torch.Tensor) -> bool:
    """Return whether what becomes of a sample does not depend on the others of its batch."""
    network.use(1)
    before = network.copy_buffers()
    first, second = network.module(inputs[[0, 1]])[0], network.module(inputs[[0, 2]])[0]
    network.load_buffers(before)
    return not network.buffer_names and torch.allclose(first, second, rtol=1e-5, atol=1e-6)


class _Reader:
    """Reads the global part once for all devices that were sent the same one."""

    def __init__(self) -> None:
        self._arrays: dict[int, npt.NDArray[np.float32]] = {}
        self._known: list[npt.NDArray[np.float32]] = []

    def __call__(self, record: ArrayRecord) -> npt.NDArray[np.float32]:
        """Return the weights; equal ones are the same object."""
        array = id(record["weights"]) if "weights" in record else 0  # the orders keep the arrays alive
        found = self._arrays.get(array)
        if found is None:
            weights = read_weights(record)
            found = next((known for known in self._known if np.array_equal(known, weights)), weights)
            if found is weights:
                self._known.append(weights)
            self._arrays[array] = found
        return found
