"""Local algorithms by name, and what each adds to a step."""

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from client_app.algorithms import ALGORITHMS, make_algorithm, steps_per_round
from client_app.algorithms.alternating import Alternating
from client_app.fast.stacked import StackedNetwork
from client_app.local_round import DeviceRound, LocalTraining
from client_app.network import ModuleNetwork
from client_app.samples import TensorPool
from protocol.training import TrainingSpec
from task.models import build_model
from task.split import split_parameters

SAMPLES = 12
SGD = {"optimizer": "sgd", "personal_learning_rate": 0.1, "global_learning_rate": 0.1, "batch_size": SAMPLES}


def _network(many: bool):
    module = build_model("mlp", options={"hidden": 3}, generator=torch.Generator().manual_seed(0))
    split = split_parameters(module, ["fc2*"])
    return StackedNetwork(module, split) if many else ModuleNetwork(module, split)


def _results(name, options, num_pruned, *, many=False, **training):
    network = _network(many)
    generator = torch.Generator().manual_seed(1)
    pool = TensorPool(
        torch.randn(SAMPLES, 1, 28, 28, generator=generator),
        torch.randint(0, 10, (SAMPLES,), generator=generator),
    )
    spec = TrainingSpec(**{**SGD, "algorithm": name, "options": options, **training})
    local = LocalTraining(network, pool, make_algorithm(name, options), spec, devices_at_once=4)
    rng = np.random.default_rng(0)
    u, v = (
        (0.1 * rng.standard_normal(n)).astype(np.float32)
        for n in (network.split.global_part.size, network.split.personal.size)
    )
    devices = [
        DeviceRound(np.arange(SAMPLES), v, k, lambda: torch.Generator().manual_seed(5)) for k in num_pruned
    ]
    found: dict[int, Any] = {}
    for chunk in local.rounds(u, devices):
        found |= chunk
    return u, [found[k] for k in range(len(num_pruned))]


@pytest.mark.parametrize(("many", "num_pruned"), list(product([False, True], [0, 1000])))
def test_fedprox_adds_its_pull_to_every_step(many, num_pruned):
    """By hand: the first step is plain, since u = u_g; the second is pulled back by mu (u - u_g)."""
    mu, rate = 0.5, 0.1
    _, (plain,) = _results("alternating", {}, [num_pruned], many=many, global_steps=1)
    u, (first,) = _results("fedprox", {"mu": mu}, [num_pruned], many=many, global_steps=1)
    _, (second,) = _results("fedprox", {"mu": mu}, [num_pruned], many=many, global_steps=2)
    _, (unpulled,) = _results("alternating", {}, [num_pruned], many=many, global_steps=2)
    kept = first.mask
    np.testing.assert_array_equal(first.global_part, plain.global_part)
    expected = np.where(kept, unpulled.global_part - rate * mu * (first.global_part - u), 0)
    np.testing.assert_allclose(second.global_part, expected, atol=2e-7)
    assert np.abs(second.global_part - unpulled.global_part).max() > 1e-6
    assert not second.global_part[~kept].any()
    np.testing.assert_array_equal(second.personal, unpulled.personal)


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_fedprox_without_its_term_is_alternating(many, optimizer):
    numbers = [0, 500, 2000]
    _, plain = _results("alternating", {}, numbers, many=many, optimizer=optimizer, global_steps=3)
    _, prox = _results("fedprox", {"mu": 0.0}, numbers, many=many, optimizer=optimizer, global_steps=3)
    for mine, theirs in zip(prox, plain, strict=True):
        for part in ("personal", "global_part", "mask"):
            np.testing.assert_array_equal(getattr(mine, part), getattr(theirs, part))


def test_names_and_options_are_checked():
    with pytest.raises(ValueError, match="alternating, fedprox, simultaneous"):
        make_algorithm("fedalt", {})
    with pytest.raises(ValueError, match="mu"):
        make_algorithm("fedprox", {"nu": 0.1})
    with pytest.raises(ValueError, match=r"mu = -0\.1"):
        make_algorithm("fedprox", {"mu": -0.1})
    with pytest.raises(ValueError, match="has no option 'mu'"):
        make_algorithm("alternating", {"mu": 0.1})


def test_an_algorithm_is_one_class():
    """One of one's own: every step of the global part is halved."""

    @ALGORITHMS.register("test_halved")
    @dataclass(frozen=True, kw_only=True)
    class Halved(Alternating):
        factor: float = 0.5

        def correct(self, work):
            if work.trains_global:
                work.network.global_part.grad.mul_(self.factor)

    u, (half, whole) = _results("test_halved", {}, [0, 0], many=True, global_steps=1)
    _, (plain,) = _results("alternating", {}, [0], global_steps=1)
    np.testing.assert_allclose(half.global_part - u, (plain.global_part - u) / 2, atol=1e-7)
    np.testing.assert_array_equal(half.global_part, whole.global_part)


def test_steps_per_round_count_what_is_done():
    """Of the paper's table: steps, or epochs times the batches of each device; both parts in every step."""
    sizes = np.array([10, 64, 65])
    spec = TrainingSpec(personal_steps=3, global_steps=5, batch_size=32)
    personal, global_part = steps_per_round(spec, sizes, has_personal=True)
    assert (personal.tolist(), global_part.tolist()) == ([3] * 3, [5] * 3)
    spec = TrainingSpec(personal_epochs=1, global_epochs=2, batch_size=32)
    personal, global_part = steps_per_round(spec, sizes, has_personal=True)
    assert (personal.tolist(), global_part.tolist()) == ([1, 2, 3], [2, 4, 6])
    spec = TrainingSpec(algorithm="simultaneous", personal_steps=3, global_steps=5)
    personal, global_part = steps_per_round(spec, sizes, has_personal=True)
    assert (personal.tolist(), global_part.tolist()) == ([5] * 3, [5] * 3)
    personal, _ = steps_per_round(spec, sizes, has_personal=False)
    assert not personal.any()
