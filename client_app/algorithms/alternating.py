"""LocalAlt: first the personal part, then the global one (Liu et al. 2024, Alg. 1; FedAlt, Pillutla 2022)."""

from client_app.algorithms import LocalAlgorithm
from client_app.phases import LocalWork


class Alternating(LocalAlgorithm):
    """Steps on v against the dense broadcast u, eq. (6), then masked steps on u, eq. (22)."""

    def run(self, work: LocalWork) -> None:
        """Train the devices of a chunk for one round."""
        training = work.training
        work.train_personal(steps=training.personal_steps, epochs=training.personal_epochs)
        work.train_global(steps=training.global_steps, epochs=training.global_epochs)
