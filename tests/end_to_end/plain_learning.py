"""Local training and masked averaging, written a second time: from the paper, in float64, without the code.

Liu et al. 2024, Algorithm 1 (LocalAlt) and its simultaneous variant, for a network of two linear layers.
Nothing of `client_app` or `strategies` is used. What is taken from the project is what a second
implementation cannot guess: the keyed random streams, the images, and who holds which of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from protocol.streams import generator, torch_seed
from task.datasets import load_dataset
from task.partition import partition
from task.transforms import ready

SHAPES = {"fc1.weight": (25, 784), "fc1.bias": (25,), "fc2.weight": (10, 25), "fc2.bias": (10,)}


@dataclass
class Setting:
    """What decides a run; the defaults are those of the configuration tree."""

    devices: int
    seed: int = 1
    personal: str = "fc2"  # prefix of the personal parameters' names; "-" for none
    simultaneous: bool = False
    personal_steps: int = 2
    global_steps: int = 2
    importance_steps: int = 1
    personal_rate: float = 0.05
    global_rate: float = 0.05
    momentum: float = 0.0
    weight_decay: float = 0.0
    batch: int = 16
    bits: int = 32
    by_samples: bool = False
    sampled: int | None = None
    partition: Mapping[str, object] = field(
        default_factory=lambda: {"name": "labels", "labels_per_device": 2}
    )

    def overrides(self) -> list[str]:
        """The same as overrides of the configuration."""
        kind, options = str(self.partition["name"]), {**self.partition}
        del options["name"]
        capped = {
            key: options.pop(key) for key in list(options) if key.endswith("per_device") and "samples" in key
        }
        own = self.personal != "-"
        return [
            "model=mlp", f"seed={self.seed}", f"fleet.num_devices={self.devices}", f"partition={kind}",
            *(f"partition.{key}={value}" for key, value in capped.items()),
            *(f"partition.options.{key}={value}" for key, value in options.items()),
            *([f"model.personal=[{self.personal}*]"] if own else []),
            f"training.algorithm={'simultaneous' if self.simultaneous else 'alternating'}",
            *([f"training.personal_steps={self.personal_steps}"] if own and not self.simultaneous else []),
            *([f"training.personal_learning_rate={self.personal_rate}"] if own else []),
            f"training.global_steps={self.global_steps}",
            f"training.importance_steps={self.importance_steps}", "training.optimizer=sgd",
            f"training.global_learning_rate={self.global_rate}", f"training.momentum={self.momentum}",
            f"training.weight_decay={self.weight_decay}", f"training.batch_size={self.batch}",
            f"radio.bits_per_weight={self.bits}",
            f"scheme.weighting={'samples' if self.by_samples else 'uniform'}",
            *([] if self.sampled is None else [f"fleet.devices_per_round={self.sampled}"]),
        ]  # fmt: skip


class Learning:
    """The global part of a run and the personal parts of its devices, as named float64 tensors."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        data = load_dataset("digits")
        options: dict[str, Any] = dict(setting.partition)
        labels = data.train[1].numpy(), data.test[1].numpy()
        stream = generator(setting.seed, "partition")
        self.parts = partition(str(options.pop("name")), *labels, setting.devices, stream, **options)
        self.train = [_double(ready(data, data.train, part.train)) for part in self.parts]
        self.test = [_double(ready(data, data.test, part.test)) for part in self.parts]
        weights = torch.Generator().manual_seed(torch_seed(setting.seed, "init"))
        start = {}
        for name, shape in SHAPES.items():  # uniform in +-1 / sqrt(fan-in)
            bound = 1 / np.sqrt(784 if name.startswith("fc1") else 25)
            drawn = torch.empty(shape, dtype=torch.float32).uniform_(-bound, bound, generator=weights)
            start[name] = drawn.double()
        self.names = [name for name in SHAPES if not name.startswith(setting.personal)]
        self.u = torch.cat([start[name].ravel() for name in self.names])
        self.own = [name for name in SHAPES if name not in self.names]
        self.v = [{name: start[name] for name in self.own} for _ in range(setting.devices)]

    def participants(self, number: int) -> list[int]:
        """Who is asked in a round."""
        stream, few = generator(self.setting.seed, "participation", number), self.setting.sampled
        everyone = np.arange(self.setting.devices)
        return sorted(everyone if few is None else stream.choice(everyone.size, few, replace=False))

    def gradient(self, u: torch.Tensor, v: dict[str, torch.Tensor], device: int, batch: Any) -> tuple:
        """Loss of a mini-batch and its gradients in u (flat) and v."""
        u = u.clone().requires_grad_()
        v = {name: value.clone().requires_grad_() for name, value in v.items()}
        images, labels = self.train[device]
        loss = _loss(self._network(u, v), images[batch], labels[batch])
        both = torch.autograd.grad(loss, [u, *v.values()])
        return loss.item(), both[0], dict(zip(v, both[1:], strict=True))

    def local_round(
        self, number: int, device: int, num_pruned: int, common: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
        """Steps B.1 to B.6 of one device; returns u_k, m_k and the mean losses, and keeps v_k."""
        s, u, v = self.setting, self.u, self.v[device]
        seed = torch_seed(s.seed, "batches", number, device)
        phases = torch.randint(0, 2**63 - 1, (3,), generator=torch.Generator().manual_seed(seed)).tolist()
        losses: dict[str, float] = {}
        silent = num_pruned == u.numel()
        if v and (not s.simultaneous or silent):  # 1: on v, u dense and frozen, eq. (6)
            steps, found, speed = s.global_steps if s.simultaneous else s.personal_steps, [], _Momentum(s)
            for batch in self._batches(device, phases[0], steps):
                loss, _, slope = self.gradient(u, v, device, batch)
                v = {n: v[n] - s.personal_rate * speed(n, slope[n], v[n]) for n in v}
                found.append(loss)
            losses["personal_loss"] = np.mean(found)
        self.v[device] = v
        if silent:  # 2
            return np.zeros(u.numel()), np.zeros(u.numel(), bool), losses
        mask = np.ones(u.numel(), bool) if common is None else common
        if num_pruned and common is None:  # 3, 4: trial steps rank the weights, eq. (20)
            moved = torch.zeros_like(u)  # a sum of its own: u + moved - u would break exact ties by rounding
            for batch in self._batches(device, phases[1], s.importance_steps):
                moved = moved - s.global_rate * self.gradient(u + moved, v, device, batch)[1]
            importance, index = moved.abs().numpy(), np.arange(u.numel())
            mask[np.lexsort((-index, u.abs().numpy(), importance))[:num_pruned]] = False
        keep = torch.from_numpy(mask.astype(float))
        mine, found, speed = u * keep, [], _Momentum(s)  # 5: from the broadcast, eq. (21)
        for batch in self._batches(device, phases[2], s.global_steps):  # 6: eq. (22)
            loss, slope, slope_v = self.gradient(mine, v, device, batch)
            mine = (mine - s.global_rate * speed("u", slope, mine)) * keep
            if s.simultaneous:
                v = {n: v[n] - s.personal_rate * speed(n, slope_v[n], v[n]) for n in v}
            found.append(loss)
        losses["global_loss"] = np.mean(found)
        if s.simultaneous and v:
            losses["personal_loss"] = losses["global_loss"]
        self.v[device] = v
        return mine.numpy(), mask, losses

    def average(self, uploads: list[tuple[np.ndarray, np.ndarray, float]]) -> np.ndarray:
        """Eq. (26) over (u_k, m_k, weight); a weight that nobody kept stays. Returns the counts."""
        total, share, counts = (np.zeros(self.u.numel()) for _ in range(3))
        for values, mask, weight in uploads:
            total, share, counts = total + weight * mask * values, share + weight * mask, counts + mask
        mean = total / np.where(share > 0, share, 1)
        self.u = torch.from_numpy(np.where(share > 0, mean, self.u.numpy()))
        return counts

    def accuracy(self, device: int) -> tuple[float, float]:
        """Personalised accuracy and loss: the dense u with the device's own v, on its own test part."""
        images, labels = self.test[device]
        network = self._network(self.u, self.v[device])
        logits = _logits(network, images)
        return (logits.argmax(1) == labels).double().mean().item(), _loss(network, images, labels).item()

    def _network(self, u: torch.Tensor, v: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        flat = torch.split(u, [int(np.prod(SHAPES[name])) for name in self.names])
        return {**v, **{n: part.view(SHAPES[n]) for n, part in zip(self.names, flat, strict=True)}}

    def _batches(self, device: int, seed: int, steps: int) -> list[torch.Tensor]:
        """Successive mini-batches, shuffled anew for each pass; a pass leaves its remainder out."""
        number, stream = len(self.train[device][1]), torch.Generator().manual_seed(seed)
        if self.setting.batch >= number:
            return [torch.arange(number)] * steps
        orders: list[torch.Tensor] = []
        while len(orders) < steps:
            order = torch.randperm(number, generator=stream)
            orders += [part for part in order.split(self.setting.batch) if len(part) == self.setting.batch]
        return orders[:steps]


class _Momentum:
    """SGD with heavy-ball momentum and L2 penalty; starts afresh in every phase."""

    def __init__(self, setting: Setting) -> None:
        self._setting, self._speed = setting, dict[str, torch.Tensor]()

    def __call__(self, name: str, slope: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        force = slope + self._setting.weight_decay * value
        self._speed[name] = self._setting.momentum * self._speed.get(name, torch.zeros_like(force)) + force
        return self._speed[name]


def quantised(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """What 8 bits leave of the retained weights: 255 levels in each block of 2048."""
    out, kept = np.zeros(values.size), values[mask].copy()
    for begin in range(0, kept.size, 2048):
        block = kept[begin : begin + 2048]
        low, high = block.min(), block.max()
        step = (high - low) / 254
        block[:] = (low + high) / 2 + step * np.rint((block - (low + high) / 2) / step)
    out[mask] = kept
    return out


def _double(part: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    return part[0].double().flatten(1), part[1]


def _logits(network: Mapping[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    hidden = (images @ network["fc1.weight"].T + network["fc1.bias"]).clamp(min=0)
    return hidden @ network["fc2.weight"].T + network["fc2.bias"]


def _loss(network: Mapping[str, torch.Tensor], images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    logits = _logits(network, images)
    return (torch.logsumexp(logits, 1) - logits[torch.arange(len(labels)), labels]).mean()
