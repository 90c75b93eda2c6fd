"""Ditto: a personal model of one's own, near the global one (Li et al. 2021, arXiv 2012.04221, Alg. 1)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from client_app.algorithms import LocalAlgorithm
from client_app.network import Vector
from client_app.phases import LocalWork
from protocol.training import TrainingSpec


@dataclass(frozen=True, kw_only=True)
class Ditto(LocalAlgorithm):
    """Steps on a full copy w of the global part with lam/2 ||w - u_g||^2, then masked steps on u as ever.

    The copy is dense and never leaves the device, which is tested with it. A personal part v, where there is
    one, moves with the copy.

    Attributes:
        lam: weight of the proximal term, >= 0; 0: the copy is trained by the device alone. Where there is no
            v, the global part is that of `alternating`, bit for bit, whatever lam is.
    """

    keeps: ClassVar[tuple[str, ...]] = ("model",)
    lam: float = 0.1

    def __post_init__(self) -> None:
        if not self.lam >= 0.0:
            raise ValueError(f"lam = {self.lam}; it must be at least 0")

    def run(self, work: LocalWork) -> None:
        """Train the devices of a chunk for one round."""
        training = work.training
        steps, epochs = training.personal_steps, training.personal_epochs
        own = work.recall("model", work.start)
        work.keep("model", work.train_copy(own, steps=steps, epochs=epochs))
        work.train_global(steps=training.global_steps, epochs=training.global_epochs)

    def correct(self, work: LocalWork) -> None:
        """Add lam (w - u_g) to the gradient of the copy."""
        gradient = work.network.global_part.grad
        if self.lam and work.phase == "copy" and gradient is not None:
            gradient.add_(work.network.global_part - work.start, alpha=self.lam)

    def personalised(self, global_part: Vector, state: Mapping[str, Vector]) -> Vector:
        """Return the device's own copy, once there is one."""
        return state.get("model", global_part)

    def copy_steps(self, training: TrainingSpec, batches: int) -> int:
        """Return the steps on the copy, as many as a personal part takes."""
        return self.personal_steps(training, batches)
