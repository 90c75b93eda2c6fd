"""What is trained: four workloads and their variants, and the pictures that they are trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from task import Dataset

CLASSES = 10


@dataclass(frozen=True)
class Workload:
    """Rounds of federated averaging.

    Attributes:
        text: for the table.
        model: of `task.models`.
        options: of the model.
        devices, images: devices, and images of each.
        batch: images per step; a round is one pass over a device's images.
        shape: of an image.
        participants: devices of a round; None: all.
        alternating: one pass over the images for the convolutions, which stay on the device, then one for the
            linear layers.
        rate: step size of plain SGD.
        rounds: rounds of a run; the first and the last are not among those whose time is taken.
    """

    text: str
    model: str
    devices: int
    images: int
    batch: int
    shape: tuple[int, int, int] = (1, 28, 28)
    participants: int | None = None
    alternating: bool = False
    rate: float = 0.05
    rounds: int = 5
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def of_round(self) -> int:
        """The number of devices of a round."""
        return self.participants or self.devices

    def overrides(self) -> list[str]:
        """Return what is not a default of `airflower`."""
        channels, size, _ = self.shape
        options = f"{{channels: {channels}, size: {size}, number: {self.devices * self.images}}}"
        found = [
            "scheme=personalization_only" if self.alternating else "scheme=fedavg",
            f"model={self.model}",
            "partition=iid",
            "dataset.name=benchmarks.peers.workloads:pictures",
            f"+dataset.options={options}",
            f"fleet.num_devices={self.devices}",
            f"rounds={self.rounds}",
            "evaluate_every=1000000",
            "training.optimizer=sgd",
            "training.global_epochs=1",
            f"training.batch_size={self.batch}",
            f"training.global_learning_rate={self.rate}",
        ]
        found += [f"+model.options.{name}={value}" for name, value in self.options.items()]
        if self.participants:
            found.append(f"fleet.devices_per_round={self.participants}")
        if self.alternating:
            found += ["training.personal_epochs=1", f"training.personal_learning_rate={self.rate}"]
        return found


WORKLOADS = {
    "W1": Workload("paper's CNN, 10 x 600 images, batch 128", "cnn", 10, 600, 128),
    "W1a": Workload("the same, alternating", "cnn", 10, 600, 128, alternating=True),
    "W2": Workload(
        "paper's CNN, 10 of 100 x 100 images, batch 32", "cnn", 100, 100, 32, participants=10, rounds=12
    ),
    "W2all": Workload("the same, all 100", "cnn", 100, 100, 32, rounds=4),
    "W3": Workload("MLP of 20 k weights, 200 x 8 images, one step", "mlp", 200, 8, 8, rounds=8),
    "W4": Workload(
        "resnet8 (GroupNorm), 10 x 200 of 3 x 32 x 32, batch 50",
        *("resnet8", 10, 200, 50, (3, 32, 32)),
        options={"norm": "group"},
    ),
}


def pictures(*, channels: int, size: int, number: int) -> Dataset:
    """Return noisy pictures of ten patterns, which can be learned."""
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 256, (CLASSES, channels, size, size))

    def draw(count: int) -> tuple[Any, Any]:
        labels = rng.integers(0, CLASSES, count)
        noise = rng.integers(0, 256, (count, channels, size, size))
        return ((patterns[labels] + 3 * noise) // 4).astype(np.uint8), labels

    return Dataset(
        train=draw(number),
        test=draw(4 * CLASSES * 20),
        num_classes=CLASSES,
        mean=(0.5,) * channels,
        std=(0.2,) * channels,
    )
