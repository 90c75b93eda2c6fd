"""The server's step along the pseudo-gradient (Reddi et al. 2021, arXiv 2003.00295, Algorithm 2).

With Delta the change that the uploads of a round ask for (what the aggregation or the air made of them, minus
the broadcast), all but `Sgd` keep a first moment m and a second moment s of each weight:

    m <- beta1 m + (1 - beta1) Delta
    s <- s + Delta^2                                  (Adagrad)
         beta2 s + (1 - beta2) Delta^2                (Adam)
         s - (1 - beta2) Delta^2 sign(s - Delta^2)    (Yogi)
    u <- u + eta m / (sqrt(s) + tau)

from m = 0 and s = tau^2. Weights of which nothing was received do not move, and neither do their moments.

A server optimiser is a class; its keyword-only parameters are ``server.options``. One of the user's own is
``package.module:Class``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from registry import Registry

Moments = npt.NDArray[np.float64]


class ServerOptimizer(Protocol):
    """Turns the change that the uploads ask for into the one that the server makes."""

    def step(self, change: Moments, state: dict[str, Moments]) -> Moments:
        """Return the change that a learning rate of 1 makes.

        Args:
            change: Delta, float64 (n,), of the weights of which something was received.
            state: named arrays (n,) of these weights, which this step changes; empty before the first.
        """
        ...


SERVER_OPTIMIZERS: Registry[type[ServerOptimizer]] = Registry("server optimiser", key="server.optimizer")


@SERVER_OPTIMIZERS.register("sgd")
class Sgd:
    """Go along the change itself: federated averaging, with a learning rate of 1."""

    def step(self, change: Moments, state: dict[str, Moments]) -> Moments:
        """Return the change."""
        return change


@SERVER_OPTIMIZERS.register("momentum")
class Momentum:
    """Heavy ball, m <- beta m + Delta (FedAvgM, Hsu et al. 2019, arXiv 1909.06335)."""

    def __init__(self, *, beta: float = 0.9) -> None:
        _below_one("beta", beta)
        self._beta = beta

    def step(self, change: Moments, state: dict[str, Moments]) -> Moments:
        """Return m."""
        found = state.get("velocity")
        state["velocity"] = change.copy() if found is None else self._beta * found + change
        return state["velocity"]


class _Adaptive:
    """What Adam, Yogi and Adagrad have in common."""

    def __init__(self, *, beta1: float = 0.9, tau: float = 1e-3) -> None:
        _below_one("beta1", beta1)
        if not (math.isfinite(tau) and tau > 0.0):
            raise ValueError(f"tau = {tau}; it must be positive and finite")
        self._beta1, self._tau = beta1, tau

    def step(self, change: Moments, state: dict[str, Moments]) -> Moments:
        """Return m / (sqrt(s) + tau)."""
        mean = state.get("mean", np.zeros_like(change))
        square = state.get("square", np.full_like(change, self._tau**2))
        state["mean"] = self._beta1 * mean + (1.0 - self._beta1) * change
        state["square"] = self._squares(square, change * change)
        moved: Moments = state["mean"] / (np.sqrt(state["square"]) + self._tau)
        return moved

    def _squares(self, square: Moments, new: Moments) -> Moments:
        raise NotImplementedError


@SERVER_OPTIMIZERS.register("adagrad")
class Adagrad(_Adaptive):
    """FedAdagrad: the squares add up. Without momentum by default, as in the paper's experiments."""

    def __init__(self, *, beta1: float = 0.0, tau: float = 1e-3) -> None:
        super().__init__(beta1=beta1, tau=tau)

    def _squares(self, square: Moments, new: Moments) -> Moments:
        return square + new


@SERVER_OPTIMIZERS.register("adam")
class Adam(_Adaptive):
    """FedAdam; without the correction of the bias, as in the paper."""

    def __init__(self, *, beta1: float = 0.9, beta2: float = 0.99, tau: float = 1e-3) -> None:
        super().__init__(beta1=beta1, tau=tau)
        _below_one("beta2", beta2)
        self._beta2 = beta2

    def _squares(self, square: Moments, new: Moments) -> Moments:
        return self._beta2 * square + (1.0 - self._beta2) * new


@SERVER_OPTIMIZERS.register("yogi")
class Yogi(Adam):
    """FedYogi: the second moment changes by at most (1 - beta2) Delta^2 in a round."""

    def _squares(self, square: Moments, new: Moments) -> Moments:
        return square - (1.0 - self._beta2) * new * np.sign(square - new)


class ServerStep:
    """The server's optimiser with its state.

    Args:
        name: of the optimiser, or ``package.module:Class``.
        learning_rate: eta, positive.
        options: of the optimiser.

    Raises:
        ValueError: if a name or value is not valid, or a class of the user's own fails on a first trial.
    """

    def __init__(
        self, name: str = "sgd", learning_rate: float = 1.0, options: Mapping[str, Any] | None = None
    ) -> None:
        if not (math.isfinite(learning_rate) and learning_rate > 0.0):
            raise ValueError(f"learning_rate = {learning_rate}; it must be positive and finite")
        self._optimizer = SERVER_OPTIMIZERS.select(name, options or {})(**(options or {}))
        self._rate = learning_rate
        self._state: dict[str, Moments] = {}
        self._seen: npt.NDArray[np.bool_] | None = None
        self._is_plain = type(self._optimizer) is Sgd and learning_rate == 1.0
        self._try(name)

    def __call__(
        self,
        before: npt.NDArray[np.float32],
        proposed: npt.NDArray[np.float32],
        covered: npt.NDArray[np.bool_] | None,
    ) -> npt.NDArray[np.float32]:
        """Return the next global part.

        Args:
            before: the broadcast, float32 (N,).
            proposed: what aggregation or air made of the uploads, float32 (N,).
            covered: bool (N,), weights of which something was received; None: all of them.
        """
        if self._is_plain:  # what was proposed, bit for bit
            return proposed
        where = np.ones(before.size, np.bool_) if covered is None else covered
        change = (proposed.astype(np.float64) - before)[where]
        moved = before.copy()
        moved[where] = before[where] + self._rate * self._advance(change, where)
        return moved

    def _advance(self, change: Moments, where: npt.NDArray[np.bool_]) -> Moments:
        """Take a step of the optimiser on some of the weights, those seen for the first time apart."""
        seen = np.zeros(where.size, np.bool_) if self._seen is None else self._seen
        result = np.empty_like(change)
        for again in (False, True):
            group = where & (seen == again)
            if not group.any():
                continue
            mine = group[where]
            state = {name: array[group] for name, array in self._state.items()} if again else {}
            result[mine] = self._optimizer.step(change[mine], state)
            for name, array in state.items():
                self._state.setdefault(name, np.zeros(where.size))[group] = array
        self._seen = seen | where
        return result

    def state(self) -> dict[str, npt.NDArray[np.generic]]:
        """Return what a run that goes on needs; nothing for an optimiser without state."""
        if not self._state or self._seen is None:
            return {}
        kept: dict[str, npt.NDArray[np.generic]] = {
            f"server-state-{name}": a for name, a in self._state.items()
        }
        return {**kept, "server-seen": self._seen}

    def restore(self, state: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Take back what `state` returned."""
        if "server-seen" not in state:
            return
        self._seen = np.array(state["server-seen"], np.bool_)
        self._state = {
            name.removeprefix("server-state-"): np.array(array, np.float64)
            for name, array in state.items()
            if name.startswith("server-state-")
        }

    def _try(self, name: str) -> None:
        """Take two steps on three weights, so that a class that cannot work is found before training.

        Raises:
            ValueError: with what it raised, or what is wrong with what it returned.
        """
        state: dict[str, Moments] = {}
        try:
            for change in (np.array([0.1, -0.2, 0.0]), np.array([0.3, 0.0, 0.1])):
                found = np.asarray(self._optimizer.step(change, state))
                shapes = {found.shape, *(np.shape(array) for array in state.values())}
        except Exception as error:
            cause = f"{type(error).__name__}: {error}"
            raise ValueError(f"server.optimizer = {name} fails on a first trial: {cause}") from error
        if shapes != {(3,)} or not np.isfinite(found).all():
            raise ValueError(
                f"server.optimizer = {name} made a change {found.tolist()} and arrays of shapes "
                f"{sorted(shapes)} for three weights; finite numbers of shape (3,) are expected"
            )


def _below_one(name: str, value: float) -> None:
    if not 0.0 <= value < 1.0:
        raise ValueError(f"{name} = {value}; it must be at least 0 and below 1")
