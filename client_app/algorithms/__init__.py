"""Local algorithms: what a device's round consists of, one file each.

An algorithm is a class with `run(work)`, which puts the phases of `client_app.phases.LocalWork` together,
and, where it changes gradients, `correct(work)`, called between each gradient and its step. Its parameters
are the keyword arguments of the class (``training.options``). Everything it touches has a leading device
dimension, so that it trains one device and many at once alike. One of the user's own is
``package.module:Class``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from client_app.importance import ranking
from client_app.network import Vector
from client_app.optimizers import check_optimizer
from client_app.phases import Algorithm, LocalWork
from client_app.phases import statistics as statistics
from client_app.schedules import rate
from protocol.training import TrainingSpec
from registry import Registry

ALGORITHM = "algorithm."  # what the names of an algorithm's arrays begin with where a device keeps them


def algorithm_state(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the local algorithm kept, by its own names, of all that a device keeps."""
    return {
        name.removeprefix(ALGORITHM): array for name, array in arrays.items() if name.startswith(ALGORITHM)
    }


ALGORITHMS: Registry[type[Algorithm]] = Registry("local algorithm", key="training.algorithm")


class LocalAlgorithm:
    """The base of the built-in algorithms: gradients stay as they are, and nothing is kept or sent.

    Attributes:
        silent_apart: whether devices that share nothing need a chunk of their own, because their round has
            other phases.
        keeps: names of the arrays (N_u,) that a device keeps from round to round, beside its personal part.
        sends: names of the arrays (N_u,) that a device uploads with its retained weights. Of each the server
            keeps a vector (N_u,), zeros in the beginning, to which it adds the mean over all devices of the
            run of what they sent; it is broadcast with the global part.
    """

    silent_apart: ClassVar[bool] = False
    keeps: ClassVar[tuple[str, ...]] = ()
    sends: ClassVar[tuple[str, ...]] = ()

    def run(self, work: LocalWork) -> None:
        """Train the devices of a chunk for one round."""
        raise NotImplementedError

    def correct(self, work: LocalWork) -> None:
        """Change the gradients of a step before it is taken."""

    def on_batch(self, work: LocalWork, step: Callable[[], None]) -> None:
        """Take the steps of a mini-batch: one."""
        step()

    def personalised(self, global_part: Vector, state: Mapping[str, Vector]) -> Vector:
        """Return the global part that a device tests and uses: the broadcast one.

        Args:
            global_part: float32 (N_u,), the broadcast.
            state: what the device keeps, by name.
        """
        return global_part

    def personal_steps(self, training: TrainingSpec, batches: int) -> int:
        """Return the steps on v of a round; an epoch has `batches` batches."""
        epochs = training.personal_epochs
        return training.personal_steps if epochs is None else epochs * batches

    def global_steps(self, training: TrainingSpec, batches: int) -> int:
        """Return the steps on u of a round; an epoch has `batches` batches."""
        epochs = training.global_epochs
        return training.global_steps if epochs is None else epochs * batches

    def copy_steps(self, training: TrainingSpec, batches: int) -> int:
        """Return the steps of a round on a dense copy of u that stays on the device: none."""
        return 0


class Steps(NamedTuple):
    """Each device's steps in a round, int64 (K,) each.

    Attributes:
        personal: on v, tau_v.
        of_global: on u, tau_u.
        copies: on a dense copy of u, which pruning does not shorten.
    """

    personal: npt.NDArray[np.int64]
    of_global: npt.NDArray[np.int64]
    copies: npt.NDArray[np.int64]


def check_training(training: TrainingSpec) -> Algorithm:
    """Try everything that `training` names; return the algorithm.

    Raises:
        ValueError: naming the key, the value and what would be valid.
    """
    algorithm = make_algorithm(training.algorithm, training.options)
    check_optimizer(training)
    rate(training, 1)
    if training.importance != "random":
        ranking(training.importance)
    return algorithm


def steps_per_round(training: TrainingSpec, sizes: npt.NDArray[np.int64], *, has_personal: bool) -> Steps:
    """Return each device's steps in a round (Liu et al. 2024, eq. (10)).

    Args:
        training: steps and step sizes.
        sizes: samples n_k of each device, (K,).
        has_personal: whether there is a personal part at all.

    Raises:
        ValueError: if the algorithm or one of its options is not valid.
    """
    algorithm = make_algorithm(training.algorithm, training.options)
    batches = [-(-int(size) // training.batch_size) for size in sizes]
    personal = [algorithm.personal_steps(training, number) if has_personal else 0 for number in batches]
    of_global = [algorithm.global_steps(training, number) for number in batches]
    copies = [algorithm.copy_steps(training, number) for number in batches]
    return Steps(*(np.array(steps, np.int64) for steps in (personal, of_global, copies)))


def make_algorithm(name: str, options: Mapping[str, Any]) -> Algorithm:
    """Return the algorithm called `name`, or ``package.module:Class``, with its parameters.

    Raises:
        ValueError: if the name or an option is not valid, or the class lacks a method.
    """
    made = ALGORITHMS.select(name, options)(**options)
    missing = [method for method in _METHODS if not hasattr(made, method)]
    if missing:
        raise ValueError(
            f"training.algorithm = {name} has no {', '.join(missing)}; derive the class from "
            "client_app.algorithms.LocalAlgorithm"
        )
    return made


_METHODS = tuple(name for name in vars(LocalAlgorithm) if not name.startswith("_"))

ALGORITHMS.register_at(
    alternating="client_app.algorithms.alternating:Alternating",
    simultaneous="client_app.algorithms.simultaneous:Simultaneous",
    fedprox="client_app.algorithms.fedprox:FedProx",
    ditto="client_app.algorithms.ditto:Ditto",
    scaffold="client_app.algorithms.scaffold:Scaffold",
    pfedme="client_app.algorithms.pfedme:PFedMe",
)
