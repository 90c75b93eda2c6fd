"""pFedMe: personal models by Moreau envelopes (Dinh et al. 2020, arXiv 2006.08848, Alg. 1)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from client_app.algorithms.alternating import Alternating
from client_app.network import Vector
from client_app.phases import LocalWork
from protocol.training import TrainingSpec


@dataclass(frozen=True, kw_only=True)
class PFedMe(Alternating):
    """Each step on u goes towards theta, which solves min F(theta) + lam/2 ||theta - u||^2 for a batch.

    theta starts at u and takes `inner_steps` steps; then u <- u - eta lam (u - theta). The device is tested
    with the last theta, its personal model. The server's beta is ``server.learning_rate``.

    Attributes:
        lam: weight of the proximal term, >= 0.
        eta_lam: eta times lam, the share of the way to theta that u goes, in (0, 1].
        inner_steps: K, steps towards theta. With 1 step and eta_lam = 1 it is `alternating`, bit for bit.
    """

    keeps: ClassVar[tuple[str, ...]] = ("model",)
    lam: float = 15.0
    eta_lam: float = 0.5
    inner_steps: int = 5

    def __post_init__(self) -> None:
        if not self.lam >= 0.0:
            raise ValueError(f"lam = {self.lam}; it must be at least 0")
        if not 0.0 < self.eta_lam <= 1.0:
            raise ValueError(f"eta_lam = {self.eta_lam}; it must be above 0 and at most 1")
        if self.inner_steps < 1:
            raise ValueError(f"inner_steps = {self.inner_steps}; it must be at least 1")

    def run(self, work: LocalWork) -> None:
        """Train the devices of a chunk for one round."""
        super().run(work)
        if work.uploading:
            theta: torch.Tensor = work.scratch["theta"]
            if work.kept is not None:  # what was pruned is the broadcast's in the personal model
                theta[: len(work.kept)].add_(work.start * (1.0 - work.kept))
            work.keep("model", theta)

    def on_batch(self, work: LocalWork, step: Callable[[], None]) -> None:
        """Solve for theta, and move u towards it."""
        if not work.trains_global:
            step()
            return
        weights = work.network.global_part
        centre: torch.Tensor = work.scratch.setdefault("centre", weights.clone())
        for _ in range(self.inner_steps):
            step()
        work.scratch["theta"] = weights.clone()
        weights.copy_(centre.lerp_(weights, self.eta_lam))

    def correct(self, work: LocalWork) -> None:
        """Add lam (theta - u) to the gradient of theta."""
        gradient = work.network.global_part.grad
        if work.trains_global and self.lam and self.inner_steps > 1 and gradient is not None:
            gradient.add_(work.network.global_part - work.scratch["centre"], alpha=self.lam)

    def personalised(self, global_part: Vector, state: Mapping[str, Vector]) -> Vector:
        """Return the device's theta, once there is one."""
        return state.get("model", global_part)

    def global_steps(self, training: TrainingSpec, batches: int) -> int:
        """Return the gradients of u in a round: each step takes `inner_steps`."""
        return self.inner_steps * super().global_steps(training, batches)
