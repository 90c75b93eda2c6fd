"""What comes out of a device's part of a round: its result, or that training left the finite numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from client_app.masks import Mask
from client_app.network import Arrays

Floats = npt.NDArray[np.float32]


class DivergedError(ArithmeticError):
    """Local training left the finite numbers."""


@dataclass(frozen=True, eq=False)
class LocalResult:
    """What a device has after its part of a round.

    Attributes:
        personal: float32 (N_v,), its new personal part; stays on the device.
        global_part: float32 (N_u,), its global part, exactly 0 where pruned.
        mask: bool (N_u,), True where kept; all False means that nothing is uploaded.
        personal_loss, global_loss: mean mini-batch loss of the steps on each part; NaN where no step was
            taken. Where both parts train in one step, there is one loss for both.
        personal_steps, importance_steps, global_steps: steps taken.
        buffers: its running statistics by name.
        state: named arrays of the algorithm, float32 (N_u,); stay on the device.
        sent: named arrays of the algorithm, float32 (N_u,), exactly 0 where pruned; uploaded where kept.
    """

    personal: Floats
    global_part: Floats
    mask: Mask
    personal_loss: float
    global_loss: float
    personal_steps: int
    importance_steps: int
    global_steps: int
    buffers: Arrays = field(default_factory=dict)
    state: Mapping[str, Floats] = field(default_factory=dict)
    sent: Mapping[str, Floats] = field(default_factory=dict)


def require_finite(vector: torch.Tensor, losses: Sequence[float]) -> None:
    """Check the weights and losses of a phase.

    Raises:
        DivergedError: if one is not finite.
    """
    # The sum of finite float32 weights overflows only when they are as good as diverged, and costs a
    # twentieth of testing each.
    if not math.isfinite(float(vector.sum())) or not all(map(math.isfinite, losses)):
        finite = [loss for loss in losses if math.isfinite(loss)]
        raise DivergedError(
            f"training diverged: {len(losses) - len(finite)} of {len(losses)} losses and "
            f"{int((~torch.isfinite(vector)).sum())} of {vector.numel()} entries are not finite; "
            "a smaller learning rate or fewer local steps may help"
        )


def errors_of(
    phases: Sequence[tuple[torch.Tensor, Sequence[torch.Tensor]]], devices: int
) -> list[DivergedError | None]:
    """Return, for each device, the error of the first phase that left the finite numbers.

    Args:
        phases: weights (k, n) of the first k devices, and the losses (k,) of each step.
        devices: how many there are.
    """
    sums = iter(torch.cat([weights.sum(1) for weights, _ in phases]).tolist())
    losses = [by_device(found, len(weights)) for weights, found in phases]
    errors: list[DivergedError | None] = [None] * devices
    for (weights, _), of_phase in zip(phases, losses, strict=True):
        for device, mine in enumerate(of_phase):
            if all(map(math.isfinite, (next(sums), *mine))) or errors[device] is not None:
                continue
            try:
                require_finite(weights[device].cpu(), mine)
            except DivergedError as error:
                errors[device] = error
    return errors


def by_device(losses: Sequence[torch.Tensor], devices: int) -> list[list[float]]:
    """Turn one (D,) tensor for each step into one list for each device, with one copy."""
    if not losses:
        return [[]] * devices
    found: list[list[float]] = torch.stack(list(losses), 1).tolist()
    return found


def mean_loss(losses: Sequence[float]) -> float:
    """Return the mean; NaN where no step was taken."""
    return math.fsum(losses) / len(losses) if losses else math.nan
