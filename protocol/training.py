"""How a device trains: chosen in the configuration, carried out by the device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from schema import checked, key
from schema.uses import GLOBAL_STEPS, PERSONAL, PERSONAL_PHASE, PERSONAL_STEPS, RANKING, TRIAL_STEPS

IMPORTANCES = ("update", "first_order", "magnitude", "random")
OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("constant", "cosine", "step")


@dataclass(frozen=True)
class TrainingSpec:
    """How a device trains in a round; each key says itself what it means.

    `algorithm` is a name of `client_app.algorithms`. `importance_steps` are always of plain SGD: one step of
    Adam moves every weight equally far. An `optimizer` starts afresh in every phase of every round, and
    `weight_decay` is not applied in importance steps.

    Raises:
        ConfigError: if a value is not valid.
    """

    algorithm: str = key(
        "alternating (LocalAlt), simultaneous (LocalSim: both in every step), fedprox, ditto, scaffold, "
        "pfedme, or package.module:Class",
        default="alternating",
    )
    options: Mapping[str, Any] = key(
        "parameters of the algorithm, such as mu of fedprox", default_factory=dict
    )
    personal_steps: int = key(
        "tau_v: mini-batch steps on the personal part per round",
        unit="steps", minimum=0, used=PERSONAL_STEPS, default=2,
    )  # fmt: skip
    global_steps: int = key(
        "tau_u: mini-batch steps on the global part per round",
        unit="steps",
        minimum=1,
        used=GLOBAL_STEPS,
        default=2,
    )
    importance_steps: int = key(
        "tau_hat: trial steps that rank the weights", unit="steps", minimum=1, used=TRIAL_STEPS, default=1
    )
    personal_epochs: int | None = key(
        "passes over the device's training images, instead of personal_steps",
        minimum=1, used=PERSONAL_PHASE, default=None,
    )  # fmt: skip
    global_epochs: int | None = key(
        "passes over the device's training images, instead of global_steps", minimum=1, default=None
    )
    personal_learning_rate: float = key(
        "eta_v: step size on the personal part", above=0, used=PERSONAL, default=1e-3
    )
    global_learning_rate: float = key("eta_u: step size on the global part", above=0, default=1e-3)
    batch_size: int = key("images per step; all of a device that has fewer", minimum=1, default=32)
    optimizer: str = key(
        "what turns gradients into steps: sgd, adam, adamw, or torch.optim:NAME", default="adam"
    )
    optimizer_options: Mapping[str, Any] = key(
        "parameters of the optimiser, such as betas of adam", default_factory=dict
    )
    momentum: float = key("of sgd, or of another optimiser that has one", minimum=0, below=1, default=0.0)
    weight_decay: float = key("L2 penalty of both parts; of adamw decoupled", minimum=0, default=0.0)
    clip_norm: float | None = key(
        "largest Euclidean norm of a device's gradient in a step; null: any", above=0, default=None
    )
    schedule: str = key(
        "of both learning rates over the global rounds: constant, cosine, step, or package.module:function",
        default="constant",
    )
    schedule_options: Mapping[str, Any] = key(
        "parameters of the schedule: rounds and floor of cosine, every and factor of step",
        default_factory=dict,
    )
    importance: str = key(
        "of a weight: update (|change|, eq. (20)), first_order ((gradient x weight)^2), magnitude, random, "
        "or package.module:function",
        used=RANKING, default="update",
    )  # fmt: skip
    prune_bias: bool = key(
        "whether biases compete with the weights; else they go last", used=RANKING, default=True
    )
    precision: Literal["float32", "bfloat16"] = key(
        "of the products inside the layers; bfloat16 only where that is faster (AMX, AMD, GPUs)",
        default="float32",
    )
    kernels: Literal["fast", "plain"] = key(
        "layers with kernels of our own where there are some, or torch alone (rounding differs)",
        default="fast",
    )

    def __post_init__(self) -> None:
        checked(self)
        for name, choices in (
            ("optimizer", OPTIMIZERS),
            ("schedule", SCHEDULES),
            ("importance", IMPORTANCES),
        ):
            if (value := getattr(self, name)) not in choices and ":" not in value:
                valid = ", ".join(choices)
                raise ValueError(f"{name} = {value!r}; valid: {valid}, or 'package.module:object'")
        if self.momentum > 0.0 and self.optimizer in ("adam", "adamw"):
            raise ValueError(
                f"momentum = {self.momentum} with optimizer = {self.optimizer!r}; it is SGD's only"
            )
