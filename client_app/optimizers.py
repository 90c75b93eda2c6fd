"""Optimisers of local training: SGD, Adam and AdamW on one flat vector, or any of `torch.optim`.

The three do without what `torch.optim` does around a step (parameter groups, hooks, profiler ranges), which
on small networks takes longer than the step itself. The arithmetic is `torch.optim`'s, bit for bit. All
others are taken as they are (``training.optimizer=torch.optim:RMSprop``), as long as they work entry by
entry: one matrix holds the weights of many devices, and masks are applied after each step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol

import torch

from protocol.training import TrainingSpec
from registry import Registry, parameters_of

_BETAS, _EPS = (0.9, 0.999), 1e-8


class Optimizer(Protocol):
    """Updates a vector in place from its `.grad`."""

    @property
    def gradient(self) -> torch.Tensor:
        """The gradient that the next step takes."""
        ...

    def step(self) -> None:
        """Take one step."""
        ...


OPTIMIZERS: Registry[Callable[..., Optimizer]] = Registry("optimiser", key="training.optimizer")


def optimizer(vector: torch.Tensor, learning_rate: float, spec: TrainingSpec) -> Optimizer:
    """Return the optimiser that `spec` names, freshly started, for `vector`.

    Args:
        vector: weights of one device (N,) or of many (D, N).
        learning_rate: its step size.
        spec: name and options; momentum and weight decay where they are not zero.

    Raises:
        ValueError: if a name or option is not valid.
    """
    options = spec.optimizer_options
    if spec.optimizer in OPTIMIZERS:
        return OPTIMIZERS.select(spec.optimizer, options)(vector, learning_rate, spec, **options)
    made = _torch_class(spec.optimizer)
    further = {"momentum": spec.momentum, "weight_decay": spec.weight_decay}
    used = {name: value for name, value in further.items() if value}
    _check_options(spec.optimizer, made, {**used, **options})
    return _Wrapped(vector, made([vector], lr=learning_rate, **used, **options))


class _Flat:
    """An optimiser of one vector."""

    def __init__(self, vector: torch.Tensor) -> None:
        self._vector = vector

    @property
    def gradient(self) -> torch.Tensor:
        """The gradient that the next step takes."""
        gradient = self._vector.grad
        assert gradient is not None
        return gradient


@OPTIMIZERS.register("sgd")
class Sgd(_Flat):
    """Gradient steps with momentum and L2 penalty, as `torch.optim.SGD`."""

    def __init__(
        self, vector: torch.Tensor, learning_rate: float, spec: TrainingSpec, *, nesterov: bool = False
    ) -> None:
        if nesterov and not spec.momentum:
            raise ValueError("training.optimizer_options.nesterov = True needs training.momentum above 0")
        super().__init__(vector)
        self._rate, self._nesterov = learning_rate, nesterov
        self._momentum, self._decay = spec.momentum, spec.weight_decay
        self._velocity: torch.Tensor | None = None

    def step(self) -> None:
        """Take one step."""
        gradient = self.gradient
        if self._decay:
            gradient = gradient.add(self._vector, alpha=self._decay)
        if self._momentum:
            if self._velocity is None:
                self._velocity = gradient.clone()
            else:
                self._velocity.mul_(self._momentum).add_(gradient)
            gradient = (
                gradient.add(self._velocity, alpha=self._momentum) if self._nesterov else self._velocity
            )
        self._vector.add_(gradient, alpha=-self._rate)


@OPTIMIZERS.register("adam")
class Adam(_Flat):
    """Adam with L2 penalty, as `torch.optim.Adam(fused=True)`, whose kernel it calls."""

    _kernel = staticmethod(torch._fused_adam_)

    def __init__(
        self,
        vector: torch.Tensor,
        learning_rate: float,
        spec: TrainingSpec,
        *,
        betas: Sequence[float] = _BETAS,
        eps: float = _EPS,
    ) -> None:
        if len(betas) != 2 or not all(0.0 <= beta < 1.0 for beta in betas):
            raise ValueError(
                f"training.optimizer_options.betas = {betas}; two numbers in [0, 1) are expected"
            )
        if not eps > 0.0:
            raise ValueError(f"training.optimizer_options.eps = {eps}; it must be positive")
        super().__init__(vector)
        self._rate, self._decay, self._betas, self._eps = learning_rate, spec.weight_decay, betas, eps
        self._mean, self._square = torch.zeros_like(vector), torch.zeros_like(vector)
        self._steps = torch.zeros((), device=vector.device)

    def step(self) -> None:
        """Take one step."""
        self._steps += 1
        self._kernel(
            [self._vector],
            [self.gradient],
            [self._mean],
            [self._square],
            [],
            [self._steps],
            amsgrad=False,
            lr=self._rate,  # type: ignore[arg-type]
            beta1=self._betas[0],
            beta2=self._betas[1],
            weight_decay=self._decay,
            eps=self._eps,
            maximize=False,
        )


@OPTIMIZERS.register("adamw")
class AdamW(Adam):
    """Adam with decoupled weight decay, as `torch.optim.AdamW(fused=True)` (Loshchilov and Hutter 2019)."""

    _kernel = staticmethod(torch._fused_adamw_)


class _Wrapped(_Flat):
    """An optimiser of `torch.optim`, or of the user's own, on one vector."""

    def __init__(self, vector: torch.Tensor, inner: torch.optim.Optimizer) -> None:
        super().__init__(vector)
        self._inner = inner

    def step(self) -> None:
        """Take one step."""
        self._inner.step()


@lru_cache(maxsize=8)
def _torch_class(name: str) -> Callable[..., torch.optim.Optimizer]:
    """Return the class called ``package.module:Class``.

    Raises:
        ValueError: if it is no optimiser.
    """
    found: Any = OPTIMIZERS.find(name)
    if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)):
        raise ValueError(f"training.optimizer = {name} is no torch.optim.Optimizer")
    made: Callable[..., torch.optim.Optimizer] = found
    return made


def _check_options(name: str, made: Callable[..., torch.optim.Optimizer], options: Mapping[str, Any]) -> None:
    valid = [one.name for one in parameters_of(made) if one.name not in ("params", "lr")]
    for option in options:
        if option not in valid:
            group = "" if option in ("momentum", "weight_decay") else "optimizer_options."
            raise ValueError(
                f"training.{group}{option} is unknown to training.optimizer = {name}; "
                f"valid: {', '.join(valid)}"
            )


def check_optimizer(spec: TrainingSpec) -> None:
    """Take three steps with the optimiser, on six weights together and on each alone.

    Raises:
        ValueError: if it cannot be made, or does not work entry by entry: then masks would not hold, and a
            device would depend on the others of its chunk.
    """
    start = torch.tensor([[0.5, -1.0, 2.0], [0.1, 0.0, -0.3]])
    gradients = [torch.tensor([[0.1, -0.2, 0.3], [0.0, 0.4, -5.0]]) * factor for factor in (1.0, -0.5, 2.0)]

    def moved(rows: slice, columns: slice) -> torch.Tensor:
        vector = start[rows, columns].clone()
        vector.grad = torch.zeros_like(vector)
        made = optimizer(vector, 0.1, spec)
        for gradient in gradients:
            vector.grad.copy_(gradient[rows, columns])
            made.step()
        return vector

    try:
        together = moved(slice(None), slice(None))
        alone = torch.cat(
            [torch.cat([moved(slice(i, i + 1), slice(j, j + 1)) for j in range(3)], 1) for i in range(2)]
        )
    except ValueError:
        raise
    except Exception as error:
        cause = f"{type(error).__name__}: {error}"
        raise ValueError(f"training.optimizer = {spec.optimizer} fails on a first trial: {cause}") from error
    if not torch.allclose(together, alone, rtol=1e-5, atol=1e-6):
        raise ValueError(
            f"training.optimizer = {spec.optimizer} does not work entry by entry: pruned weights would move, "
            "and devices that train together would depend on each other"
        )


def clip(gradients: Sequence[torch.Tensor], limit: float, kept: torch.Tensor | None) -> None:
    """Scale each device's gradients down to a joint Euclidean norm of `limit`, as `clip_grad_norm_`.

    Args:
        gradients: (D, n) of each part that the step moves, the global part first; changed in place.
        limit: the largest norm.
        kept: (P, N_u), 1 where the first P devices keep a weight of the global part; the others' gradients
            move nothing and do not count.
    """
    if kept is not None:
        gradients[0][: len(kept)].mul_(kept)
    norms = torch.stack([gradient.square().sum(1) for gradient in gradients]).sum(0).sqrt()
    factors = (limit / (norms + 1e-6)).clamp(max=1.0).unsqueeze(1)
    for gradient in gradients:
        gradient.mul_(factors)
