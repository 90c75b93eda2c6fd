"""How much a weight of the global part matters to a device: what the masks are made from."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from client_app.network import ModuleNetwork

NEEDS_GRADIENT: frozenset[str] = frozenset({"update", "first_order"})


def update_importance(displacement: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """|u_hat - u|: how far trial steps move a weight (Liu et al. 2024, eq. (20)).

    Args:
        displacement: float32 (N,), u_hat - u as a sum of steps. Subtracting u again from a rounded u_hat
            would leave only the few bits that a small step sets in u_hat, hence ties and a random mask.
        weights: float32 (N,), the broadcast weights u.
    """
    return displacement.abs()


def first_order_importance(displacement: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """(g u)^2: the first-order form of the loss change when a weight is removed (Liu et al. 2024, eq. (19)).

    The displacement of SGD steps is proportional to the gradient g, which is enough to rank.
    """
    return (displacement * weights).square_()


def magnitude_importance(displacement: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """|u|. All devices hold the same broadcast, so they prune the same weights: for comparison only."""
    return weights.abs()


# Entry by entry, so of (D, N) displacements as of (N,).
_Ranking = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
RANKINGS: dict[str, _Ranking] = {
    "update": update_importance,
    "first_order": first_order_importance,
    "magnitude": magnitude_importance,
}


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
