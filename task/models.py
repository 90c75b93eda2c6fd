"""The networks that devices train, by name, for images of shape (batch, 1, 28, 28).

Every network is an `nn.Sequential` of named layers, so that parameter names tell the layer ("conv1.weight",
"fc2.bias": what the personal/global split goes by) and a phase that trains only the last layers can compute
what comes before them once. Two choices are made for speed and change no result beyond float32 rounding:
max-pooling stands before the ReLU (the two commute, and the ReLU then works on a quarter of the entries), and
the first feature map is laid out channels-last for the second convolution.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from registry import Registry

IMAGE_SIZE = 28

ModelBuilder = Callable[..., nn.Sequential]
MODELS: Registry[ModelBuilder] = Registry("model", key="model.name")


class ChannelsLast(nn.Module):
    """Change the memory layout of a (batch, channel, height, width) tensor to channels-last; values stay."""

    only_layout = True  # what `client_app.fast.convolutions.accelerate` may leave out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return `x`, its channels adjacent in memory."""
        return x.contiguous(memory_format=torch.channels_last)


def build_model(
    name: str,
    *,
    num_classes: int = 10,
    options: Mapping[str, Any] | None = None,
    generator: torch.Generator,
) -> nn.Sequential:
    """Build the network called `name` with weights drawn from `generator`.

    The distribution is PyTorch's default for convolutions and linear layers (uniform in
    +-1/sqrt(fan-in), biases too), drawn in parameter order; the global random state is neither read nor
    changed.

    Args:
        name: a key of `MODELS`.
        num_classes: number of outputs, >= 2.
        options: options of that network, see the keyword arguments of its builder.
        generator: CPU generator of the initial weights.

    Returns:
        The network on the CPU in float32; (batch, 1, 28, 28) in, logits (batch, num_classes) out.

    Raises:
        ValueError: if the name, an option or an option's value is not valid.
    """
    options = dict(options or {})
    builder = MODELS.select(name, options)
    if num_classes < 2:
        raise ValueError(f"num_classes = {num_classes}; at least 2 are needed")
    # The layers draw weights of their own as they are built; the global state is put back afterwards.
    # (Building on the meta device draws nothing, but imports seconds' worth of torch's compiler.)
    with torch.random.fork_rng(devices=[]):
        model = builder(num_classes, **options)
    _initialise(model, generator)
    return model


@torch.no_grad()
def _initialise(model: nn.Module, generator: torch.Generator) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            bound = 1.0 / math.sqrt(module.weight[0].numel())
            module.weight.uniform_(-bound, bound, generator=generator)
            if module.bias is not None:
                module.bias.uniform_(-bound, bound, generator=generator)
        elif any(True for _ in module.parameters(recurse=False)):
            raise TypeError(f"no initialisation is known for a {type(module).__name__} layer")


def _sequential(**layers: nn.Module) -> nn.Sequential:
    model = nn.Sequential()
    for layer_name, layer in layers.items():
        model.add_module(layer_name, layer)
    return model


def _positive(name: str, value: int) -> int:
    if value < 1:
        raise ValueError(f"model option {name} = {value}; it must be at least 1")
    return value


@MODELS.register("cnn")
def cnn(num_classes: int, *, kernel_size: int = 5, hidden: int = 128) -> nn.Sequential:
    """Two "same" convolutions (32, 64 channels) and two linear layers (Liu et al. 2024, experiments).

    The paper's feature maps (32x14x14, 64x7x7) force stride 1 and "same" padding; it does not print the
    kernel size. With 5x5 the convolutions hold 52 096 weights and the linear layers 402 826.
    """
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"model option kernel_size = {kernel_size}; 'same' padding needs an odd size >= 1")
    padding = kernel_size // 2
    return _sequential(
        conv1=nn.Conv2d(1, 32, kernel_size, padding=padding),
        layout1=ChannelsLast(),
        pool1=nn.MaxPool2d(2),
        relu1=nn.ReLU(),
        conv2=nn.Conv2d(32, 64, kernel_size, padding=padding),
        pool2=nn.MaxPool2d(2),
        relu2=nn.ReLU(),
        flatten=nn.Flatten(),
        fc1=nn.Linear(64 * (IMAGE_SIZE // 4) ** 2, _positive("hidden", hidden)),
        relu3=nn.ReLU(),
        fc2=nn.Linear(hidden, num_classes),
    )


@MODELS.register("lenet5")
def lenet5(num_classes: int) -> nn.Sequential:
    """LeNet-5 in today's form (max-pooling, ReLU; the first convolution padded by 2): 61 706 weights."""
    return _sequential(
        conv1=nn.Conv2d(1, 6, 5, padding=2),
        pool1=nn.MaxPool2d(2),
        relu1=nn.ReLU(),
        conv2=nn.Conv2d(6, 16, 5),
        pool2=nn.MaxPool2d(2),
        relu2=nn.ReLU(),
        flatten=nn.Flatten(),
        fc1=nn.Linear(16 * 5 * 5, 120),
        relu3=nn.ReLU(),
        fc2=nn.Linear(120, 84),
        relu4=nn.ReLU(),
        fc3=nn.Linear(84, num_classes),
    )


@MODELS.register("mlp")
def mlp(num_classes: int, *, hidden: int = 25) -> nn.Sequential:
    """One hidden layer; 19 885 weights with the default 25 units. Small, for studies of many devices."""
    return _sequential(
        flatten=nn.Flatten(),
        fc1=nn.Linear(IMAGE_SIZE**2, _positive("hidden", hidden)),
        relu1=nn.ReLU(),
        fc2=nn.Linear(hidden, num_classes),
    )
