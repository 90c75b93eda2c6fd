from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from client_app.network import ModuleNetwork
from task.models import build_model
from task.split import split_parameters


def _flat(name="lenet5", personal=("conv*",), kernels="plain") -> ModuleNetwork:
    module = build_model(name, generator=torch.Generator().manual_seed(0))
    return ModuleNetwork(module, split_parameters(module, personal), kernels=kernels)


def _batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(6, 1, 28, 28, generator=generator), torch.arange(6)


def test_vectors_and_module_are_one_memory():
    model = _flat()
    rng = np.random.default_rng(0)
    vector = rng.standard_normal(model.split.global_part.size).astype(np.float32)
    before = model.personal.clone()
    model.load(global_part=vector)
    parameters = dict(model.module.named_parameters())
    for name, place in model.split.global_part.slices().items():
        np.testing.assert_array_equal(parameters[name].detach().numpy().ravel(), vector[place])
    assert torch.equal(model.personal, before)


@pytest.mark.parametrize("name", ["lenet5", "cnn"])
def test_flat_gradients_equal_autograds(name):
    images, labels = _batch()
    model = _flat(name)
    plain = build_model(name, generator=torch.Generator().manual_seed(0))
    nn.functional.cross_entropy(plain(images), labels).backward()
    model.train_only(personal=True, global_part=True)
    for _ in range(2):  # a second pass does not add up
        model.backward(images[None], labels[None])
    for part, vector in (
        (model.split.personal, model.personal),
        (model.split.global_part, model.global_part),
    ):
        expected = torch.cat([dict(plain.named_parameters())[name].grad.ravel() for name in part.names])
        assert torch.equal(vector.grad[0], expected)


@pytest.mark.parametrize("trained", ["personal", "global_part"])
def test_a_frozen_part_gets_no_gradient_and_no_graph(trained):
    images, labels = _batch()
    model = _flat()
    model.train_only(**{trained: True})
    model.backward(images[None], labels[None])
    frozen = model.global_part if trained == "personal" else model.personal
    active = model.personal if trained == "personal" else model.global_part
    assert not frozen.grad.any()
    assert active.grad.any()
    module: Any = model.module
    features = module[:6](images)
    assert features.requires_grad == (trained == "personal")


@pytest.mark.parametrize("kernels", ["fast", "plain"])
def test_frozen_layers_give_the_same_gradients(kernels):
    images, labels = _batch()
    model = _flat("cnn", kernels=kernels)
    model.train_only(personal=True)
    assert model.frozen_layers() == 0
    model.train_only(global_part=True)
    skip = model.frozen_layers()
    loss = model.backward(images[None], labels[None])
    whole = model.global_part.grad.clone()
    features = model.features(images[None], skip)
    assert features.shape[:2] == (1, 6)
    assert torch.equal(model.backward(features, labels[None], skip=skip), loss)
    assert torch.equal(model.global_part.grad, whole)


def test_fast_kernels_compute_what_the_plain_layers_do():
    images, labels = _batch()
    losses, gradients = [], []
    for kernels in ("fast", "plain"):
        model = _flat("cnn", kernels=kernels)
        model.train_only(personal=True, global_part=True)
        losses.append(model.backward(images[None], labels[None]))
        gradients.append((model.personal.grad, model.global_part.grad))
        forward: Any = model.forward
        known = any("FastConvolutions" in type(layer).__name__ for layer in forward)
        assert known == (kernels == "fast")
    torch.testing.assert_close(*losses)
    for fast, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-3, atol=1e-6)


def test_samples_without_weight_count_for_nothing():
    images, labels = _batch()
    model = _flat("mlp", ("fc2*",))
    model.train_only(personal=True, global_part=True)
    loss = model.backward(images[None, :4], labels[None, :4])
    gradient = model.global_part.grad.clone()
    shares = torch.tensor([[0.25] * 4 + [0.0] * 2])
    torch.testing.assert_close(model.backward(images[None], labels[None], shares), loss)
    torch.testing.assert_close(model.global_part.grad, gradient)


class _Residual(nn.Module):
    """A network that is no chain of layers."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(784, 8)
        self.head = nn.Linear(8, 10)

    def forward(self, images):
        hidden = self.stem(images.flatten(1))
        return self.head(hidden + hidden.tanh())


def test_any_module_trains_in_plain_torch():
    images, labels = _batch()
    module = _Residual()
    model = ModuleNetwork(module, split_parameters(module, ["head*"]))
    model.train_only(global_part=True)
    loss = model.backward(images[None], labels[None])
    expected = nn.functional.cross_entropy(module(images), labels)
    assert torch.equal(loss[0], expected)
    found = torch.autograd.grad(expected, list(module.stem.parameters()))
    assert torch.equal(model.global_part.grad[0], torch.cat([one.flatten() for one in found]))


def test_models_that_do_not_fit_are_refused():
    module = build_model("mlp", generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="split"):
        ModuleNetwork(module, _flat().split)
    with pytest.raises(ValueError, match=r"global_part has shape \(3,\)"):
        _flat().load(global_part=np.zeros(3, dtype=np.float32))
