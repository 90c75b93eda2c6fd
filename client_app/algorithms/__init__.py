"""Local algorithms: what a device's round consists of, one file each.

An algorithm is a class with `run(work)`, which puts the phases of `client_app.local_round.LocalWork`
together, and, where it changes gradients, `correct(work)`, called between each gradient and its step. Its
parameters are the keyword arguments of the class (``training.options``). Everything it touches has a leading
device dimension, so that it trains one device and many at once alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from client_app.local_round import Algorithm, LocalWork
from protocol.training import TrainingSpec
from registry import Registry

ALGORITHMS: Registry[type[Algorithm]] = Registry("local algorithm", key="training.algorithm")


class LocalAlgorithm:
    """The base of the built-in algorithms: gradients stay as they are.

    Attributes:
        silent_apart: whether devices that share nothing need a chunk of their own, because their round has
            other phases.
    """

    silent_apart: ClassVar[bool] = False

    def run(self, work: LocalWork) -> None:
        """Train the devices of a chunk for one round."""
        raise NotImplementedError

    def correct(self, work: LocalWork) -> None:
        """Change the gradients of a step before it is taken."""

    def personal_steps(self, training: TrainingSpec, batches: int) -> int:
        """Return the steps on v of a round; an epoch has `batches` batches."""
        epochs = training.personal_epochs
        return training.personal_steps if epochs is None else epochs * batches

    def global_steps(self, training: TrainingSpec, batches: int) -> int:
        """Return the steps on u of a round; an epoch has `batches` batches."""
        epochs = training.global_epochs
        return training.global_steps if epochs is None else epochs * batches


def steps_per_round(
    training: TrainingSpec, sizes: npt.NDArray[np.int64], *, has_personal: bool
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return each device's steps on v and on u in a round, tau_v and tau_u (Liu et al. 2024, eq. (10)).

    Args:
        training: steps and step sizes.
        sizes: samples n_k of each device, (K,).
        has_personal: whether there is a personal part at all.

    Returns:
        int64 (K,) each.

    Raises:
        ValueError: if the algorithm or one of its options is not valid.
    """
    algorithm = make_algorithm(training.algorithm, training.options)
    batches = [-(-int(size) // training.batch_size) for size in sizes]
    personal = [algorithm.personal_steps(training, number) if has_personal else 0 for number in batches]
    of_global = [algorithm.global_steps(training, number) for number in batches]
    return np.array(personal, np.int64), np.array(of_global, np.int64)


def make_algorithm(name: str, options: Mapping[str, Any]) -> Algorithm:
    """Return the algorithm called `name`, with its parameters.

    Raises:
        ValueError: if the name or an option is not valid.
    """
    from client_app.algorithms import alternating, fedprox, simultaneous  # noqa: F401  (they register)

    return ALGORITHMS.select(name, options)(**options)
