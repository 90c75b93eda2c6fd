"""What two fixed thresholds were read from: processor time of steps on few images, and of devices together.

`python -m benchmarks.thresholds` prints both tables; the thresholds are `client_app.fast.convolutions.FEWEST`
and those of `client_app.together`. They are numbers in the source: a time taken in a run would decide how it
rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from unittest import mock

import torch
from flwr.app import Context, RecordDict
from torch import nn

from benchmarks.measure import interleave, machine_facts
from client_app.device import run_context
from client_app.fast import convolutions
from client_app.many import train_many
from engines.allocator import keep_freed_memory
from protocol.arrays import weights_record
from protocol.messages import TrainOrder
from server_app.job import prepare
from server_app.settings import compose_settings
from task.models import build_model

BATCHES = (2, 4, 6, 8, 10, 12, 16, 32)
DEVICES, CHUNKS = 48, (8, 16, 48)


def few_images(repeats: int) -> list[str]:
    """Return rows: images per step; both convolutions by the layers and by the kernels, in ms."""
    network = build_model("cnn", generator=torch.Generator().manual_seed(0))
    fast = convolutions.accelerate(list(network.children()))[0]
    assert isinstance(fast, convolutions.FastConvolutions)
    plain = fast.layers
    rows = []
    for batch in BATCHES:
        images = torch.randn(batch, 1, 28, 28, generator=torch.Generator().manual_seed(0))

        def step(network: nn.Module, images: torch.Tensor = images) -> Callable[[], None]:
            def both_ways() -> None:
                network(images).sum().backward()

            return both_ways

        with mock.patch.object(convolutions, "FEWEST", 1):
            times = interleave({"plain": step(plain), "fast": step(fast)}, repeats, clock=time.process_time)
        ms = [f"{1e3 * statistics.median(times[name]):.1f}" for name in ("plain", "fast")]
        rows.append(f"| {batch} | {' | '.join(ms)} |")
    return rows


def together(repeats: int) -> list[str]:
    """Return rows: model, samples; ms of a device's order, one after the other and so many at once."""
    rows = []
    for model, samples in (("mlp", 8), ("mlp", 32), ("lenet5", 8), ("lenet5", 32)):
        job = prepare(
            compose_settings(
                [
                    "scheme=fedavg", f"model={model}", "partition=iid", f"fleet.num_devices={DEVICES}",
                    f"partition.samples_per_device={samples}", "training.optimizer=sgd",
                ]
            )
        )  # fmt: skip
        spec = job.spec.to_json()
        order = TrainOrder(1, 0, spec, weights_record(job.initial_weights))
        fleets = {chunk: [_context(index) for index in range(DEVICES)] for chunk in (1, *CHUNKS)}

        def side(
            chunk: int, fleets: dict[int, list[Context]] = fleets, order: TrainOrder = order
        ) -> Callable[[], None]:
            def train() -> None:
                answers = train_many([order] * DEVICES, fleets[chunk], batch_devices=chunk)
                assert not any(isinstance(answer, Exception) for answer in answers)

            return train

        times = interleave({str(chunk): side(chunk) for chunk in fleets}, repeats, clock=time.process_time)
        ms = [f"{1e3 * statistics.median(taken) / DEVICES:.2f}" for taken in times.values()]
        number = len(run_context(spec).parts[0].train)
        rows.append(f"| {model}, {number} samples | {' | '.join(ms)} |")
    return rows


def _context(index: int) -> Context:
    node: dict[str, bool | float | int | str] = {"partition-id": index, "num-partitions": DEVICES}
    return Context(run_id=1, node_id=index, node_config=node, state=RecordDict(), run_config={})


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.thresholds", description=__doc__)
    parser.add_argument("--repeats", type=int, default=11)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    keep_freed_memory()
    print(machine_facts())
    print("\n| images | layers, ms | kernels, ms |\n|---:|---:|---:|", flush=True)
    print(*few_images(repeats), sep="\n", flush=True)
    heads = " | ".join(f"{chunk} at once" for chunk in CHUNKS)
    print(f"\n| model | one after the other, ms | {heads} |\n|---|---:|---:|---:|---:|", flush=True)
    print(*together(max(3, repeats // 3)), sep="\n")


if __name__ == "__main__":
    main()
