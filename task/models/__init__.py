"""The networks that devices train, by name, one file per family; any other by ``package.module:callable``.

A builder is a function, or an `nn.Module` class, that is given the number of outputs first and, if it has a
parameter `sample_shape`, the shape of one sample; its keyword-only parameters are ``model.options``::

    def net(num_classes: int, *, width: int = 16) -> nn.Module: ...

Of a regression the number of outputs is that of the target's entries. ``torchvision.models:resnet18`` works
as it is.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from task.models import classic, residual, sequence
from task.models.registry import MODELS, Shape
from task.randomness import seeded

__all__ = ["MODELS", "build_model", "classic", "residual", "sequence"]


def build_model(
    name: str,
    *,
    num_classes: int = 10,
    sample_shape: Shape = (1, 28, 28),
    options: Mapping[str, Any] | None = None,
    generator: torch.Generator,
) -> nn.Module:
    """Build the network called `name` with the initial weights of a seed.

    The network initialises itself (PyTorch's layers: uniform in +-1/sqrt(fan-in), biases too) under global
    random states that are seeded by `generator` and put back afterwards: the same seed gives the same weights
    everywhere.

    Args:
        name: of `MODELS`, or ``package.module:callable``.
        num_classes: number of outputs.
        sample_shape: of one sample.
        options: options of that network, see the keyword arguments of its builder.
        generator: its initial seed decides the weights.

    Returns:
        The network on the CPU in float32, batch first.

    Raises:
        ValueError: if the name, an option or an option's value is not valid, or the builder fails.
    """
    options = dict(options or {})
    if name.startswith("torchvision."):
        from task._torchvision import torchvision_datasets

        torchvision_datasets()  # imports torchvision where its operators do not fit, too
    builder = MODELS.select(name, options)
    if num_classes < 1 or (name in MODELS and num_classes < 2 and name in ("cnn", "fedavg_cnn", "lenet5")):
        raise ValueError(f"num_classes = {num_classes}; at least 2 are needed")
    positional, keywords = _given(builder, num_classes, tuple(sample_shape))
    with seeded(generator.initial_seed()):
        try:
            model = builder(*positional, **keywords, **options)
        except Exception as error:
            if name in MODELS:
                raise
            raise ValueError(
                f"{name}({', '.join(map(str, positional))}, "
                f"{', '.join(f'{key}={value}' for key, value in {**keywords, **options}.items())}) failed: "
                f"{type(error).__name__}: {error}"
            ) from error
        if not isinstance(model, nn.Module):
            raise ValueError(f"{name} returned a {type(model).__name__}; an nn.Module is expected")
        return model.to(torch.float32)


def _given(builder: Any, num_classes: int, sample_shape: Shape) -> tuple[list[Any], dict[str, Any]]:
    """Return what a builder is given beside its options: the number of outputs, and the shape of a sample."""
    parameters = inspect.signature(builder).parameters
    by_place = [
        one.name
        for one in parameters.values()
        if one.kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    ]
    keywords: dict[str, Any] = {}
    if "sample_shape" in parameters:
        keywords["sample_shape"] = sample_shape
    takes_any = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())
    if by_place and by_place[0] != "sample_shape":
        return [num_classes], keywords
    if "num_classes" in parameters or takes_any:  # as torchvision's networks have it
        keywords["num_classes"] = num_classes
    return [], keywords
