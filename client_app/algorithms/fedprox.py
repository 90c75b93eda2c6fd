"""FedProx: a proximal term keeps local steps near the broadcast (Li et al. 2020, arXiv 1812.06127)."""

from dataclasses import dataclass

from client_app.algorithms.alternating import Alternating
from client_app.phases import LocalWork


@dataclass(frozen=True, kw_only=True)
class FedProx(Alternating):
    """`Alternating` with mu/2 ||u - u_g||^2 over the retained weights added to the loss of the global steps.

    Attributes:
        mu: weight of the term, >= 0; 0 is `alternating`, bit for bit.
    """

    mu: float = 0.01

    def __post_init__(self) -> None:
        if not self.mu >= 0.0:
            raise ValueError(f"mu = {self.mu}; it must be at least 0")

    def correct(self, work: LocalWork) -> None:
        """Add mu (u - u_g) to the gradient of u; on pruned weights the mask undoes it."""
        if not (self.mu and work.trains_global):
            return
        gradient = work.network.global_part.grad
        assert gradient is not None
        gradient.add_(work.network.global_part - work.start, alpha=self.mu)
