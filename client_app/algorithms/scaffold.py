"""SCAFFOLD: control variates against client drift (Karimireddy et al. 2020, arXiv 1910.06378, Alg. 1)."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from client_app.algorithms.alternating import Alternating
from client_app.phases import LocalWork


@dataclass(frozen=True, kw_only=True)
class Scaffold(Alternating):
    """`Alternating` with c - c_k added to the gradients of u; c_k is the mean gradient of the last round.

    The new c_k is the mean of the gradients along the device's path, which for plain SGD is option II of the
    paper, c_k - c + (u_g - u_k) / (tau_u eta_u), and holds for any optimiser. Only the control variates of
    retained weights change; their change is sent with the weights, and the server adds its mean over all
    devices to c.

    Attributes:
        strength: factor of the correction, 0..1; 0 is `alternating`, bit for bit.
    """

    keeps: ClassVar[tuple[str, ...]] = ("control",)
    sends: ClassVar[tuple[str, ...]] = ("control",)
    strength: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.strength <= 1.0:
            raise ValueError(f"strength = {self.strength}; it must be in 0..1")

    def run(self, work: LocalWork) -> None:
        """Train the devices of a chunk for one round."""
        own = work.recall("control", torch.zeros_like(work.start))[: work.uploading]
        work.scratch["correction"] = work.received("control") - own
        super().run(work)
        if work.uploading:
            change = work.scratch["gradients"] / work.scratch["steps"] - own
            if work.kept is not None:
                change[: len(work.kept)].mul_(work.kept)
            work.keep("control", own + change)
            work.send("control", change)

    def correct(self, work: LocalWork) -> None:
        """Sum the gradients of u up, then correct them."""
        gradient = work.network.global_part.grad
        if not work.trains_global or gradient is None:
            return
        before = work.scratch.get("gradients")
        work.scratch["gradients"] = gradient.clone() if before is None else before.add_(gradient)
        work.scratch["steps"] = work.scratch.get("steps", 0) + 1
        if self.strength:
            gradient.add_(work.scratch["correction"], alpha=self.strength)
