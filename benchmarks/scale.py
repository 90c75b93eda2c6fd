"""100 sampled devices per round out of 10 000 and out of 100: time per round and memory."""

from __future__ import annotations

import statistics
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import active_children, get_context

import numpy as np
from flwr.app import ConfigRecord

from benchmarks.measure import Figure, peak_mib, quartiles
from protocol.messages import weights_record
from server_app.engines.inprocess import InProcessGrid
from server_app.job import build_strategy, prepare
from server_app.settings import compose_settings
from task import datasets


def _fleet(devices: int, rounds: int) -> tuple[list[float], float, float]:
    """Return the seconds of each round, those of discovery, and the peak memory of all processes in MiB."""
    import time

    import torch

    def load(root: object, download: bool) -> datasets.ImageData:
        rng = np.random.default_rng(0)
        images = torch.from_numpy(rng.integers(0, 256, (60_000, 1, 28, 28), dtype=np.uint8))
        labels = torch.from_numpy(rng.integers(0, 10, 60_000))
        return datasets.ImageData(images, labels, images[:10_000], labels[:10_000], 10, 0.5, 0.29)

    datasets._LOADERS.setdefault("random_60k", load)
    job = prepare(
        compose_settings(
            [
                "model=mlp", "partition=iid", "dataset.name=random_60k", f"fleet.num_devices={devices}",
                "fleet.devices_per_round=100", "fleet.evaluate=participants", f"rounds={rounds}",
                "partition.samples_per_device=6", "partition.test_samples_per_device=20",
            ]
        )
    )  # fmt: skip
    strategy = build_strategy(job)
    arrays = weights_record(job.initial_weights)
    seconds = []
    with InProcessGrid("client_app.app:app", devices, 2) as grid:
        start = time.perf_counter()
        strategy.fleet.wait(grid, 600)
        discovery = time.perf_counter() - start
        for number in range(1, rounds + 1):
            start = time.perf_counter()
            orders = strategy.configure_train(number, arrays, ConfigRecord(), grid)
            updated, _ = strategy.aggregate_train(number, grid.send_and_receive(orders, timeout=600))
            arrays = updated or arrays
            orders = strategy.configure_evaluate(number, arrays, ConfigRecord(), grid)
            strategy.aggregate_evaluate(number, grid.send_and_receive(orders, timeout=600))
            seconds.append(time.perf_counter() - start)
        memory = peak_mib() + sum(peak_mib(child.pid) for child in active_children() if child.pid)
    return seconds, discovery, memory


def figures(*, quick: bool) -> list[Figure]:
    """Measure both fleets, each in a fresh process."""
    rounds = 10 if quick else 50
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:
        large, discovery, memory = pool.submit(_fleet, 10_000, rounds).result()
        small, _, _ = pool.submit(_fleet, 100, rounds).result()
    middle = statistics.median(large[1:])
    return [
        Figure(
            name=f"10 000 devices, 100 per round, MLP, {rounds} rounds",
            value=middle,
            unit="s per round",
            baseline="the same with 100 devices in all",
            ratio=statistics.median(small[1:]) / middle,
            spread=quartiles([statistics.median(small[1:]) / value for value in large[1:]]),
            threads="2 processes x 1",
            memory_mib=memory,
            details={"discovery s": round(discovery, 2), "peak": "summed over the three processes"},
        )
    ]
