"""Networks of a user's own, for which there are no kernels of ours.

One is measured against a plain loop of PyTorch over the same batches, many small ones at once
(`torch.func.vmap`) against one after the other. Both count processor time of one process with one thread.
"""

from __future__ import annotations

import statistics
import time

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from benchmarks.local_training import threads
from benchmarks.measure import Figure, interleave, peak_mib, ratio_of
from client_app.algorithms import make_algorithm
from client_app.fast.vmapped import VmappedNetwork
from client_app.local_round import DeviceRound, LocalTraining, local_round
from client_app.network import ModuleNetwork, Network
from client_app.samples import TensorPool, mini_batches, spawn
from protocol.training import TrainingSpec
from task.randomness import seeded
from task.split import flatten, split_parameters

DEVICES, SAMPLES, CHUNK = 200, 8, 50
IMAGES, BATCH, RATE = 512, 32, 0.05


class Residual(nn.Module):
    """What no kernel of ours knows: a skip connection around normalised convolutions, in colour."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.conv1, self.conv2 = (nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))
        self.head = nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits (n, 10)."""
        h = self.stem(x)
        h = functional.relu(h + self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(h))))))
        found: torch.Tensor = self.head(h.mean((2, 3)))
        return found


class TwoLayers(nn.Module):
    """A two-layer perceptron whose activation no kernel of ours knows."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 32), nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits (n, 10)."""
        found: torch.Tensor = self.second(functional.gelu(self.first(x)))
        return found


def figures(*, quick: bool) -> list[Figure]:
    """Measure both."""
    return [plain_figure(quick=quick), vmap_figure(quick=quick)]


def plain_figure(*, quick: bool) -> Figure:
    """Measure an epoch of one device: our round against a loop as one writes it."""
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(IMAGES, 3, 16, 16, generator=draw)
    labels = torch.randint(0, 10, (IMAGES,), generator=draw)
    with seeded(0):
        mine, theirs = Residual(), Residual()
    theirs.load_state_dict(mine.state_dict())
    first = {name: value.clone() for name, value in theirs.state_dict().items()}
    network = ModuleNetwork(mine, split_parameters(mine, []))
    start = flatten(mine, network.split.global_part)
    spec = TrainingSpec(optimizer="sgd", global_learning_rate=RATE, batch_size=BATCH, global_epochs=1)

    def ours() -> None:
        local_round(
            network, images, labels, broadcast=start, personal=np.zeros(0, np.float32), num_pruned=0,
            algorithm=make_algorithm("alternating", {}), training=spec, generator=_batches(),
        )  # fmt: skip

    def plain() -> None:
        theirs.load_state_dict(first)
        theirs.train()
        optimizer = torch.optim.SGD(theirs.parameters(), lr=RATE)
        for batch in mini_batches(IMAGES, BATCH, steps=0, epochs=1, generator=spawn(_batches(), 3)[2]):
            optimizer.zero_grad()
            loss = functional.cross_entropy(theirs(images[batch]), labels[batch])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    with threads(1):
        ours()
        plain()
        trained = flatten(theirs, network.split.global_part)
        difference = float(np.abs(flatten(mine, network.split.global_part) - trained).max())
        times = interleave({"ours": ours, "plain": plain}, 5 if quick else 15, clock=time.process_time)
    ratio, spread = ratio_of(times["plain"], times["ours"])
    return Figure(
        name=f"an epoch of a network of one's own (residual, batch normalisation), {IMAGES} images",
        value=statistics.median(times["ours"]),
        unit="processor s",
        baseline="plain PyTorch loop over the same batches",
        ratio=ratio,
        spread=spread,
        memory_mib=peak_mib(),
        details={
            "baseline": round(statistics.median(times["plain"]), 3),
            "largest difference of a weight": f"{difference:.1e}",
        },
    )


def vmap_figure(*, quick: bool) -> Figure:
    """Measure rounds of many devices with few samples."""
    draw = torch.Generator().manual_seed(0)
    number = DEVICES * SAMPLES
    labels = torch.randint(0, 10, (number,), generator=draw)
    pool = TensorPool(torch.randn(number, 64, generator=draw), labels)
    with seeded(0):
        module = TwoLayers()
    split = split_parameters(module, ["second.*"])
    start, mine = flatten(module, split.global_part), flatten(module, split.personal)
    spec = TrainingSpec(optimizer="sgd", global_learning_rate=RATE, personal_learning_rate=RATE)
    devices = [
        DeviceRound(np.arange(k * SAMPLES, (k + 1) * SAMPLES), mine, split.global_part.size // 2, _batches)
        for k in range(DEVICES)
    ]

    def side(network: Network, at_once: int) -> LocalTraining:
        return LocalTraining(network, pool, make_algorithm("alternating", {}), spec, devices_at_once=at_once)

    sides = {
        "one": side(ModuleNetwork(module, split), 1),
        "many": side(VmappedNetwork(TwoLayers(), split, fill_to=CHUNK), CHUNK),
    }

    def run(name: str) -> None:
        for chunk in sides[name].rounds(start, devices):
            assert not any(isinstance(result, Exception) for result in chunk.values())

    with threads(1):
        times = interleave(
            {"one": lambda: run("one"), "many": lambda: run("many")},
            3 if quick else 9,
            clock=time.process_time,
        )
    ratio, spread = ratio_of(times["one"], times["many"])
    return Figure(
        name=f"{DEVICES} devices x {SAMPLES} samples, a two-layer network of one's own, {CHUNK} at once",
        value=statistics.median(times["many"]),
        unit="processor s",
        baseline="one device after the other",
        ratio=ratio,
        spread=spread,
        memory_mib=peak_mib(),
        details={"baseline": round(statistics.median(times["one"]), 3)},
    )


def _batches() -> torch.Generator:
    return torch.Generator().manual_seed(1)
