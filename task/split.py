"""Which parameters stay on the device (personal) and which are trained together (global)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import accumulate
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from task.layers import SELECTORS, select


@dataclass(frozen=True)
class Layout:
    """How named tensors lie in one flat vector: entry i fills `offsets[i] : offsets[i] + numel(shapes[i])`.

    Attributes:
        names: parameter names, in the model's order.
        shapes: shape of each parameter.
        offsets: first position of each parameter in the vector.
        size: length of the vector.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    offsets: tuple[int, ...]
    size: int

    @classmethod
    def of(cls, parameters: Iterable[tuple[str, Sequence[int]]]) -> Layout:
        """Lay out (name, shape) pairs one after the other."""
        pairs = [(name, tuple(int(n) for n in shape)) for name, shape in parameters]
        ends = list(accumulate((math.prod(shape) for _, shape in pairs), initial=0))
        return cls(
            names=tuple(name for name, _ in pairs),
            shapes=tuple(shape for _, shape in pairs),
            offsets=tuple(ends[:-1]),
            size=ends[-1],
        )

    def slices(self) -> dict[str, slice]:
        """Return where each parameter lies in the vector."""
        return {
            name: slice(offset, offset + math.prod(shape))
            for name, shape, offset in zip(self.names, self.shapes, self.offsets, strict=True)
        }


Buffers = Literal["personal", "shared"]


@dataclass(frozen=True)
class Split:
    """The personal part v (never uploaded, never pruned) and the global part u (pruned, uploaded).

    Attributes:
        personal, global_part: the parameters of each.
        personal_buffers: names of the buffers that stay on the device.
        shared_buffers: of those that travel, dense, in the order of the network.
    """

    personal: Layout
    global_part: Layout
    personal_buffers: tuple[str, ...] = ()
    shared_buffers: tuple[str, ...] = ()


def persistent_buffers(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the buffers that are state of the network, as `state_dict` has them, each tensor once."""
    stored = model.state_dict(keep_vars=True)
    return {name: buffer for name, buffer in model.named_buffers() if name in stored}


def split_parameters(
    model: nn.Module, personal_patterns: Sequence[str], buffers: Buffers = "personal"
) -> Split:
    """Split the parameters and buffers of `model` by shell patterns on their names.

    Args:
        model: any module; weights that are tied appear once, under their first name.
        personal_patterns: globs such as "conv*", "fc2.*" or "*.bn*", or "last:K", "but_last:K" and
            "batchnorm" (`task.layers`); a parameter or buffer that one of them matches is personal. An empty
            list makes all parameters global.
        buffers: where the other buffers (running statistics) belong: they stay on the device (FedBN, Li et
            al. 2021), or are averaged.

    Raises:
        ValueError: if a pattern matches nothing, or nothing is left to share.
    """
    if isinstance(personal_patterns, str):
        raise ValueError(
            f"personal_patterns = {personal_patterns!r} is a string; give a list: [{personal_patterns!r}]"
        )
    named = [(name, tuple(parameter.shape)) for name, parameter in model.named_parameters()]
    stored = tuple(persistent_buffers(model))
    at_all = (*(name for name, _ in named), *stored)
    chosen: set[str] = set()
    for pattern in personal_patterns:
        try:
            matches = select(model, pattern)
        except ValueError as error:
            raise ValueError(f"personal_patterns: {error}") from error
        if matches is None:
            matches = frozenset(name for name in at_all if fnmatchcase(name, pattern))
        if not matches:
            raise ValueError(
                f"personal_patterns: {pattern!r} matches no parameter and no buffer; the model has "
                f"{', '.join(at_all)}; by layers: {SELECTORS}"
            )
        chosen |= matches

    def mine(name: str) -> bool:
        return name in chosen

    at_home = tuple(name for name in stored if buffers == "personal" or mine(name))
    split = Split(
        personal=Layout.of(pair for pair in named if mine(pair[0])),
        global_part=Layout.of(pair for pair in named if not mine(pair[0])),
        personal_buffers=at_home,
        shared_buffers=tuple(name for name in stored if name not in at_home),
    )
    if split.global_part.size == 0:
        raise ValueError(
            f"personal_patterns = {list(personal_patterns)} match every parameter: nothing is left to share"
        )
    return split


def flatten(model: nn.Module, layout: Layout) -> npt.NDArray[np.float32]:
    """Return the parameters of `layout` as one float32 vector of shape (layout.size,)."""
    parameters = dict(model.named_parameters())
    parts = [parameters[name].detach().to(torch.float32).numpy().ravel() for name in layout.names]
    return np.concatenate(parts, dtype=np.float32) if parts else np.zeros(0, np.float32)
