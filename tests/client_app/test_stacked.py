"""Gradients of the stacked network against autograd on one copy after the other."""

import pytest
import torch
from torch import nn

from client_app.fast.stacked import StackedNetwork
from task.models import build_model
from task.split import split_parameters

DEVICES, BATCH = 3, 4


def _odd() -> nn.Sequential:
    """Strides, dilation, overlapping pools, no biases, a single channel in the middle."""
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, stride=2, padding=1, bias=False),
        nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True),
        nn.Conv2d(3, 1, 3, padding=(1, 0), dilation=(1, 2)),
        nn.ReLU(),
        nn.Conv2d(1, 2, (2, 1), stride=(2, 1), dilation=(2, 1), padding=(1, 0)),
        nn.Flatten(),
        nn.Linear(32, 6, bias=False),
        nn.ReLU(),
        nn.Linear(6, 5),
    )


def _models() -> list:
    generator = torch.Generator().manual_seed(0)
    named = [
        (name, build_model(name, num_classes=5, options=options, generator=generator))
        for name, options in (("cnn", {"kernel_size": 3, "hidden": 8}), ("lenet5", {}), ("mlp", {}))
    ]
    return [pytest.param(model, id=name) for name, model in [*named, ("odd", _odd())]]


@pytest.mark.parametrize("trained", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("module", _models())
def test_losses_and_gradients_equal_autograd(module, trained):
    split = split_parameters(module, [next(name for name, _ in module.named_parameters())])
    stacked = StackedNetwork(module, split)
    stacked.use(DEVICES)
    generator = torch.Generator().manual_seed(1)
    for weights in (stacked.personal, stacked.global_part):
        weights.copy_(0.1 * torch.randn(weights.shape, generator=generator))
        weights.grad.fill_(7.0)
    images = torch.randn(DEVICES, BATCH, 1, 28, 28, generator=generator)
    labels = torch.randint(0, 5, (DEVICES, BATCH), generator=generator)
    stacked.train_only(personal=trained[0], global_part=trained[1])
    losses = stacked.backward(images, labels, torch.full((DEVICES, BATCH), 1 / BATCH))
    for device in range(DEVICES):
        parts = ((split.personal, stacked.personal), (split.global_part, stacked.global_part))
        parameters = dict(module.named_parameters())
        for layout, weights in parts:
            for name, place in layout.slices().items():
                parameters[name].data = weights[device, place].view(parameters[name].shape).clone()
        loss = nn.functional.cross_entropy(module(images[device]), labels[device])
        torch.testing.assert_close(losses[device], loss.detach())
        for (layout, weights), chosen in zip(parts, trained, strict=True):
            if not chosen:  # nothing is computed that was not asked for
                assert (weights.grad == 7.0).all()
                continue
            found = torch.autograd.grad(loss, [parameters[n] for n in layout.names], retain_graph=True)
            expected = torch.cat([gradient.flatten() for gradient in found])
            torch.testing.assert_close(weights.grad[device], expected, atol=1e-6, rtol=1e-4)


def test_skipped_layers_give_the_same_gradients():
    module = build_model("lenet5", generator=torch.Generator().manual_seed(0))
    stacked = StackedNetwork(module, split_parameters(module, ["conv*"]))
    stacked.use(2)
    generator = torch.Generator().manual_seed(1)
    for weights in (stacked.personal, stacked.global_part):
        weights.copy_(0.1 * torch.randn(weights.shape, generator=generator))
    images = torch.randn(2, 3, 1, 28, 28, generator=generator)
    labels = torch.tensor([[1, 2, 3], [4, 5, 6]])
    stacked.train_only(personal=True)
    assert stacked.frozen_layers() == 0
    stacked.train_only(global_part=True)
    shares = torch.full((2, 3), 1 / 3)
    losses, whole = stacked.backward(images, labels, shares), stacked.global_part.grad.clone()
    skip = stacked.frozen_layers()
    features = stacked.features(images, skip)
    assert features.shape[:2] == (2, 3)
    torch.testing.assert_close(stacked.backward(features, labels, shares, skip=skip), losses)
    torch.testing.assert_close(stacked.global_part.grad, whole)


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm1d(4),
        nn.Conv2d(2, 2, 3, groups=2),
        nn.Conv2d(1, 2, 3, padding="same"),
        nn.MaxPool2d(2, return_indices=True),
        nn.Flatten(0),
    ],
)
def test_unknown_layers_are_named(layer):
    module = nn.Sequential(nn.Linear(4, 4), layer)
    with pytest.raises(ValueError, match=type(layer).__name__):
        StackedNetwork(module, split_parameters(module, []))
    with pytest.raises(ValueError, match=r"nn\.Sequential"):
        StackedNetwork(nn.Linear(4, 4), split_parameters(nn.Linear(4, 4), []))
