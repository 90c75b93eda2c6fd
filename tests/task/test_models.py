from typing import Any

import pytest
import torch
from torch import nn

from task.models import build_model
from task.split import split_parameters


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("name", "options", "personal", "sizes"),
    [
        ("cnn", {}, ["conv*"], (52_096, 402_826)),
        ("cnn", {"kernel_size": 3}, ["conv*"], (18_816, 402_826)),
        ("cnn", {"norm": "batch"}, ["batchnorm"], (2 * 32 + 2 * 64, 454_922)),
        ("cnn", {}, [], (0, 454_922)),
        ("cnn", {"kernel_size": 3}, [], (0, 421_642)),
        ("lenet5", {}, [], (0, 61_706)),
        ("mlp", {}, [], (0, 19_885)),
    ],
)
def test_parameter_counts(name, options, personal, sizes):
    split = split_parameters(build_model(name, options=options, generator=_generator()), personal)
    assert (split.personal.size, split.global_part.size) == sizes


def test_layer_shapes_of_the_papers_network():
    shapes = {}
    model = build_model("cnn", generator=_generator())
    for name, layer in model.named_children():
        layer.register_forward_hook(lambda _m, _i, out, name=name: shapes.update({name: tuple(out.shape)}))
    model(torch.zeros(3, 1, 28, 28))
    assert shapes["conv1"] == (3, 32, 28, 28)
    assert shapes["pool1"] == (3, 32, 14, 14)
    assert shapes["conv2"] == (3, 64, 14, 14)
    assert shapes["pool2"] == (3, 64, 7, 7)
    assert shapes["flatten"] == (3, 3136)
    assert shapes["fc1"] == (3, 128)
    assert shapes["fc2"] == (3, 10)
    counts = {name: sum(p.numel() for p in layer.parameters()) for name, layer in model.named_children()}
    assert [counts[n] for n in ("conv1", "conv2", "fc1", "fc2")] == [832, 51_264, 401_536, 1_290]


def test_fast_layer_order_equals_the_textbook_one():
    """ReLU before pooling, contiguous layout: the same function and the same gradients."""
    model = build_model("cnn", generator=_generator())
    textbook = nn.Sequential(
        nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(3136, 128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip
    for mine, theirs in zip(model.parameters(), textbook.parameters(), strict=True):
        theirs.data.copy_(mine.data)
    images = torch.randn(8, 1, 28, 28, generator=_generator(1))
    labels = torch.arange(8)
    for net in (model, textbook):
        nn.functional.cross_entropy(net(images), labels).backward()
    torch.testing.assert_close(model(images), textbook(images))
    for mine, theirs in zip(model.parameters(), textbook.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", ["cnn", "lenet5", "mlp"])
def test_initial_weights_are_pytorchs_but_from_the_generator(name):
    state = torch.random.get_rng_state()
    first = build_model(name, generator=_generator(7))
    assert torch.equal(torch.random.get_rng_state(), state)
    layers: list[Any] = [m for m in first.children() if isinstance(m, nn.Conv2d | nn.Linear)]
    with torch.random.fork_rng():
        torch.manual_seed(7)
        for layer in layers:
            layer_copy = (
                nn.Linear(layer.in_features, layer.out_features)
                if isinstance(layer, nn.Linear)
                else nn.Conv2d(layer.in_channels, layer.out_channels, layer.kernel_size)
            )
            assert torch.equal(layer.weight, layer_copy.weight)
            assert torch.equal(layer.bias, layer_copy.bias)


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("resnet", {}, "cnn, lenet5, lstm, mlp, resnet20, resnet8, transformer"),
        ("cnn", {"kernel": 3}, "kernel_size"),
        ("cnn", {"kernel_size": 4}, "kernel_size = 4"),
        ("mlp", {"hidden": 0}, "hidden = 0"),
    ],
)
def test_wrong_names_and_values_are_named_with_the_choices(name, options, text):
    with pytest.raises(ValueError, match=text):
        build_model(name, options=options, generator=_generator())
