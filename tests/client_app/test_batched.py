"""Local rounds of many devices as one set of tensors against one device after the other."""

import math
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from client_app import pruning
from client_app.algorithms import make_algorithm
from client_app.fast.stacked import StackedNetwork
from client_app.local_round import DeviceRound, LocalTraining, local_round
from client_app.network import ModuleNetwork
from client_app.precision import product_type
from client_app.results import DivergedError, LocalResult
from client_app.samples import StoredPool
from protocol.training import TrainingSpec
from task.dataset import Dataset
from task.models import build_model
from task.split import split_parameters
from task.transforms import make_transform, ready

MODELS = {
    "cnn": (("conv*",), {"kernel_size": 3, "hidden": 8}),
    "lenet5": (("conv*",), {}),
    "mlp": (("fc2*",), {"hidden": 6}),
}
SGD: dict[str, Any] = {"optimizer": "sgd", "personal_learning_rate": 0.02, "global_learning_rate": 0.02}
ADAM: dict[str, Any] = {"optimizer": "adam", "personal_learning_rate": 1e-3, "global_learning_rate": 1e-3}


@cache
def _data() -> Dataset:
    rng = np.random.default_rng(5)
    images = torch.from_numpy(rng.integers(0, 256, (200, 1, 28, 28), dtype=np.uint8))
    labels = torch.from_numpy(rng.integers(0, 10, 200))
    return Dataset(
        train=(images, labels), test=(images[:5], labels[:5]), num_classes=10, mean=(0.5,), std=(0.29,)
    )


@cache
def _model(name: str, personal: tuple[str, ...] | None = None) -> ModuleNetwork:
    default, options = MODELS[name]
    module = build_model(name, options=options, generator=torch.Generator().manual_seed(0))
    return ModuleNetwork(module, split_parameters(module, default if personal is None else personal))


def _start(model: ModuleNetwork) -> np.ndarray:
    return (0.05 * np.random.default_rng(0).standard_normal(model.split.global_part.size)).astype(np.float32)


def _device(model: ModuleNetwork, number: int, *, samples: int, num_pruned: int, mask=None) -> DeviceRound:
    rng = np.random.default_rng(number)
    return DeviceRound(
        samples=rng.permutation(200)[:samples],
        personal=(0.05 * rng.standard_normal(model.split.personal.size)).astype(np.float32),
        num_pruned=num_pruned,
        generator=lambda: torch.Generator().manual_seed(number),
        mask=mask,
    )


def _one_by_one(model, spec, devices) -> list[Any]:  # results or exceptions: the caller knows which
    results: list[LocalResult | Exception] = []
    for one in devices:
        images, labels = ready(_data(), _data().train, one.samples)
        try:
            result = local_round(
                model,
                images,
                labels,
                broadcast=_start(model),
                personal=one.personal,
                num_pruned=one.num_pruned,
                algorithm=make_algorithm(spec.algorithm, spec.options),
                training=spec,
                generator=one.generator(),
                mask=one.mask,
            )
        except (ValueError, DivergedError) as error:
            results.append(error)
        else:
            results.append(result)
    return results


def _training(model, spec, batch_devices) -> LocalTraining:
    dtype = product_type(spec.precision)
    return LocalTraining(
        StackedNetwork(model.module, model.split, dtype=dtype),
        StoredPool(*_data().train, make_transform("auto", {}, _data()), None, torch.device("cpu")),
        make_algorithm(spec.algorithm, spec.options),
        spec,
        devices_at_once=batch_devices,
    )


def _batched(
    model, spec, devices, batch_devices=8
) -> list[Any]:  # results or exceptions: the caller knows which
    training = _training(model, spec, batch_devices)
    found: dict[int, Any] = {}
    for chunk in training.rounds(_start(model), devices):
        assert len(chunk) <= batch_devices
        found |= chunk
    return [found[number] for number in range(len(devices))]


def _assert_equal(mine: LocalResult, theirs: LocalResult, spec: TrainingSpec) -> None:
    """Equal within float32 rounding.

    A sum in another order may swap two weights whose importances agree in six digits. Adam divides a gradient
    by its own magnitude, and so turns the rounding error of one that should be zero into a part of a step:
    few weights may be off, by no more than the steps themselves.
    """
    assert isinstance(mine, LocalResult)
    assert isinstance(theirs, LocalResult)
    assert mine.mask.dtype == np.bool_
    assert mine.mask.sum() == theirs.mask.sum()
    assert not mine.global_part[~mine.mask].any()
    same = mine.mask == theirs.mask
    assert same.mean() > 0.999
    for name, kept in (("personal", slice(None)), ("global_part", same)):
        a, b = getattr(mine, name)[kept], getattr(theirs, name)[kept]
        if a.size:
            off = np.abs(a - b)
            steps = max(mine.personal_steps, mine.global_steps)
            assert np.mean(off > 2e-6) < (0.015 if spec.optimizer == "adam" else 0.002)
            assert off.max() <= (2 * steps * 1e-3 if spec.optimizer == "adam" else 1e-5)
    for name in ("personal_loss", "global_loss"):
        np.testing.assert_allclose(getattr(mine, name), getattr(theirs, name), rtol=2e-5)
    for name in ("personal_steps", "importance_steps", "global_steps"):
        assert getattr(mine, name) == getattr(theirs, name)


def _assert_all_equal(model, spec, devices, batch_devices=8) -> None:
    pairs = zip(_batched(model, spec, devices, batch_devices), _one_by_one(model, spec, devices), strict=True)
    for mine, theirs in pairs:
        _assert_equal(mine, theirs, spec)


def _mixed(model: ModuleNetwork, samples=(8, 20, 13, 20, 5, 20, 20)) -> list[DeviceRound]:
    """Devices that prune nothing, something, everything, and as they are told."""
    size = model.split.global_part.size
    mask = np.random.default_rng(1).random(size) < 0.6
    numbers = [size // 2, size // 3, 0, size, size // 2, int((~mask).sum()), 1]
    return [
        _device(model, number, samples=n, num_pruned=k, mask=mask if number == 5 else None)
        for number, (n, k) in enumerate(zip(samples, numbers, strict=True))
    ]


@pytest.mark.parametrize("optimizer", [SGD, ADAM], ids=["sgd", "adam"])
@pytest.mark.parametrize("algorithm", ["alternating", "simultaneous"])
@pytest.mark.parametrize("name", list(MODELS))
def test_equals_one_after_the_other(name, algorithm, optimizer):
    model = _model(name)
    spec = TrainingSpec(algorithm=algorithm, batch_size=4, importance_steps=2, **optimizer)
    _assert_all_equal(model, spec, _mixed(model, samples=(4, 6, 5, 6, 3, 6, 6)))


@pytest.mark.parametrize("importance", ["update", "first_order", "magnitude", "random"])
@pytest.mark.parametrize("batch_size", [8, 64])
def test_every_importance_and_batches_of_all_samples(importance, batch_size):
    model = _model("mlp")
    spec = TrainingSpec(importance=importance, prune_bias=False, batch_size=batch_size, **SGD)
    devices = _mixed(model)
    _assert_all_equal(model, spec, devices)
    if importance in ("magnitude", "random"):  # nothing to round
        for mine, theirs in zip(
            _batched(model, spec, devices), _one_by_one(model, spec, devices), strict=True
        ):
            np.testing.assert_array_equal(mine.mask, theirs.mask)


@pytest.mark.parametrize(
    "options",
    [
        {"personal_epochs": 2, "global_epochs": 1},
        {"personal_epochs": None, "global_epochs": 3},
        {"personal_epochs": 1, "global_epochs": 1, "algorithm": "simultaneous"},
        {"personal_steps": 0, "global_steps": 5},
        {"momentum": 0.9, "weight_decay": 0.1, "global_steps": 3},
    ],
)
@pytest.mark.parametrize(
    ("name", "personal"),
    [("mlp", ("fc2*",)), ("mlp", ("fc1*",)), ("mlp", ("*.bias",)), ("mlp", ()), ("lenet5", ("fc*",))],
)
def test_epochs_splits_and_momentum(options, name, personal):
    model = _model(name, personal)
    spec = TrainingSpec(**{"batch_size": 8, **SGD, **options})
    _assert_all_equal(model, spec, _mixed(model, samples=(8, 11, 9, 11, 5, 11, 11)), batch_devices=2)


@cache
def _alone(number: int, samples: int, num_pruned: int) -> Any:
    spec = TrainingSpec(batch_size=8, **SGD)
    return _batched(
        _model("mlp"), spec, [_device(_model("mlp"), number, samples=samples, num_pruned=num_pruned)]
    )[0]


@pytest.mark.parametrize("prune_bias", [True, False])
def test_masks_chosen_as_on_a_gpu_are_the_same(monkeypatch, prune_bias):
    model = _model("mlp")
    spec = TrainingSpec(prune_bias=prune_bias, batch_size=8, **SGD)
    expected = _batched(model, spec, _mixed(model))
    monkeypatch.setattr(pruning, "select_each", pruning.select_at_once)
    for mine, theirs in zip(_batched(model, spec, _mixed(model)), expected, strict=True):
        for part in ("mask", "global_part", "personal"):
            np.testing.assert_array_equal(getattr(mine, part), getattr(theirs, part))


@pytest.mark.parametrize("name", ["mlp", "lenet5"])
def test_bfloat16_products_change_losses_by_their_rounding(monkeypatch, name):
    monkeypatch.setattr("client_app.precision.multiplies_bfloat16", lambda: True)
    model = _model(name)
    spec = TrainingSpec(batch_size=8, **SGD)
    half = _batched(model, replace(spec, precision="bfloat16"), _mixed(model))
    for mine, exact in zip(half, _batched(model, spec, _mixed(model)), strict=True):
        assert mine.mask.sum() == exact.mask.sum()
        assert mine.global_part.dtype == np.float32
        np.testing.assert_allclose(mine.personal_loss, exact.personal_loss, rtol=0.03)
        assert not np.array_equal(mine.personal, exact.personal)


@settings(deadline=None, max_examples=25)
@given(
    fleet=st.lists(st.tuples(st.integers(0, 4), st.sampled_from([3, 8, 20])), min_size=1, max_size=9),
    batch_devices=st.integers(1, 6),
)
def test_a_result_does_not_depend_on_the_other_devices(fleet, batch_devices):
    model, spec = _model("mlp"), TrainingSpec(batch_size=8, **SGD)
    size = model.split.global_part.size
    devices = [_device(model, k, samples=n, num_pruned=size * k // 4) for k, n in fleet]
    results = _batched(model, spec, devices, batch_devices)
    for (k, n), result in zip(fleet, results, strict=True):
        _assert_equal(result, _alone(k, n, size * k // 4), spec)


@pytest.mark.parametrize("algorithm", ["alternating", "simultaneous"])
@pytest.mark.parametrize("name", ["mlp", "lenet5"])
def test_a_device_that_diverges_harms_no_other(name, algorithm):
    model = _model(name)
    spec = TrainingSpec(algorithm=algorithm, batch_size=8, **SGD)
    size = model.split.global_part.size
    pruned = (size // 2, 0, size)
    healthy = [_device(model, k, samples=9, num_pruned=pruned[k % 3]) for k in range(9)]
    ill = [
        replace(one, personal=np.full_like(one.personal, np.nan if k % 2 else 3e38)) if k >= 6 else one
        for k, one in enumerate(healthy)
    ]
    before, after = _batched(model, spec, healthy), _batched(model, spec, ill)
    expected = _one_by_one(model, spec, ill)
    for mine, well in zip(after[:6], before[:6], strict=True):
        for part in ("personal", "global_part", "mask"):
            np.testing.assert_array_equal(getattr(mine, part), getattr(well, part))
    for mine, theirs in zip(after[6:], expected[6:], strict=True):
        assert isinstance(mine, DivergedError)
        assert isinstance(theirs, DivergedError)


def test_an_impossible_order_is_refused_for_its_device_alone():
    model, spec = _model("mlp"), TrainingSpec(batch_size=8, **SGD)
    size = model.split.global_part.size
    good = _device(model, 0, samples=20, num_pruned=7)
    bad = [
        replace(good, num_pruned=size + 1),
        replace(good, samples=np.zeros(0, np.int64)),
        replace(good, mask=np.ones(size, dtype=np.bool_)),
        replace(good, personal=good.personal[1:]),
    ]
    results = _batched(model, spec, [*bad, good])
    assert all(type(result) is ValueError for result in results[:-1])
    _assert_equal(results[-1], _one_by_one(model, spec, [good])[0], spec)


def test_inputs_are_not_changed_and_a_second_round_does_not_touch_the_first():
    model, spec = _model("mlp"), TrainingSpec(batch_size=8, **ADAM)
    device = _device(model, 0, samples=20, num_pruned=100)
    personal, start = np.array(device.personal), _start(model)
    training = _training(model, spec, 2)
    weights = [parameter.detach().clone() for parameter in model.module.parameters()]
    first: Any
    (first,) = [chunk[0] for chunk in training.rounds(start, [device])]
    kept = first.global_part.copy(), first.personal.copy()
    list(training.rounds(start * 2, [device, device]))
    np.testing.assert_array_equal(first.global_part, kept[0])
    np.testing.assert_array_equal(first.personal, kept[1])
    np.testing.assert_array_equal(device.personal, personal)
    np.testing.assert_array_equal(start, _start(model))
    for parameter, before in zip(model.module.parameters(), weights, strict=True):
        assert torch.equal(parameter, before)
    assert math.isfinite(first.global_loss)


def test_invalid_arguments_are_named():
    model, spec = _model("mlp"), TrainingSpec()
    with pytest.raises(ValueError, match="batch_devices = 0"):
        _training(model, spec, 0)
    training = _training(model, spec, 1)
    with pytest.raises(ValueError, match="broadcast"):
        list(training.rounds(np.zeros(3, np.float32), []))
    odd = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    with pytest.raises(ValueError, match="Tanh"):
        StackedNetwork(odd, split_parameters(odd, []))
