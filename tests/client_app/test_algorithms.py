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


def _network(many: bool, patterns=("fc2*",)):
    module = build_model("mlp", options={"hidden": 3}, generator=torch.Generator().manual_seed(0))
    split = split_parameters(module, list(patterns))
    return StackedNetwork(module, split) if many else ModuleNetwork(module, split)


def _results(
    name, options, num_pruned, *, many=False, state=None, received=None, patterns=("fc2*",), **training
):
    network = _network(many, patterns)
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
        DeviceRound(
            np.arange(SAMPLES),
            v,
            k,
            lambda: torch.Generator().manual_seed(5),
            state=state(u) if state else {},
        )
        for k in num_pruned
    ]
    found: dict[int, Any] = {}
    for chunk in local.rounds(u, devices, received=received(u) if received else None):
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
    with pytest.raises(ValueError, match="alternating, ditto, fedprox, pfedme, scaffold, simultaneous"):
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
    personal, shared, _ = steps_per_round(spec, sizes, has_personal=True)
    assert (personal.tolist(), shared.tolist()) == ([3] * 3, [5] * 3)
    spec = TrainingSpec(personal_epochs=1, global_epochs=2, batch_size=32)
    personal, shared, _ = steps_per_round(spec, sizes, has_personal=True)
    assert (personal.tolist(), shared.tolist()) == ([1, 2, 3], [2, 4, 6])
    spec = TrainingSpec(algorithm="simultaneous", personal_steps=3, global_steps=5)
    personal, shared, _ = steps_per_round(spec, sizes, has_personal=True)
    assert (personal.tolist(), shared.tolist()) == ([5] * 3, [5] * 3)
    personal, *_ = steps_per_round(spec, sizes, has_personal=False)
    assert not personal.any()
    spec = TrainingSpec(algorithm="ditto", personal_steps=3, global_steps=5)
    assert [steps.tolist() for steps in steps_per_round(spec, sizes[:1], has_personal=False)] == [
        [0],
        [5],
        [3],
    ]
    spec = TrainingSpec(algorithm="pfedme", options={"inner_steps": 4}, personal_steps=3, global_steps=5)
    assert [steps.tolist() for steps in steps_per_round(spec, sizes[:1], has_personal=True)] == [
        [3],
        [20],
        [0],
    ]


# One round of each by hand: a batch is all samples, so a gradient is a function of the weights alone.
RATE = 0.1
PRUNED = [0, 1000]


def _gradient(weights, personal, patterns):
    """Return the gradients of the mean cross-entropy for u and v, by autograd on the plain module."""
    network = _network(False, patterns)
    generator = torch.Generator().manual_seed(1)
    samples = torch.randn(SAMPLES, 1, 28, 28, generator=generator)
    labels = torch.randint(0, 10, (SAMPLES,), generator=generator)
    network.load(personal=personal, global_part=weights)
    for parameter in network.module.parameters():
        parameter.requires_grad_(True)
    loss = torch.nn.functional.cross_entropy(network.module(samples), labels)
    parameters = dict(network.module.named_parameters())
    grads = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
    return tuple(
        np.concatenate([grads[name].numpy().ravel() for name in layout.names] or [np.zeros(0, np.float32)])
        for layout in (network.split.global_part, network.split.personal)
    )


def _start(patterns):
    rng = np.random.default_rng(0)
    split = _network(False, patterns).split
    return tuple(
        (0.1 * rng.standard_normal(n)).astype(np.float32)
        for n in (split.global_part.size, split.personal.size)
    )


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("patterns", [("fc2*",), ()])
def test_ditto_trains_a_copy_near_the_broadcast(many, patterns):
    """w <- w - eta (dF(w) + lam (w - u_g)), twice, from the copy that the device kept; v moves along."""
    u, v = _start(patterns)
    lam = 0.7
    own = (u + 0.05).astype(np.float32)
    _, (found, silent) = _results(
        "ditto", {"lam": lam}, [500, u.size], many=many, patterns=patterns, personal_steps=2,
        state=lambda u: {"model": (u + 0.05).astype(np.float32)},
    )  # fmt: skip
    w, x = own.copy(), v.copy()
    for _ in range(2):
        of_u, of_v = _gradient(w, x, patterns)
        w, x = w - RATE * (of_u + lam * (w - u)), x - RATE * of_v
    for one in (found, silent):
        np.testing.assert_allclose(one.state["model"], w, atol=3e-7)
        np.testing.assert_allclose(one.personal, x, atol=3e-7)
        assert not one.sent
    assert np.abs(w - own).max() > 1e-3
    assert make_algorithm("ditto", {}).personalised(u, found.state) is found.state["model"]
    assert make_algorithm("ditto", {}).personalised(u, {}) is u
    _, (fresh,) = _results("ditto", {"lam": 0.0}, [0], many=many, patterns=patterns, personal_steps=1)
    np.testing.assert_allclose(fresh.state["model"], u - RATE * _gradient(u, v, patterns)[0], atol=3e-7)


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("lam", [0.0, 0.7])
def test_the_global_part_of_ditto_is_that_of_federated_averaging(many, lam):
    plain = _results("alternating", {}, [0, 500], many=many, patterns=(), global_steps=3)[1]
    ditto = _results("ditto", {"lam": lam}, [0, 500], many=many, patterns=(), global_steps=3)[1]
    for mine, theirs in zip(ditto, plain, strict=True):
        np.testing.assert_array_equal(mine.global_part, theirs.global_part)
        np.testing.assert_array_equal(mine.mask, theirs.mask)


def _controls(u):
    rng = np.random.default_rng(9)
    return tuple((0.05 * rng.standard_normal(u.size)).astype(np.float32) for _ in range(2))


@pytest.mark.parametrize(("many", "num_pruned"), list(product([False, True], PRUNED)))
def test_scaffold_corrects_by_the_control_variates(many, num_pruned):
    """Two steps: u <- u - eta m (dF(u) - c_k + c); c_k+ = c_k - c + (u_g m - u) / (2 eta) on what is kept."""
    u, _ = _start(("fc2*",))
    own, server = _controls(u)
    _, (found,) = _results(
        "scaffold", {}, [num_pruned], many=many, global_steps=2, personal_steps=0,
        state=lambda u: {"control": own}, received=lambda u: {"control": server},
    )  # fmt: skip
    kept = found.mask
    _, v = _start(("fc2*",))
    w = u * kept
    for _ in range(2):
        w = w - RATE * kept * (_gradient(w, v, ("fc2*",))[0] - own + server)
    np.testing.assert_allclose(found.global_part, w, atol=3e-7)
    option_two = own - server + (u * kept - w) / (2 * RATE)
    np.testing.assert_allclose(found.state["control"][kept], option_two[kept], atol=3e-6)
    # Masks hold: what is pruned neither moves nor is sent, and its control variate stays.
    np.testing.assert_array_equal(found.state["control"][~kept], own[~kept])
    assert not found.global_part[~kept].any()
    assert not found.sent["control"][~kept].any()
    np.testing.assert_allclose(found.sent["control"][kept], (option_two - own)[kept], atol=3e-6)


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_scaffold_and_pfedme_with_neutral_parameters_are_alternating(many, optimizer):
    numbers = [0, 500, 2000]
    kw = {"many": many, "optimizer": optimizer, "global_steps": 3}
    _, plain = _results("alternating", {}, numbers, **kw)
    _, scaffold = _results(
        "scaffold", {"strength": 0.0}, numbers, **kw,
        state=lambda u: {"control": _controls(u)[0]}, received=lambda u: {"control": _controls(u)[1]},
    )  # fmt: skip
    _, first = _results("scaffold", {}, numbers, **kw)  # before the first round all control variates are 0
    _, pfedme = _results("pfedme", {"lam": 15.0, "eta_lam": 1.0, "inner_steps": 1}, numbers, **kw)
    for mine in (scaffold, first, pfedme):
        for one, theirs in zip(mine, plain, strict=True):
            for part in ("personal", "global_part", "mask"):
                np.testing.assert_array_equal(getattr(one, part), getattr(theirs, part))


@pytest.mark.parametrize(("many", "num_pruned"), list(product([False, True], PRUNED)))
def test_pfedme_goes_towards_the_solution_of_its_envelope(many, num_pruned):
    """Two inner steps for each of two outer ones: theta <- theta - eta (dF + lam (theta - u)); u follows."""
    lam, eta_lam = 2.0, 0.3
    options = {"lam": lam, "eta_lam": eta_lam, "inner_steps": 2}
    u, v = _start(("fc2*",))
    _, (found,) = _results("pfedme", options, [num_pruned], many=many, global_steps=2, personal_steps=0)
    kept = found.mask
    w = u * kept
    for _ in range(2):
        theta = w.copy()
        for _ in range(2):
            theta = theta - RATE * kept * (_gradient(theta, v, ("fc2*",))[0] + lam * (theta - w))
        w = w - eta_lam * (w - theta)
    np.testing.assert_allclose(found.global_part, w, atol=5e-7)
    np.testing.assert_allclose(found.state["model"], np.where(kept, theta, u), atol=5e-7)
    assert not found.global_part[~kept].any()
    assert np.abs(theta - w)[kept].max() > 1e-4


@pytest.mark.parametrize("name", ["ditto", "scaffold", "pfedme", "fedprox"])
def test_many_devices_at_once_are_each_as_if_alone(name):
    numbers = [0, 300, 700, None]
    u, _ = _start(("fc2*",))
    numbers = [u.size if number is None else number for number in numbers]
    together = _results(name, {}, numbers, many=True, global_steps=2)[1]
    for number, one in zip(numbers, together, strict=True):
        alone = _results(name, {}, [number], global_steps=2)[1][0]
        np.testing.assert_array_equal(one.mask, alone.mask)
        np.testing.assert_allclose(one.global_part, alone.global_part, atol=1e-6)
        assert set(one.state) == set(alone.state)
        for key in one.state:
            np.testing.assert_allclose(one.state[key], alone.state[key], atol=1e-5)
        for key in one.sent:
            np.testing.assert_allclose(one.sent[key], alone.sent[key], atol=1e-5)


def test_a_state_of_another_size_costs_its_device_the_round():
    _, (wrong,) = _results("ditto", {}, [0], state=lambda u: {"model": u[1:]})
    assert isinstance(wrong, ValueError)
    assert "'model'" in str(wrong)


def test_a_gradient_is_clipped_over_all_that_moves():
    """One step of SGD is as long as the limit, over the retained weights; a short gradient stays as it is."""
    for many in (False, True):
        for number in (0, 1000):
            _, (free,) = _results("alternating", {}, [number], many=many, global_steps=1, personal_steps=0)
            u, (cut,) = _results(
                "alternating", {}, [number], many=many, global_steps=1, personal_steps=0, clip_norm=0.01
            )
            step = cut.global_part - u * cut.mask
            assert np.linalg.norm(step) == pytest.approx(0.01 * RATE, rel=1e-3)
            free_step = free.global_part - u * free.mask
            free_step /= np.linalg.norm(free_step)
            np.testing.assert_allclose(step / np.linalg.norm(step), free_step, atol=1e-3)
            _, (loose,) = _results(
                "alternating", {}, [number], many=many, global_steps=1, personal_steps=0, clip_norm=1e6
            )
            np.testing.assert_array_equal(loose.global_part, free.global_part)


def test_the_global_phase_is_the_last():
    class Wrong(Alternating):
        def run(self, work):
            work.train_global(steps=1, epochs=None)
            work.train_personal(steps=1, epochs=None)

    network = _network(False)
    pool = TensorPool(torch.randn(SAMPLES, 1, 28, 28), torch.zeros(SAMPLES, dtype=torch.int64))
    local = LocalTraining(network, pool, Wrong(), TrainingSpec(optimizer="sgd", batch_size=SAMPLES))
    u, v = _start(("fc2*",))
    with pytest.raises(RuntimeError, match="last phase"):
        list(local.rounds(u, [DeviceRound(np.arange(SAMPLES), v, 0, torch.Generator)]))
