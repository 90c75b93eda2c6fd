"""Which parameters stay on the device (personal) and which are trained together (global)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import accumulate

import numpy as np
import numpy.typing as npt
from torch import nn


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


@dataclass(frozen=True)
class Split:
    """The personal part v (never uploaded, never pruned) and the global part u (pruned, uploaded)."""

    personal: Layout
    global_part: Layout


def split_parameters(model: nn.Module, personal_patterns: Sequence[str]) -> Split:
    """Split the parameters of `model` by shell patterns on their names.

    Args:
        model: any module.
        personal_patterns: globs such as "conv*" or "fc2.*"; a parameter whose name matches one of them is
            personal. An empty list makes everything global.

    Raises:
        ValueError: if a pattern matches no parameter, or nothing is left to share.
    """
    if isinstance(personal_patterns, str):
        raise ValueError(
            f"personal_patterns = {personal_patterns!r} is a string; give a list: [{personal_patterns!r}]"
        )
    named = [(name, tuple(parameter.shape)) for name, parameter in model.named_parameters()]
    for pattern in personal_patterns:
        if not any(fnmatchcase(name, pattern) for name, _ in named):
            raise ValueError(
                f"personal_patterns: {pattern!r} matches no parameter; "
                f"the model has {', '.join(name for name, _ in named)}"
            )
    is_personal = [any(fnmatchcase(name, pattern) for pattern in personal_patterns) for name, _ in named]
    split = Split(
        personal=Layout.of(pair for pair, mine in zip(named, is_personal, strict=True) if mine),
        global_part=Layout.of(pair for pair, mine in zip(named, is_personal, strict=True) if not mine),
    )
    if split.global_part.size == 0:
        raise ValueError(
            f"personal_patterns = {list(personal_patterns)} match every parameter: nothing is left to share"
        )
    return split


def flatten(model: nn.Module, layout: Layout) -> npt.NDArray[np.float32]:
    """Return the parameters of `layout` as one float32 vector of shape (layout.size,)."""
    parameters = dict(model.named_parameters())
    parts = [parameters[name].detach().numpy().ravel() for name in layout.names]
    return np.concatenate(parts, dtype=np.float32) if parts else np.zeros(0, np.float32)
