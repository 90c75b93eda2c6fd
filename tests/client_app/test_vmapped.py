"""Any network of many devices at once against the same network of one device after the other."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from client_app.algorithms import make_algorithm
from client_app.fast.vmapped import VmappedNetwork
from client_app.local_round import DeviceRound, LocalTraining
from client_app.network import ModuleNetwork
from client_app.results import DivergedError, LocalResult
from client_app.samples import TensorPool
from protocol.training import TrainingSpec
from task.split import split_parameters

SAMPLES, FEATURES, CLASSES = 60, 12, 4


class Residual(nn.Module):
    """No chain of layers: a skip connection, a norm, and activations that no kernel of ours knows."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(FEATURES, 16)
        self.norm = nn.GroupNorm(4, 16)
        self.inner = nn.Linear(16, 16)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.stem(x))
        hidden = hidden + torch.nn.functional.gelu(self.inner(self.norm(hidden)))
        return self.head(hidden)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(FEATURES // 3, 8)
        self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.stem(x.unflatten(1, (3, -1)))
        mixed = torch.nn.functional.scaled_dot_product_attention(
            self.query(tokens), self.key(tokens), self.value(tokens)
        )
        return self.head(mixed.mean(1))


def _module(kind: type[nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind()


def _pool() -> TensorPool:
    generator = torch.Generator().manual_seed(1)
    return TensorPool(
        torch.randn(SAMPLES, FEATURES, generator=generator),
        torch.randint(0, CLASSES, (SAMPLES,), generator=generator),
    )


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _devices(size_global: int, size_personal: int, count: int = 7) -> list[DeviceRound]:
    rng = np.random.default_rng(3)
    return [
        DeviceRound(
            samples=rng.permutation(SAMPLES)[: (5, 9, 20)[k % 3]],
            personal=(0.1 * rng.standard_normal(size_personal)).astype(np.float32),
            num_pruned=(0, size_global // 2, size_global)[(k // 2) % 3],
            generator=partial(_generator, k),
        )
        for k in range(count)
    ]


def _train(network, spec: TrainingSpec, devices: Sequence[DeviceRound], at_once: int) -> list:
    local = LocalTraining(
        network, _pool(), make_algorithm(spec.algorithm, spec.options), spec, devices_at_once=at_once
    )
    start = np.random.default_rng(0).standard_normal(network.split.global_part.size).astype(np.float32) * 0.1
    found: dict[int, LocalResult | Exception] = {}
    for chunk in local.rounds(start.astype(np.float32), devices):
        found |= chunk
    return [found[k] for k in range(len(devices))]


@pytest.mark.parametrize("kind", [Residual, Attention])
@pytest.mark.parametrize("personal", [["head*"], ["stem*"], []])
@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 8},
        {"batch_size": 32, "importance_steps": 2},
        {"algorithm": "simultaneous", "batch_size": 8},
        {"algorithm": "fedprox", "options": {"mu": 0.3}, "global_epochs": 2, "batch_size": 8},
    ],
)
def test_equals_one_after_the_other(kind, personal, options):
    spec = TrainingSpec(
        optimizer="sgd",
        personal_learning_rate=0.05,
        global_learning_rate=0.05,
        importance="update",
        **options,
    )
    split = split_parameters(_module(kind), personal)
    devices = _devices(split.global_part.size, split.personal.size)
    together = _train(VmappedNetwork(_module(kind), split), spec, devices, 4)
    alone = _train(ModuleNetwork(_module(kind), split), spec, devices, 1)
    for mine, theirs in zip(together, alone, strict=True):
        assert mine.mask.sum() == theirs.mask.sum()
        same = mine.mask == theirs.mask
        assert same.mean() > 0.99
        np.testing.assert_allclose(mine.global_part[same], theirs.global_part[same], atol=2e-6)
        np.testing.assert_allclose(mine.personal, theirs.personal, atol=2e-6)
        np.testing.assert_allclose(mine.global_loss, theirs.global_loss, rtol=1e-5)
        np.testing.assert_allclose(mine.personal_loss, theirs.personal_loss, rtol=1e-5)


def test_a_device_that_diverges_harms_no_other():
    spec = TrainingSpec(optimizer="sgd", personal_learning_rate=0.05, global_learning_rate=0.05, batch_size=8)
    split = split_parameters(_module(Residual), ["head*"])
    devices = _devices(split.global_part.size, split.personal.size)
    healthy = _train(VmappedNetwork(_module(Residual), split), spec, devices, 7)
    devices[2].personal[:] = np.nan
    found = _train(VmappedNetwork(_module(Residual), split), spec, devices, 7)
    assert isinstance(found[2], DivergedError)
    for k in (0, 1, 3, 4, 5, 6):
        np.testing.assert_array_equal(found[k].global_part, healthy[k].global_part)
        np.testing.assert_array_equal(found[k].personal, healthy[k].personal)
