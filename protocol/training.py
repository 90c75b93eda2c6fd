"""How a device trains: chosen in the configuration, carried out by the device."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

Importance = Literal["update", "first_order", "magnitude", "random"]
IMPORTANCES: tuple[str, ...] = get_args(Importance)


@dataclass(frozen=True)
class TrainingSpec:
    """How a device trains in a round.

    Attributes:
        algorithm: what a round consists of; a name of `client_app.algorithms`, such as "alternating"
            (personal steps, then global steps) or "simultaneous" (`global_steps` steps on both parts).
        options: parameters of the algorithm.
        personal_steps, global_steps: mini-batch steps on each part in a round.
        importance_steps: trial steps that rank the weights, always of plain SGD: one step of Adam moves
            every weight equally far.
        personal_epochs, global_epochs: passes over the device's data instead of the number of steps.
        personal_learning_rate, global_learning_rate: step sizes.
        batch_size: images per step; the whole data set of a device that has fewer.
        optimizer: "sgd" or "adam"; starts afresh in every phase of every round.
        momentum: of SGD.
        weight_decay: L2 penalty (not applied in importance steps).
        importance: "update" (eq. (20)), "first_order" ((g u)^2), "magnitude" or "random".
        prune_bias: whether biases compete with the weights; else they go last.
        precision: "float32", or "bfloat16" for the products inside the layers where the processor is faster
            with it (weights, gradients, sums and optimisers stay float32).
        kernels: "fast": layers that `client_app.fast` knows are computed with it; "plain": by torch alone.
            Equal within float32 rounding.

    Raises:
        ValueError: if a value is not valid.
    """

    algorithm: str = "alternating"
    options: Mapping[str, Any] = field(default_factory=dict)
    personal_steps: int = 2
    global_steps: int = 2
    importance_steps: int = 1
    personal_epochs: int | None = None
    global_epochs: int | None = None
    personal_learning_rate: float = 1e-3
    global_learning_rate: float = 1e-3
    batch_size: int = 32
    optimizer: Literal["sgd", "adam"] = "adam"
    momentum: float = 0.0
    weight_decay: float = 0.0
    importance: Importance = "update"
    prune_bias: bool = True
    precision: Literal["float32", "bfloat16"] = "float32"
    kernels: Literal["fast", "plain"] = "fast"

    def __post_init__(self) -> None:
        for name, choices in (
            ("optimizer", ("sgd", "adam")),
            ("importance", IMPORTANCES),
            ("precision", ("float32", "bfloat16")),
            ("kernels", ("fast", "plain")),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} = {getattr(self, name)!r}; valid: {', '.join(choices)}")
        for name, least in (
            ("personal_steps", 0),
            ("global_steps", 1),
            ("importance_steps", 1),
            ("personal_epochs", 1),
            ("global_epochs", 1),
            ("batch_size", 1),
        ):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int) and value >= least):
                raise ValueError(f"{name} = {value}; it must be a whole number of at least {least}")
        for name in ("personal_learning_rate", "global_learning_rate"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} = {value}; it must be positive and finite")
        if not 0.0 <= self.momentum < 1.0:
            raise ValueError(f"momentum = {self.momentum}; it must be in [0, 1)")
        if self.momentum > 0.0 and self.optimizer != "sgd":
            raise ValueError(
                f"momentum = {self.momentum} with optimizer = {self.optimizer!r}; it is SGD's only"
            )
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0.0):
            raise ValueError(f"weight_decay = {self.weight_decay}; it must be at least 0 and finite")
