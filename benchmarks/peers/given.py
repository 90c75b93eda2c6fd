"""What every side is given, and what it leaves behind: needs PyTorch, NumPy and `task.models` only.

A side is a program: ``python -m benchmarks.peers.with_... FOLDER``. It trains the rounds that FOLDER
describes, prints a line ``round 3/6`` after each, and leaves the weights of the end there.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from task.models import build_model

GIVEN = "given.pt"


@dataclass(frozen=True, eq=False)
class Given:
    """A workload as tensors.

    Attributes:
        model, options: its name and what it is built with.
        images, labels: of the devices, float32 (K, n, c, h, w) and int64 (K, n).
        weights: first values by the name of the parameter.
        personal: names of those that stay on the devices.
        batch, rate: images per step, step size of SGD.
        orders: int64 (rounds, K, phases, n), in which order a device goes through its images in a phase.
        participants: the devices of each round.
        threads: processor threads to be used in all.
    """

    model: str
    options: dict[str, str]
    images: torch.Tensor
    labels: torch.Tensor
    weights: dict[str, torch.Tensor]
    personal: tuple[str, ...]
    batch: int
    rate: float
    orders: torch.Tensor
    participants: list[list[int]]
    threads: int

    @property
    def rounds(self) -> int:
        """The number of rounds."""
        return len(self.participants)

    def network(self) -> nn.Module:
        """Return the network with its first weights."""
        model = build_model(
            self.model,
            num_classes=10,
            sample_shape=tuple(self.images.shape[2:]),
            options=self.options,
            generator=torch.Generator().manual_seed(0),
        )
        missing, unexpected = model.load_state_dict(self.weights, strict=False)
        if unexpected or set(missing) - {name for name, _ in model.named_buffers()}:
            raise ValueError(f"the weights are those of another network: {unexpected or missing}")
        return model.train()

    def batches(self, number: int, device: int, phase: int = -1) -> list[torch.Tensor]:
        """Return the mini-batches of a phase of round `number` (from 1), as places of images."""
        return list(torch.split(self.orders[number - 1, device, phase], self.batch))

    def shuffled(self, number: int, device: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a device's images and labels in the order of the round: batches are then slices."""
        order = self.orders[number - 1, device, -1]
        return self.images[device][order], self.labels[device][order]


def load(folder: str | Path) -> Given:
    """Read what the sides are given."""
    return Given(**torch.load(Path(folder, GIVEN), weights_only=True))


def save(given: Given, folder: Path) -> None:
    """Write what the sides are given."""
    torch.save(vars(given), folder / GIVEN)


def done(number: int, given: Given) -> None:
    """Say that a round is over."""
    print(f"round {number}/{given.rounds}", flush=True)


def finish(folder: str | Path, weights: dict[str, torch.Tensor]) -> None:
    """Leave the weights of the end."""
    torch.save({name: value.detach().clone() for name, value in weights.items()}, Path(folder, "final.pt"))


def folder_of_side() -> str:
    """Return the folder that the program was given."""
    return sys.argv[1]


def steps(given: Given, model: nn.Module, number: int, device: int) -> None:
    """Take a device's steps of a round, as a plain loop does."""
    loss = nn.CrossEntropyLoss()
    images, labels = given.images[device], given.labels[device]
    own = dict(model.named_parameters())
    halves = [[own[name] for name in given.personal]] if given.personal else []
    halves.append([parameter for name, parameter in own.items() if name not in given.personal])
    for phase, trained in enumerate(halves):
        for parameter in own.values():
            parameter.requires_grad_(False)
        for parameter in trained:
            parameter.requires_grad_(True)
        optimizer = torch.optim.SGD(trained, lr=given.rate)
        for batch in given.batches(number, device, phase - len(halves)):
            optimizer.zero_grad()
            loss(model(images[batch]), labels[batch]).backward()
            optimizer.step()


def vector(weights: dict[str, torch.Tensor], given: Given) -> np.ndarray:
    """Return the weights that are averaged as one vector."""
    names = [name for name in given.weights if name not in given.personal]
    return torch.cat([weights[name].flatten() for name in names]).numpy()
