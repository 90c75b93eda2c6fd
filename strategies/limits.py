"""How far one device may move the global part in a round.

The norm of a device's update, over the weights that it kept, is compared with a limit. Where none is given
it follows the fleet: `FACTOR` times the median norm of the latest updates, or half the largest such median
so far if that is more. Norms differ by orders of magnitude between models, step sizes and stages of
training, but little between the devices of a round, until training has converged: then most hardly move
and one that meets a hard image still does, no more than all did before. As long as fewer than half of the
devices are hostile, a median of all is no larger than the norm of some honest one.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median_low
from typing import Literal

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float32]
Action = Literal["reject", "clip"]

FACTOR = 6.0
FLOOR = 0.5  # share of the largest median so far, below which the median in use does not fall
POOL = 20  # the latest rounds that together hold so many norms give the median
_BLOCK = 1 << 15  # entries at once: in float64 they fit the cache


class UploadError(ValueError):
    """An upload that cannot be used; costs its device the round."""


def update_norm(values: Vector, base: npt.NDArray[np.floating] | None = None) -> float:
    """Return the Euclidean norm of ``values - base``; without `base` that of `values`.

    In float64, where the squares of finite float32 values cannot overflow.

    Args:
        values: float32, shape (n,).
        base: shape (n,), or None; float32 takes longer than float64.

    Raises:
        UploadError: if a value is not finite.
    """
    total = 0.0
    for start in range(0, values.size, _BLOCK):
        block = slice(start, start + _BLOCK)
        update = values[block].astype(np.float64)  # a ufunc would cast through a buffer, in twice the time
        if base is not None:
            update -= base[block]
        # Summed by NumPy itself: BLAS wakes a second thread for a dot product, and waits for it where cores
        # are busy.
        total += float(np.einsum("i,i->", update, update))
    if not math.isfinite(total):
        raise UploadError("the update holds values that are not finite")
    return math.sqrt(total)


@dataclass(frozen=True)
class NormLimit:
    """What is done about large updates.

    Attributes:
        norm: the limit; None: `FACTOR` times the median of the latest norms; infinite: none.
        action: what happens above it: the upload is rejected, or its update is scaled down to the limit.

    Raises:
        ValueError: if the limit is not positive.
    """

    norm: float | None = math.inf
    action: Action = "reject"

    def __post_init__(self) -> None:
        if self.norm is not None and not self.norm > 0:
            raise ValueError(f"norm = {self.norm}; the limit of an update must be positive")
        if self.action not in ("reject", "clip"):
            raise ValueError(f"action = {self.action!r}; valid: reject, clip")

    def scale(self, norm: float, limit: float) -> float:
        """Return the factor in (0, 1] by which an update of this norm is to be multiplied.

        Raises:
            UploadError: if the norm is above the limit and such updates are rejected.
        """
        if norm <= limit:
            return 1.0
        if self.action == "clip" and limit > 0:
            return limit / norm
        source = "fleet.upload_norm_limit"
        if self.norm is None:
            source = f"{FACTOR:g} times the median of the latest updates ({source} = auto)"
        raise UploadError(f"the update has norm {norm:.3g}, above {limit:.3g}, {source}")


class NormHistory:
    """Norms of the latest rounds, and the limit that follows from them.

    Of every upload that could be read the norm counts, also of one that was rejected: if all norms rise, the
    limit follows, and a hostile device has one vote in either case.
    """

    def __init__(self) -> None:
        self._rounds: deque[list[float]] = deque()
        self._largest = 0.0  # median so far

    def limit(self, own: Sequence[float] | None = None) -> float | None:
        """Return the limit of a round.

        Args:
            own: norms of the round itself, which join those of the rounds before while these are fewer
                than `POOL`.

        Returns:
            The limit; None if the rounds before do not give it and `own` is not there.
        """
        pool = self._pool()
        if len(pool) < POOL:
            if own is None:
                return None
            pool += own
        if not pool:
            return math.inf
        # The lower of two medians: of two devices, or of two halves, the larger ones are the suspects.
        return FACTOR * max(median_low(pool), FLOOR * self._largest)

    def close(self, norms: Iterable[float]) -> None:
        """Take the norms of a round that has ended, and drop those of rounds that no longer count."""
        if own := list(norms):
            self._rounds.append(own)
        # A median of fewer might be that of one hostile device.
        if len(pool := self._pool()) >= POOL:
            self._largest = max(self._largest, median_low(pool))
        while self._rounds and sum(map(len, self._rounds)) - len(self._rounds[0]) >= POOL:
            self._rounds.popleft()

    def _pool(self) -> list[float]:
        return [norm for norms in self._rounds for norm in norms]

    def state(self) -> dict[str, npt.NDArray[np.generic]]:
        """Return the norms, how many each round has, and the largest median."""
        return {
            "norms": np.array(self._pool(), np.float64),
            "norm-rounds": np.array([len(norms) for norms in self._rounds], np.int64),
            "norm-largest": np.array(self._largest),
        }

    def restore(self, state: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Take back what `state` returned."""
        values, lengths = iter(state["norms"].tolist()), state["norm-rounds"]
        self._largest = float(state["norm-largest"])
        self._rounds = deque([next(values) for _ in range(length)] for length in lengths.tolist())
