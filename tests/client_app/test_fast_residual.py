"""The residual networks in rows of channels are the plain ones: values, gradients and running statistics."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional

from client_app.fast.residual import accelerate
from client_app.network import ModuleNetwork
from task.models.residual import Norm, ResidualBlock, resnet8, resnet20
from task.split import split_parameters

NORMS: list[Norm] = ["group", "batch"]


def _pair(norm, make=resnet8, shape=(3, 16, 16)):
    torch.manual_seed(1)
    plain = make(10, shape, norm=norm)
    same = copy.deepcopy(plain)
    fast = nn.Sequential(*accelerate(list(same)))
    assert len(fast) == len(plain)
    assert not any(isinstance(one, ResidualBlock) for layer in fast[3:6] for one in layer.children())
    return plain, same, fast


def _batch(number=6, shape=(3, 16, 16), seed=2):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(number, *shape, generator=rng), torch.randint(0, 10, (number,), generator=rng)


def _gradients(model, forward, images, labels):
    model.zero_grad(set_to_none=True)
    loss = functional.cross_entropy(forward(images), labels)
    loss.backward()
    return loss, {name: one.grad for name, one in model.named_parameters() if one.requires_grad}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    ("make", "shape"), [(resnet8, (3, 16, 16)), (resnet8, (1, 28, 28)), (resnet20, (3, 8, 8))]
)
def test_values_gradients_and_statistics_are_those_of_the_plain_layers(norm, make, shape):
    plain, same, fast = _pair(norm, make, shape)
    images, labels = _batch(shape=shape)
    images.requires_grad_()
    for _ in range(2):
        expected, wanted = _gradients(plain, plain, images, labels)
        of_images, images.grad = images.grad, None
        found, got = _gradients(same, fast, images, labels)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(images.grad, of_images, rtol=1e-3, atol=1e-6)
        images.grad = None
        assert got.keys() == wanted.keys()
        for name, gradient in got.items():
            torch.testing.assert_close(gradient, wanted[name], rtol=1e-3, atol=3e-6, msg=name)
    torch.testing.assert_close(dict(same.named_buffers()), dict(plain.named_buffers()))
    plain.eval(), fast.eval()
    with torch.no_grad():
        torch.testing.assert_close(fast(images), plain(images))


@pytest.mark.parametrize("norm", NORMS)
def test_only_the_gradients_that_are_asked_for(norm):
    plain, same, fast = _pair(norm)
    names = [name for name, _ in plain.named_parameters()]
    for number, learned in enumerate(itertools.chain(names[::4], ["layer2", "fc", "conv1"])):
        for model in (plain, same):
            for name, one in model.named_parameters():
                one.requires_grad_(name.startswith(learned))
        images, labels = _batch(seed=number)
        _, wanted = _gradients(plain, plain, images, labels)
        _, got = _gradients(same, fast, images, labels)
        assert got.keys() == wanted.keys()
        for name, gradient in got.items():
            torch.testing.assert_close(gradient, wanted[name], rtol=1e-3, atol=3e-6, msg=name)


@pytest.mark.parametrize("norm", NORMS)
def test_the_network_of_a_device_uses_it_unless_told_otherwise(norm):
    made = {}
    for kernels in ("fast", "plain"):
        torch.manual_seed(3)
        model = resnet8(10, (3, 16, 16), norm=norm)
        network = made[kernels] = ModuleNetwork(model, split_parameters(model, ["last:1"]), kernels=kernels)
        network.use(1)
        network.train_only(personal=True, global_part=True)
    images, labels = _batch()
    losses = {kernels: one.backward(images[None], labels[None]) for kernels, one in made.items()}
    torch.testing.assert_close(losses["fast"], losses["plain"])
    fast, plain = made["fast"], made["plain"]
    torch.testing.assert_close(fast.global_part.grad, plain.global_part.grad, rtol=1e-3, atol=3e-6)
    assert not all(
        type(one) is type(two)
        for one, two in zip(fast.forward.children(), plain.forward.children(), strict=True)
    )
    # One picture has no variance: the layers themselves take it.
    losses = {kernels: one.backward(images[None, :1], labels[None, :1]) for kernels, one in made.items()}
    torch.testing.assert_close(losses["fast"], losses["plain"])


def test_where_a_batch_is_normalised_its_first_layers_are_not_taken_for_constant():
    found = {}
    for norm in NORMS:
        model = resnet8(10, (3, 16, 16), norm=norm)
        network = ModuleNetwork(model, split_parameters(model, ["last:1"]))
        network.train_only(personal=True)
        found[norm] = network.frozen_layers()
    assert found == {"group": 8, "batch": 0}


def test_what_is_not_known_stays_as_it_is():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten())
    assert accelerate(list(net)) == list(net)
    strange = resnet8(10, (3, 16, 16), norm="batch")
    blocks = [one for one in strange.modules() if isinstance(one, ResidualBlock)]
    blocks[0].bn2 = nn.BatchNorm2d(16, momentum=None)
    strange.bn1 = nn.BatchNorm2d(16, affine=False)
    blocks[1].conv2 = nn.Conv2d(32, 32, 5, padding=2, bias=False)
    blocks[2].conv1 = nn.Conv2d(32, 64, 3, stride=1, padding=1, bias=False)
    found = accelerate(list(strange))
    assert found[:3] == list(strange[:3])
    types = [type(one) for layer in found[3:6] for one in layer.children()]
    assert types == [ResidualBlock] * 3
    plain = resnet8(10, (3, 16, 16), norm="group")
    assert accelerate(list(plain), torch.bfloat16) == list(plain)
