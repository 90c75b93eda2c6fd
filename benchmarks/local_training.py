"""Rounds of the paper's CNN: the in-process engine against the plain loop of `benchmarks.baseline`."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from flwr.app import ConfigRecord

from benchmarks.baseline import PlainFederation, Plan, paper_cnn
from benchmarks.measure import Figure, interleave, peak_mib, ratio_of
from client_app.device import RunContext, run_context
from client_app.local_round import local_round
from client_app.precision import multiplies_bfloat16
from client_app.samples import mini_batches, spawn
from engines.allocator import keep_freed_memory
from engines.inprocess import InProcessGrid
from protocol.arrays import read_weights, weights_record
from protocol.streams import torch_seed
from server_app.job import Job, prepare
from server_app.settings import compose_settings
from server_app.strategy import build_strategy
from task import Dataset
from task.datasets import DATASETS

DEVICES, IMAGES, BATCH, RATIO, RATE = 10, 600, 128, 0.475, 0.01
RANDOM = "random_images"


def register_random_images() -> None:
    """Make a data set of random images known to this process and to the workers that it forks."""

    def load() -> Dataset:
        rng = np.random.default_rng(0)
        total = DEVICES * IMAGES
        labels = rng.integers(0, 10, total)
        images = rng.integers(0, 256, (total, 1, 28, 28), dtype=np.uint8)
        return Dataset(
            train=(images, labels),
            test=(images[:1000], labels[:1000]),
            num_classes=10,
            mean=(0.5,),
            std=(0.29,),
        )

    if RANDOM not in DATASETS:
        DATASETS.register(RANDOM)(load)


def paper_job(*overrides: str) -> Job:
    """Return the job of the comparison."""
    register_random_images()
    return prepare(
        compose_settings(
            [
                "scheme=fixed_ratio",
                f"scheme.pruning_ratio={RATIO}",
                f"fleet.num_devices={DEVICES}",
                f"dataset.name={RANDOM}",
                "partition=iid",
                "training.personal_epochs=1",
                "training.global_epochs=1",
                f"training.batch_size={BATCH}",
                "training.optimizer=sgd",
                f"training.personal_learning_rate={RATE}",
                f"training.global_learning_rate={RATE}",
                "rounds=1000000",
                "evaluate_every=1000000",
                *overrides,
            ]
        )
    )


def precisions() -> dict[str, Job]:
    """Return the job in each precision that this processor has; elsewhere bfloat16 would run as float32."""
    jobs = {"float32": paper_job()}
    if multiplies_bfloat16():
        jobs["bfloat16"] = paper_job("training.precision=bfloat16")
    return jobs


class EngineSide:
    """Rounds of a job on the in-process engine, without evaluation."""

    def __init__(self, job: Job, grid: InProcessGrid) -> None:
        self._strategy = build_strategy(job)
        self._grid = grid
        self.arrays = weights_record(job.initial_weights)
        self._number = 0
        self._strategy.fleet.wait(grid, 60)

    def round(self) -> None:
        """Run one round."""
        self._number += 1
        orders = self._strategy.configure_train(self._number, self.arrays, ConfigRecord(), self._grid)
        replies = self._grid.send_and_receive(orders, timeout=600)
        updated, _ = self._strategy.aggregate_train(self._number, replies)
        assert updated is not None
        self.arrays = updated


def baseline_side(job: Job, *, freeze: bool = False) -> PlainFederation:
    """Return the plain loop with the job's weights, data and mini-batches."""
    run: RunContext = run_context(job.spec.to_json())
    model = paper_cnn()
    with torch.no_grad():
        for parameter, source in zip(model.parameters(), run.network.module.parameters(), strict=True):
            parameter.copy_(source)
        own = torch.from_numpy(run.initial_personal)
        global_part = torch.from_numpy(job.initial_weights)
        torch.nn.utils.vector_to_parameters(torch.cat([own, global_part]), model.parameters())
    data = [run.task.train(part.train) for part in run.parts]

    def batches(number: int, device: int) -> list[Iterable[torch.Tensor | slice]]:
        seed = torch_seed(run.spec.seed, "batches", number, device)
        streams = spawn(torch.Generator().manual_seed(seed), 3)
        counts: list[dict[str, int]] = [{"steps": 1, "epochs": 1}, {"steps": 1}, {"steps": 1, "epochs": 1}]
        return [
            mini_batches(IMAGES, BATCH, stream, **count)
            for stream, count in zip(streams, counts, strict=True)
        ]

    return PlainFederation(model, data, batches, Plan(RATIO, RATE, freeze))


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Let PyTorch use `number` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def device_figures(*, quick: bool) -> list[Figure]:
    """Measure one device's round on one thread of this process, in processor time."""
    repeats = 5 if quick else 15
    keep_freed_memory()
    jobs = precisions()
    plain = baseline_side(jobs["float32"])
    frozen = baseline_side(jobs["float32"], freeze=True)
    images, labels = plain.data[0]
    sides: dict[str, Callable[[], object]] = {
        "plain PyTorch loop": lambda: plain.train(1, 0),
        "plain PyTorch loop, other part frozen": lambda: frozen.train(1, 0),
    }
    for name, job in jobs.items():
        run = run_context.__wrapped__(job.spec.to_json())

        def device_round(run: RunContext = run, job: Job = job) -> object:
            return local_round(
                run.network,
                images,
                labels,
                broadcast=job.initial_weights,
                personal=run.initial_personal,
                num_pruned=int(RATIO * job.initial_weights.size),
                algorithm=run.algorithm,
                training=run.training,
                generator=torch.Generator().manual_seed(1),
            )

        sides[name] = device_round
    with threads(1):
        times = interleave(sides, repeats, clock=time.process_time)
    found = []
    for name in jobs:
        for against in list(sides)[:2]:
            ratio, spread = ratio_of(times[against], times[name])
            found.append(
                Figure(
                    name=f"one device of the paper's CNN, {IMAGES} images, {name}",
                    value=statistics.median(times[name]),
                    unit="processor s",
                    baseline=against,
                    ratio=ratio,
                    spread=spread,
                    memory_mib=peak_mib(),
                    details={"baseline": round(statistics.median(times[against]), 3)},
                )
            )
    return found


def figures(*, quick: bool, workers: int = 2) -> list[Figure]:
    """Measure rounds of the paper's CNN with ten devices."""
    repeats = 3 if quick else 7
    jobs = precisions()
    with ExitStack() as stack:
        engines = {
            name: EngineSide(job, stack.enter_context(InProcessGrid("client_app.app:app", DEVICES, workers)))
            for name, job in jobs.items()
        }
        plain = {
            "plain": baseline_side(jobs["float32"]),
            "frozen": baseline_side(jobs["float32"], freeze=True),
        }
        numbers = dict.fromkeys(plain, 0)

        def plain_round(name: str) -> None:
            numbers[name] += 1
            with threads(workers):
                plain[name].round(numbers[name])

        # One round of each on the same batches: are the results equal?
        engines["float32"].round()
        plain_round("plain")
        mine = read_weights(engines["float32"].arrays)
        theirs = torch.cat([weight.flatten() for weight in plain["plain"].global_weights]).numpy()
        difference = np.abs(mine - theirs)
        times = interleave(
            {
                "plain": lambda: plain_round("plain"),
                "float32": engines["float32"].round,
                "frozen": lambda: plain_round("frozen"),
                **{name: engine.round for name, engine in engines.items()},
            },
            repeats,
        )
    found = []
    for name in jobs:
        for against in ("plain", "frozen"):
            ratio, spread = ratio_of(times[against], times[name])
            details: dict[str, object] = {"baseline s per round": round(statistics.median(times[against]), 2)}
            if (name, against) == ("float32", "plain"):
                details |= {
                    "median |difference| after a round": f"{np.median(difference):.1e}",
                    "share of weights within 1e-6": round(float((difference < 1e-6).mean()), 5),
                }
            found.append(
                Figure(
                    name=f"paper CNN, {DEVICES} x {IMAGES} images, in-process, {name}",
                    value=statistics.median(times[name]),
                    unit="s per round",
                    baseline="plain PyTorch loop" + (", other part frozen" if against == "frozen" else ""),
                    ratio=ratio,
                    spread=spread,
                    threads=f"{workers} processes x 1; baseline {workers}",
                    memory_mib=peak_mib(),
                    details=details,
                )
            )
    return found
