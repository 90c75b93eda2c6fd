"""100 sampled devices per round out of 10 000 and out of 100: time per round and memory."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Generator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import active_children, get_context

import numpy as np
from flwr.app import ConfigRecord

from benchmarks.measure import Figure, peak_mib, quartiles
from engines.inprocess import InProcessGrid
from protocol.arrays import weights_record
from server_app.job import prepare
from server_app.settings import compose_settings
from server_app.strategy import build_strategy
from task import Dataset
from task.datasets import DATASETS


def _both(numbers: tuple[int, ...], rounds: int) -> tuple[list[list[float]], list[float], float]:
    """Return the seconds of each round of fleets in turn, those of discovery, and all processes' peak MiB."""
    fleets = [_fleet(number) for number in numbers]
    discovery = [next(fleet) for fleet in fleets]
    seconds: list[list[float]] = [[] for _ in fleets]
    for _ in range(rounds):
        for mine, fleet in zip(seconds, fleets, strict=True):
            mine.append(next(fleet))
    memory = peak_mib() + sum(peak_mib(child.pid) for child in active_children() if child.pid)
    for fleet in fleets:
        fleet.close()
    return seconds, discovery, memory


def _fleet(devices: int) -> Generator[float, None, None]:
    """Yield the seconds of discovery, then those of one round after the other."""
    import time

    import torch

    def load() -> Dataset:
        rng = np.random.default_rng(0)
        images = torch.from_numpy(rng.integers(0, 256, (60_000, 1, 28, 28), dtype=np.uint8))
        labels = torch.from_numpy(rng.integers(0, 10, 60_000))
        return Dataset(
            train=(images, labels),
            test=(images[:10_000], labels[:10_000]),
            num_classes=10,
            mean=(0.5,),
            std=(0.29,),
        )

    if "random_60k" not in DATASETS:
        DATASETS.register("random_60k")(load)
    job = prepare(
        compose_settings(
            [
                "model=mlp", "partition=iid", "dataset.name=random_60k", f"fleet.num_devices={devices}",
                "fleet.devices_per_round=100", "fleet.evaluate=participants", "rounds=1000000",
                "partition.samples_per_device=6", "partition.test_samples_per_device=20",
            ]
        )
    )  # fmt: skip
    strategy = build_strategy(job)
    arrays = weights_record(job.initial_weights)
    with InProcessGrid("client_app.app:app", devices, 2) as grid:
        start = time.perf_counter()
        strategy.fleet.wait(grid, 600)
        yield time.perf_counter() - start
        for number in itertools.count(1):
            start = time.perf_counter()
            orders = strategy.configure_train(number, arrays, ConfigRecord(), grid)
            updated, _ = strategy.aggregate_train(number, grid.send_and_receive(orders, timeout=600))
            arrays = updated or arrays
            orders = strategy.configure_evaluate(number, arrays, ConfigRecord(), grid)
            strategy.aggregate_evaluate(number, grid.send_and_receive(orders, timeout=600))
            yield time.perf_counter() - start


def figures(*, quick: bool) -> list[Figure]:
    """Measure both fleets, a round of one after a round of the other."""
    rounds = 10 if quick else 50
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        (large, small), (discovery, _), memory = pool.submit(_both, (10_000, 100), rounds).result()
    middle = statistics.median(large[1:])
    pairs = [b / a for a, b in zip(large[1:], small[1:], strict=True)]
    return [
        Figure(
            name=f"10 000 devices, 100 per round, MLP, {rounds} rounds",
            value=middle,
            unit="s per round",
            baseline="the same with 100 devices in all",
            ratio=statistics.median(pairs),
            spread=quartiles(pairs),
            threads="2 processes x 1",
            memory_mib=memory,
            details={"discovery s": round(discovery, 2), "peak": "summed over five processes, both fleets"},
        )
    ]
