"""SGD and Adam on one flat vector, without what `torch.optim` does around a step.

On small networks that takes longer than the step: parameter groups, hooks, profiler ranges. The arithmetic is
`torch.optim`'s, bit for bit.
"""

from __future__ import annotations

from typing import Protocol

import torch

from protocol.training import TrainingSpec

_BETAS, _EPS = (0.9, 0.999), 1e-8


class Optimizer(Protocol):
    """Updates a vector in place from its `.grad`."""

    def step(self) -> None:
        """Take one step."""
        ...


def optimizer(vector: torch.Tensor, learning_rate: float, spec: TrainingSpec) -> Optimizer:
    """Return the optimiser that `spec` names, freshly started, for `vector`."""
    kind = Adam if spec.optimizer == "adam" else Sgd
    return kind(vector, learning_rate, spec)


class Sgd:
    """Gradient steps with momentum and L2 penalty, as `torch.optim.SGD`."""

    def __init__(self, vector: torch.Tensor, learning_rate: float, spec: TrainingSpec) -> None:
        self._vector, self._rate = vector, learning_rate
        self._momentum, self._decay = spec.momentum, spec.weight_decay
        self._velocity: torch.Tensor | None = None

    def step(self) -> None:
        """Take one step."""
        gradient = self._vector.grad
        assert gradient is not None
        if self._decay:
            gradient = gradient.add(self._vector, alpha=self._decay)
        if self._momentum:
            if self._velocity is None:
                self._velocity = gradient.clone()
            else:
                self._velocity.mul_(self._momentum).add_(gradient)
            gradient = self._velocity
        self._vector.add_(gradient, alpha=-self._rate)


class Adam:
    """Adam with L2 penalty, as `torch.optim.Adam(fused=True)`, whose kernel it calls."""

    def __init__(self, vector: torch.Tensor, learning_rate: float, spec: TrainingSpec) -> None:
        self._vector, self._rate, self._decay = vector, learning_rate, spec.weight_decay
        self._mean, self._square = torch.zeros_like(vector), torch.zeros_like(vector)
        self._steps = torch.zeros((), device=vector.device)

    def step(self) -> None:
        """Take one step."""
        gradient = self._vector.grad
        assert gradient is not None
        self._steps += 1
        torch._fused_adam_(
            [self._vector],
            [gradient],
            [self._mean],
            [self._square],
            [],
            [self._steps],
            amsgrad=False,
            lr=self._rate,
            beta1=_BETAS[0],
            beta2=_BETAS[1],
            weight_decay=self._decay,
            eps=_EPS,
            maximize=False,
        )
