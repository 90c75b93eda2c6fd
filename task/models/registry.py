"""The networks by name, and what their builders share."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from registry import Registry

Shape = tuple[int, ...]
ModelBuilder = Callable[..., nn.Module]
MODELS: Registry[ModelBuilder] = Registry("model", key="model.name", given=("num_classes", "sample_shape"))


def positive(name: str, value: int) -> int:
    """Return a whole number of at least 1.

    Raises:
        ValueError: if it is smaller.
    """
    if value < 1:
        raise ValueError(f"model option {name} = {value}; it must be at least 1")
    return value
