import numpy as np
import pytest
import torch
from torch import nn

from client_app.flat_model import FlatModel
from task.models import build_model
from task.split import split_parameters


def _flat(name="lenet5", personal=("conv*",)) -> FlatModel:
    module = build_model(name, generator=torch.Generator().manual_seed(0))
    return FlatModel(module, split_parameters(module, personal))


def _batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(6, 1, 28, 28, generator=generator), torch.arange(6)


def test_vectors_and_module_are_one_memory():
    model = _flat()
    rng = np.random.default_rng(0)
    vector = rng.standard_normal(model.split.shared.size).astype(np.float32)
    before = model.personal.clone()
    model.load(shared=vector)
    parameters = dict(model.module.named_parameters())
    for name, place in model.split.shared.slices().items():
        np.testing.assert_array_equal(parameters[name].detach().numpy().ravel(), vector[place])
    assert torch.equal(model.personal, before)


@pytest.mark.parametrize("name", ["lenet5", "cnn"])
def test_flat_gradients_equal_autograds(name):
    images, labels = _batch()
    model = _flat(name)
    plain = build_model(name, generator=torch.Generator().manual_seed(0))
    nn.functional.cross_entropy(plain(images), labels).backward()
    model.train_only(personal=True, shared=True)
    for _ in range(2):  # a second pass does not add up
        model.backward(model.module, images, labels)
    for part, vector in ((model.split.personal, model.personal), (model.split.shared, model.shared)):
        expected = torch.cat([dict(plain.named_parameters())[name].grad.ravel() for name in part.names])
        assert torch.equal(vector.grad, expected)


@pytest.mark.parametrize("trained", ["personal", "shared"])
def test_a_frozen_part_gets_no_gradient_and_no_graph(trained):
    images, labels = _batch()
    model = _flat()
    model.train_only(**{trained: True})
    model.backward(model.module, images, labels)
    frozen = model.shared if trained == "personal" else model.personal
    active = model.personal if trained == "personal" else model.shared
    assert not frozen.grad.any()
    assert active.grad.any()
    features = model.module[:6](images)
    assert features.requires_grad == (trained == "personal")


def test_frozen_prefix_composes_to_the_network():
    images, _ = _batch()
    model = _flat()
    model.train_only(personal=True)
    assert model.frozen_prefix() is None
    model.train_only(shared=True)
    prefix, rest = model.frozen_prefix()
    assert [name for name, _ in model.module.named_children()][len(prefix)] == "fc1"
    assert torch.equal(rest(prefix(images)), model.module(images))


def test_models_that_do_not_fit_are_refused():
    with_norm = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    with pytest.raises(ValueError, match="GroupNorm"):
        FlatModel(with_norm, split_parameters(with_norm, []))
    module = build_model("mlp", generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="split"):
        FlatModel(module, _flat().split)
    with pytest.raises(ValueError, match=r"shared has shape \(3,\)"):
        _flat().load(shared=np.zeros(3, dtype=np.float32))
