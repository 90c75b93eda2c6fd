"""LocalSim: every step moves both parts (FedSim, Pillutla et al. 2022; Liu et al. 2024, Fig. 4)."""

from client_app.algorithms import LocalAlgorithm
from client_app.phases import LocalWork
from protocol.training import TrainingSpec


class Simultaneous(LocalAlgorithm):
    """Masked steps on u with steps on v; a device that can upload nothing is left with those on v."""

    silent_apart = True

    def run(self, work: LocalWork) -> None:
        """Train the devices of a chunk for one round."""
        training = work.training
        if not work.uploading:
            work.train_personal(steps=training.global_steps, epochs=training.global_epochs)
        work.train_global(steps=training.global_steps, epochs=training.global_epochs, personal=True)

    def personal_steps(self, training: TrainingSpec, batches: int) -> int:
        """Return as many as there are steps on u: each moves both."""
        return self.global_steps(training, batches)
