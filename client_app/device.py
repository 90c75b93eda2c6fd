"""A device's side of an order: its data, its model and what it answers."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import Context

from client_app import state
from client_app.evaluation import Evaluation, evaluate
from client_app.flat_model import FlatModel
from client_app.local_training import LocalResult, local_round
from protocol.messages import (
    DeviceSpec,
    EvaluateOrder,
    MessageError,
    TrainOrder,
    TrainReport,
    read_mask,
    read_weights,
    spec_from_json,
)
from protocol.streams import generator, torch_seed
from protocol.training import TrainingSpec
from radio import payload
from task.datasets import ImageData, load_dataset
from task.models import build_model
from task.partition import DevicePart, partition
from task.split import split_parameters


@dataclass(frozen=True)
class Workbench:
    """What every device of a run shares inside one process; the model is overwritten at each use.

    Attributes:
        spec: the run's device specification.
        training: steps and step sizes.
        model: the network.
        initial_personal: personal part of a device that has none yet, float32, shape (N_v,).
        data: the data set.
        parts: each device's samples.
    """

    spec: DeviceSpec
    training: TrainingSpec
    model: FlatModel
    initial_personal: npt.NDArray[np.float32]
    data: ImageData
    parts: list[DevicePart]


@lru_cache(maxsize=1)
def workbench(spec_json: str) -> Workbench:
    """Build what a run's devices need; the same text gives the same object.

    One torch thread, so that results depend neither on the machine's cores nor on the engine.
    """
    torch.set_num_threads(1)
    spec = spec_from_json(spec_json)
    data = load_dataset(**spec.dataset)
    options = dict(spec.partition)
    parts = partition(
        options.pop("name"),
        data.train_labels.numpy(),
        data.test_labels.numpy(),
        spec.num_devices,
        generator(spec.seed, "partition"),
        **options,
    )
    rng = torch.Generator().manual_seed(torch_seed(spec.seed, "init"))
    module = build_model(**spec.model, num_classes=data.num_classes, generator=rng)
    training = TrainingSpec(**spec.training)
    model = FlatModel(module, split_parameters(module, spec.personal), precision=training.precision)
    return Workbench(
        spec=spec,
        training=training,
        model=model,
        initial_personal=model.personal.numpy().copy(),
        data=data,
        parts=parts,
    )


def device_index(context: Context) -> tuple[int, int]:
    """Return (index, number of devices) from the node's configuration.

    Raises:
        MessageError: if `partition-id` or `num-partitions` is absent or not a whole number.
    """
    values = []
    for key in ("partition-id", "num-partitions"):
        value = context.node_config.get(key)
        if not isinstance(value, int) or isinstance(value, bool):
            raise MessageError(
                f"{key} = {value!r} in the node's configuration; start the SuperNode with "
                "--node-config 'partition-id=... num-partitions=...'"
            )
        values.append(value)
    return values[0], values[1]


def train(order: TrainOrder, context: Context) -> TrainReport:
    """Do one round's local training; the personal part is kept in `context` once all went well.

    Raises:
        MessageError: if the order does not fit the model.
        DivergedError: if training left the finite numbers; the personal part stays as it was.
    """
    bench = workbench(order.spec)
    index, _ = device_index(context)
    images, labels = bench.data.train(bench.parts[index].train)
    size = bench.model.split.shared.size
    weights = read_weights(order.weights)
    if weights.size != size:
        raise MessageError(f"the global part has {weights.size} weights; the model has {size}")
    started = time.perf_counter()
    result = local_round(
        bench.model,
        images,
        labels,
        broadcast=weights,
        personal=_personal(bench, order.resume_dir, index, context),
        num_pruned=order.num_pruned,
        spec=bench.training,
        generator=torch.Generator().manual_seed(torch_seed(bench.spec.seed, "batches", order.round, index)),
        mask=None if order.mask is None else read_mask(order.mask, size),
    )
    seconds = time.perf_counter() - started
    report = TrainReport(
        payload=_upload(bench.spec, weights, result),
        num_examples=labels.numel(),
        metrics={
            name: value
            for name, value in (
                ("personal-loss", result.personal_loss),
                ("global-loss", result.global_loss),
                ("measured-train-seconds", seconds),
            )
            if np.isfinite(value)
        },
    )
    state.remember(context, result.personal)  # last: a device that fails keeps its old personal part
    return report


def test(order: EvaluateOrder, context: Context) -> Evaluation:
    """Test the global part with this device's personal part on its own test samples."""
    bench = workbench(order.spec)
    index, _ = device_index(context)
    images, labels = bench.data.test(bench.parts[index].test)
    return evaluate(
        bench.model,
        shared=read_weights(order.weights),
        personal=_personal(bench, order.resume_dir, index, context),
        images=images,
        labels=labels,
    )


def _personal(bench: Workbench, resume_dir: str, index: int, context: Context) -> npt.NDArray[np.float32]:
    """Return the device's personal part: its own, else the checkpoint's, else the initial one."""
    own = state.recall(context)
    if own is None and resume_dir:
        own = state.load(resume_dir, index)
    return bench.initial_personal if own is None else own


def _upload(
    spec: DeviceSpec, broadcast: npt.NDArray[np.float32], result: LocalResult
) -> npt.NDArray[np.uint8] | None:
    if not result.mask.any():
        return None
    if spec.uplink == "analog":
        # The emulated air adds real numbers: it is given the exact update, and where there is none.
        encoded = payload.encode(result.shared - broadcast, result.mask, bits=32)
    else:
        encoded = payload.encode(result.shared, result.mask, bits=spec.bits_per_weight)
    return np.frombuffer(encoded, np.uint8)
