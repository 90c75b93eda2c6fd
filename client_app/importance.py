"""How much a weight of the global part matters to a device: what the masks are made from.

A ranking is a function of the displacement of trial steps and the broadcast weights that works entry by entry
and returns importances >= 0; one of the user's own is ``package.module:function`` (``training.importance``).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch

from client_app.network import ModuleNetwork
from registry import Registry

# Rankings for which no trial step is taken.
GRADIENT_FREE: frozenset[str] = frozenset({"magnitude", "random"})

# Entry by entry, so of (D, N) displacements as of (N,).
Ranking = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
RANKINGS: Registry[Ranking] = Registry("ranking of weights", key="training.importance")


@RANKINGS.register("update")
def update_importance(displacement: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """|u_hat - u|: how far trial steps move a weight (Liu et al. 2024, eq. (20)).

    Args:
        displacement: float32 (N,), u_hat - u as a sum of steps. Subtracting u again from a rounded u_hat
            would leave only the few bits that a small step sets in u_hat, hence ties and a random mask.
        weights: float32 (N,), the broadcast weights u.
    """
    return displacement.abs()


@RANKINGS.register("first_order")
def first_order_importance(displacement: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """(g u)^2: the first-order form of the loss change when a weight is removed (Liu et al. 2024, eq. (19)).

    The displacement of SGD steps is proportional to the gradient g, which is enough to rank.
    """
    return (displacement * weights).square_()


@RANKINGS.register("magnitude")
def magnitude_importance(displacement: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """|u|. All devices hold the same broadcast, so they prune the same weights: for comparison only."""
    return weights.abs()


@lru_cache(maxsize=8)
def ranking(name: str) -> Ranking:
    """Return the ranking of that name, or ``package.module:function``, tried on a few weights.

    Raises:
        ValueError: if there is none, or it does not do what a ranking does.
    """
    found = RANKINGS.find(name)
    if name in RANKINGS:
        return found
    displacement, weights = torch.tensor([[0.1, -0.2, 0.0], [0.3, 0.0, -0.1]]), torch.tensor([1.0, -2.0, 0.0])
    try:
        together = found(displacement.clone(), weights.clone())
        apart = torch.stack([found(row.clone(), weights.clone()) for row in displacement])
        well = torch.equal(together, apart) and bool((together >= 0).all() and together.isfinite().all())
    except Exception as error:
        cause = f"{type(error).__name__}: {error}"
        raise ValueError(f"training.importance = {name} fails on a first trial: {cause}") from error
    if not well:
        raise ValueError(
            f"training.importance = {name} returns {together!r} for displacements {displacement.tolist()} "
            f"and weights {weights.tolist()}; numbers >= 0, for each row as for that row alone, are expected"
        )
    return found


@torch.no_grad()
def exact_importance(
    model: ModuleNetwork, images: torch.Tensor, labels: torch.Tensor
) -> npt.NDArray[np.float64]:
    """(F(u) - F(u without u_j))^2 for each global weight j (Liu et al. 2024, eq. (19)).

    One forward pass per weight: a check of the cheap rankings on small models, nothing to train with.

    Args:
        model: holds the weights; unchanged afterwards.
        images: (n, ...), samples as the network takes them.
        labels: targets (n, ...).

    Returns:
        float64 (N_u,).
    """

    def loss() -> float:
        return float(model.loss.mean(model.module(images).to(torch.float64), labels))

    whole = loss()
    changes = np.empty(model.global_part.numel())
    for j, weight in enumerate(model.global_part[0].tolist()):
        model.global_part[0, j] = 0.0
        changes[j] = loss() - whole
        model.global_part[0, j] = weight
    return changes**2
