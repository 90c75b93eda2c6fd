"""A device's side of an order: its data, its model and what it answers.

One file, long as it is: what becomes of an order, from the run that it belongs to down to the reply.
"""

from __future__ import annotations

import math
import os
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import ArrayRecord, Context

from client_app import state
from client_app.algorithms import ALGORITHM, algorithm_state, make_algorithm, steps_per_round
from client_app.board import Meter
from client_app.evaluation import Evaluation, evaluate
from client_app.local_round import local_round
from client_app.masks import Mask
from client_app.network import Arrays, ModuleNetwork
from client_app.own_model import Origin, keep_global
from client_app.phases import Algorithm, statistics
from client_app.privacy import privatised
from client_app.probe import send_probe
from client_app.results import LocalResult
from client_app.schedules import rate
from protocol.arrays import read_mask, read_vectors, read_weights
from protocol.fields import MessageError
from protocol.messages import (
    DeviceSpec,
    EvaluateOrder,
    HelloOrder,
    Introduction,
    SaveOrder,
    SaveReport,
    TrainOrder,
    TrainReport,
    spec_from_json,
)
from protocol.own_files import find_own_modules
from protocol.streams import generator, torch_seed
from protocol.training import TrainingSpec
from radio import payload
from task.build import Learning, Task, TaskError, build_task
from task.dataset import Dataset
from task.datasets import DATA_ROOT_VARIABLE, DatasetUnavailableError, load_dataset, node_root
from task.datasets.image_folder import load_images
from task.partition import DevicePart
from task.trained import TaskFacts, facts_of


@dataclass(frozen=True)
class RunContext:
    """What every device of a run shares inside one process; the weights are overwritten at each use.

    Attributes:
        spec: the run's device specification.
        training: steps and step sizes.
        algorithm: what a round consists of.
        network: the network of one device.
        initial_personal: personal part of a device that has none yet, float32, shape (N_v,).
        task: what is learned, and from what.
    """

    spec: DeviceSpec
    training: TrainingSpec
    algorithm: Algorithm
    network: ModuleNetwork
    initial_personal: npt.NDArray[np.float32]
    task: Task
    _weight_steps: dict[int, float] = field(default_factory=dict)  # by number of samples

    @property
    def parts(self) -> list[DevicePart]:
        """Each device's samples."""
        return self.task.parts

    def weight_steps(self, num_samples: int) -> float:
        """Return the steps of a round times the weights that each moves: what a dense round computes."""
        found = self._weight_steps.get(num_samples)
        if found is None:
            split = self.network.split
            sizes = np.array([num_samples])
            steps = steps_per_round(self.training, sizes, has_personal=split.personal.size > 0)
            dense = self.training.importance_steps + steps.of_global[0] + steps.copies[0]
            found = float(steps.personal[0] * split.personal.size + dense * split.global_part.size)
            self._weight_steps[num_samples] = found
        return found

    @cached_property
    def facts(self) -> TaskFacts:
        """What the network is, for those who use it without the data."""
        spec = self.spec
        return facts_of(self.task.data, model=spec.model, personal=spec.personal, learning=spec.learning)


@lru_cache(maxsize=1)
def run_context(spec_json: str, data_dir: str = "") -> RunContext:
    """Build what a run's devices need; the same arguments give the same object.

    A node with a folder of its own images (`data_dir`) does not need the data set of the configuration.

    One torch thread, so that results depend neither on the machine's cores nor on the engine. Modules of the
    node's own are found in its working directory.
    """
    torch.set_num_threads(1)
    find_own_modules()
    spec = spec_from_json(spec_json)
    task = build_task(
        dataset=_own_images(spec, data_dir) if data_dir else _configured_images(spec),
        parts=None if data_dir else spec.partition,
        num_devices=spec.num_devices,
        model=spec.model,
        personal=spec.personal,
        deal=generator(spec.seed, "partition"),
        init=torch.Generator().manual_seed(torch_seed(spec.seed, "init")),
        learning=Learning(**spec.learning),
    )
    training = TrainingSpec(**spec.training)
    network = ModuleNetwork(
        task.model,
        task.split,
        loss=task.loss,
        precision=training.precision,
        kernels=training.kernels,
    )
    return RunContext(
        spec=spec,
        training=training,
        algorithm=make_algorithm(training.algorithm, training.options),
        network=network,
        initial_personal=network.personal[0].numpy().copy(),
        task=task,
    )


def _own_images(spec: DeviceSpec, data_dir: str) -> Dataset:
    return load_images(
        data_dir,
        num_classes=spec.num_classes,
        mean=spec.mean,
        std=spec.std,
        shape=spec.sample_shape,
        label_names=spec.label_names,
    )


def _configured_images(spec: DeviceSpec) -> Dataset:
    """Return the run's data set as this device has it.

    Raises:
        DatasetUnavailableError: if it is not there, or is another one: its parts would overlap the others'.
    """
    root = node_root(spec.dataset["name"], spec.data_root) if spec.own_data_root else spec.data_root
    try:
        data = load_dataset(**spec.dataset, root=root)
    except ValueError as error:
        raise DatasetUnavailableError(f"dataset.name = {spec.dataset['name']}: {error}") from error
    if spec.data_digest and data.digest() != spec.data_digest:
        raise DatasetUnavailableError(
            f"{spec.dataset['name']}: the files here (dataset.root = {root}, {DATA_ROOT_VARIABLE} = "
            f"{os.environ.get(DATA_ROOT_VARIABLE)}) are not the server's: their labels (or groups) differ "
            f"({data.digest()}, there {spec.data_digest}); use the same files"
        )
    return data


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


@dataclass(frozen=True, eq=False)
class Assignment:
    """A train order with all that the device needs to carry it out.

    Attributes:
        run: what all devices share.
        index: the device.
        order: what it was told.
        context: its Context.
        store: where its personal part is kept.
        recovered: its personal part as found there.
        broadcast: float32 (N_u,), the global part.
        mask: bool (N_u,), the mask that the server imposes, or None.
        vectors: named vectors (N_u,) of the local algorithm that came with the order.
        buffers: the running statistics to start from: its own, and those that the server sent.
    """

    run: RunContext
    index: int
    order: TrainOrder
    context: Context
    store: state.StateStore
    recovered: state.Recovered
    broadcast: npt.NDArray[np.float32]
    mask: Mask | None
    vectors: Mapping[str, npt.NDArray[np.float32]]
    buffers: Arrays

    @property
    def rate(self) -> float:
        """The factor of the learning rates in this round."""
        return rate(self.run.training, self.order.round)

    @property
    def state(self) -> Mapping[str, npt.NDArray[np.float32]]:
        """What the local algorithm kept, by name."""
        part = self.recovered.part
        return algorithm_state(part.arrays) if part is not None and part.arrays else {}

    @property
    def personal(self) -> npt.NDArray[np.float32]:
        """The personal part to start from, float32 (N_v,)."""
        found = self.recovered.part
        return self.run.initial_personal if found is None else found.weights

    def batch_generator(self) -> torch.Generator:
        """Return the generator of the round's mini-batches, freshly seeded."""
        seed = torch_seed(self.run.spec.seed, "batches", self.order.round, self.index)
        return torch.Generator().manual_seed(seed)


def accept(
    order: TrainOrder,
    context: Context,
    *,
    read: Callable[[ArrayRecord], npt.NDArray[np.float32]] = read_weights,
) -> Assignment:
    """Read an order and find the device's own part.

    Args:
        order: the order.
        context: the device's Context.
        read: turns the record of the global part into its weights.

    Raises:
        MessageError: if the order does not fit the model.
        StateError: if the device's folder cannot be told.
    """
    run, index = _run_of(order.spec, context)
    store = _store(run.spec, order, index, context)
    recovered = store.recover(run.initial_personal.size)
    size = run.network.split.global_part.size
    weights = read(order.weights)
    if weights.size != size:
        raise MessageError(f"the global part has {weights.size} weights; the model has {size}")
    mask = None if order.mask is None else read_mask(order.mask, size)
    vectors = {} if order.vectors is None else read_vectors(order.vectors)
    for name, vector in vectors.items():
        if vector.shape != (size,) or vector.dtype != np.float32:
            raise MessageError(f"the vector {name!r} is {vector.dtype} {vector.shape}, not float32 ({size},)")
    buffers = _buffers(run, recovered, order)
    return Assignment(run, index, order, context, store, recovered, weights, mask, vectors, buffers)


def report(work: Assignment, result: LocalResult, seconds: float, joules: float = math.nan) -> TrainReport:
    """Make the report of a round's training that took `seconds`, and keep the personal part.

    Raises:
        MessageError: if the node's configuration states no valid rate.
        StateError: if the personal part cannot be stored; the old one then stands.
    """
    run, context = work.run, work.context
    num_examples = len(run.parts[work.index].train)
    started = time.perf_counter()
    upload = _upload(work, result)
    encoding = time.perf_counter() - started
    made = TrainReport(
        payload=upload,
        num_examples=num_examples,
        buffers=_named(result.buffers, run.network.split.shared_buffers) if upload is not None else {},
        arrays={} if upload is None else _arrays(run.spec, result),
        metrics={
            name: value
            for name, value in (
                ("personal-loss", result.personal_loss),
                ("global-loss", result.global_loss),
                ("measured-train-seconds", seconds),
                ("measured-compute-seconds", seconds + encoding),
                ("measured-energy-j", joules),
                ("measured-seconds-per-weight-step", seconds / run.weight_steps(num_examples)),
                ("stated-uplink-bps", _stated_rate(context)),
                ("state-set-aside", float(work.recovered.set_aside or math.nan)),
                ("state-lost", float(work.recovered.lost or math.nan)),
            )
            if math.isfinite(value)
        },
    )
    probe = work.order.probe
    if probe is not None and not math.isfinite(_stated_rate(context)):
        send_probe(probe, str(context.node_config.get("probe-address", "")) or probe.address)
    own = _named(result.buffers, run.network.split.personal_buffers)
    kept = {f"{ALGORITHM}{name}": array for name, array in result.state.items()}
    # Last: a device that fails keeps its old part.
    work.store.keep(result.personal, work.order.round, {**own, **kept})
    _keep_global(run, work.index, work.store, work.order, work.order.round - 1, work.broadcast)
    return made


def _named(buffers: Arrays, names: tuple[str, ...]) -> dict[str, npt.NDArray[Any]]:
    return {name: buffers[name] for name in names}


def _buffers(run: RunContext, recovered: state.Recovered, order: TrainOrder | EvaluateOrder) -> Arrays:
    """Return running statistics by name; one that nobody has yet is not among them.

    Raises:
        MessageError: if what the server sent does not fit the model.
    """
    split = run.network.split
    if not split.personal_buffers and order.buffers is None:
        return {}
    own = recovered.part.arrays if recovered.part is not None else {}
    found = {name: own[name] for name in split.personal_buffers if name in own}
    if order.buffers is not None:
        sent = read_vectors(order.buffers)
        if sorted(sent) != sorted(split.shared_buffers):
            raise MessageError(
                f"the order has the buffers {sorted(sent)}; the model has {split.shared_buffers}"
            )
        found |= sent
    return found


def train(order: TrainOrder, context: Context) -> TrainReport:
    """Do one round's local training; the personal part is kept in `context` once all went well.

    Raises:
        MessageError: if the order does not fit the model.
        DivergedError: if training left the finite numbers; the personal part stays as it was.
    """
    began = time.time()
    work = accept(order, context)
    run = work.run
    images, labels = run.task.train(run.parts[work.index].train)
    meter = Meter.start() if context.node_config.get("energy") is True else None
    started = time.perf_counter()
    result = local_round(
        run.network,
        images,
        labels,
        broadcast=work.broadcast,
        personal=work.personal,
        num_pruned=order.num_pruned,
        algorithm=run.algorithm,
        training=run.training,
        generator=work.batch_generator(),
        mask=work.mask,
        buffers=work.buffers,
        augment=run.task.augment,
        state=work.state,
        received=work.vectors,
        rate=work.rate,
    )
    seconds = time.perf_counter() - started
    made = report(work, result, seconds, math.nan if meter is None else meter.joules())
    stamps = {"measured-began-at": began, "measured-ended-at": time.time()}
    return replace(made, metrics={**made.metrics, **stamps})


def test(order: EvaluateOrder, context: Context) -> Evaluation:
    """Test the global part with this device's personal part on its own test samples."""
    run, index = _run_of(order.spec, context)
    images, labels = run.task.test(run.parts[index].test)
    store = _store(run.spec, order, index, context)
    recovered = store.recover(run.initial_personal.size)
    own = recovered.part
    weights = read_weights(order.weights)
    kept = {} if own is None else algorithm_state(own.arrays)
    _keep_global(run, index, store, order, order.round, weights)
    return evaluate(
        run.network,
        global_part=run.algorithm.personalised(weights, kept),
        personal=run.initial_personal if own is None else own.weights,
        images=images,
        labels=labels,
        buffers=statistics(_buffers(run, recovered, order), kept),
        metrics=run.task.metrics,
    )


def _keep_global(
    run: RunContext,
    index: int,
    store: state.StateStore,
    order: TrainOrder | EvaluateOrder,
    after: int,
    weights: npt.NDArray[np.float32],
) -> None:
    """Keep the global part after a round where the device has a folder of its own."""
    if store.own is not None:
        buffers = {} if order.buffers is None else read_vectors(order.buffers)
        origin = Origin(run.facts, run.spec.seed, run.training.algorithm, run.training.options)
        keep_global(store.own, index, after, weights, buffers, origin)


def introduce(order: HelloOrder, context: Context) -> Introduction:
    """Say which device this is, and whether it has what the run needs: images, network, folders."""
    index, number = device_index(context)
    if not order.spec:
        return Introduction(index, number)
    try:
        run, _ = _run_of(order.spec, context)
        _stated_rate(context)
        state.open_store(context, index, run_key=run.spec.run_key, run="", resume_run="", resume_dir="")
    except Exception as error:  # whatever it is, every round would meet it again
        known = isinstance(error, DatasetUnavailableError | TaskError | MessageError)
        return Introduction(
            index, number, problem=str(error) if known else f"{type(error).__name__}: {error}"
        )
    if not context.node_config.get("data-dir"):
        return Introduction(index, number)
    part = run.parts[index]
    return Introduction(
        index,
        number,
        own_images=True,
        train_samples=part.train.size,
        test_samples=part.test.size,
        labels=part.labels,
        notes=run.task.data.notes,
    )


def save(order: SaveOrder, context: Context) -> SaveReport:
    """Store the personal part for a checkpoint, if there is one yet.

    Raises:
        StateError: if it cannot be stored, or only parts of later rounds are left.
    """
    run, index = _run_of(order.spec, context)
    store = _store(run.spec, order, index, context)
    recovered = store.recover(run.initial_personal.size, order.round)
    if recovered.part is None:
        if recovered.lost is not None or recovered.set_aside:
            raise state.StateError(
                "the personal part is lost: nothing can be stored before the next training"
            )
        return SaveReport(0)
    written = store.save_for_checkpoint(recovered.part, order.directory, order.round, order.keep)
    if store.own is not None:
        state.remove_runs(store.own.parent, run.spec.run_key, order.discard, index)
    return SaveReport(recovered.part.round, written.sha256, written.size, own=store.own is not None)


def _run_of(spec: str, context: Context) -> tuple[RunContext, int]:
    index, _ = device_index(context)
    data_dir = context.node_config.get("data-dir", "")
    if not isinstance(data_dir, str):
        raise MessageError(f"data-dir = {data_dir!r} in the node's configuration; it must be a path")
    run = run_context(spec, data_dir)
    if not 0 <= index < run.spec.num_devices:
        raise MessageError(
            f"partition-id = {index} in the node's configuration; the run has {run.spec.num_devices} devices"
        )
    return run, index


def _store(
    spec: DeviceSpec, order: TrainOrder | EvaluateOrder | SaveOrder, index: int, context: Context
) -> state.StateStore:
    return state.open_store(
        context,
        index,
        run_key=spec.run_key,
        run=order.run,
        resume_run=order.resume_run,
        resume_dir=order.resume_dir,
        resume=state.Resume(order.resume_round, order.resume_part),
    )


def _stated_rate(context: Context) -> float:
    """Return the uplink rate that the operator states, in bit/s; NaN without one.

    Raises:
        MessageError: if `uplink-bps` is not a positive number.
    """
    value = context.node_config.get("uplink-bps", float("nan"))
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise MessageError(
            f"uplink-bps = {value!r} in the node's configuration; it must be positive, in bit/s"
        )
    return float(value)


def _upload(work: Assignment, result: LocalResult) -> payload.Packed | None:
    spec, broadcast = work.run.spec, work.broadcast
    if not result.mask.any():
        return None
    if spec.clip_norm:
        kept = result.mask
        update = np.zeros_like(broadcast)
        update[kept] = privatised(
            result.global_part[kept] - broadcast[kept], spec.clip_norm, spec.noise_deviation, _noise(work)
        )
        values = update if spec.uplink == "analog" else broadcast + update
        bits = 32 if spec.uplink == "analog" else spec.bits_per_weight
        return payload.pack(values, kept, bits=bits)
    if spec.uplink == "analog":
        # The emulated air adds real numbers: it is given the exact update, and where there is none.
        return payload.pack(result.global_part - broadcast, result.mask, bits=32)
    # At 32 bits as they are: training has made sure that they are finite.
    return payload.pack(result.global_part, result.mask, bits=spec.bits_per_weight, check_finite=False)


def _noise(work: Assignment) -> np.random.Generator:
    """Return what draws the noise: nobody else may know it on a node; a simulation repeats it by its seed."""
    if work.run.spec.own_data_root:
        return np.random.default_rng(secrets.randbits(256))
    return generator(work.run.spec.seed, "privacy", work.order.round, work.index)


def _arrays(spec: DeviceSpec, result: LocalResult) -> dict[str, payload.Packed]:
    """Pack what the local algorithm sends: the retained weights' entries, whose positions are known."""
    kept = {name: array[result.mask] for name, array in result.sent.items()}
    return {
        name: payload.pack(values, np.ones(values.size, np.bool_), bits=spec.bits_per_weight)
        for name, values in kept.items()
    }
