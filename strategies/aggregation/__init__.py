"""From the uploads of a round to the next global part, one file for each way.

An aggregation is a pure function

    aggregate(current, uploads, masks, weights, *, option=...) -> next global part

of the broadcast `current` (N,), what K devices sent, `uploads` (K, N) under `masks` (K, N), and the weight of
each device, `weights` (K,). Entries outside the masks hold `current` and mean nothing. Rows are in the order
of the devices, however the uploads arrived; a device that sent nothing is a row without True. A weight that
nobody kept stays as it was, whatever the function makes of it. The keyword-only parameters of the function
are its options (``scheme.aggregation_options``).

The uploads of a round may be more than the memory takes, so a function may say that it needs less:

- `@per_weight`: each weight is decided by itself; it is then given blocks of weights;
- `@streamed(Class)`: `Class(current, **options)` does the same with one upload at a time (`Aggregator`).

Without either it is given everything at once. A function of the user's own is ``package.module:function``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from registry import Registry
from strategies.aggregation.masked_mean import AverageResult, Positions
from strategies.aggregation.store import Uploads

Weights = npt.NDArray[np.float32]
Masks = npt.NDArray[np.bool_]
Shares = npt.NDArray[np.float64]
Aggregation = Callable[..., Weights]

AGGREGATIONS: Registry[Aggregation] = Registry("aggregation", key="scheme.aggregation")
AGGREGATIONS.register_at(
    keepers_mean="strategies.aggregation.keepers_mean:keepers_mean",
    all_devices_mean="strategies.aggregation.all_devices_mean:all_devices_mean",
    trimmed_mean="strategies.aggregation.trimmed_mean:trimmed_mean",
    median="strategies.aggregation.median:median",
    clipped_mean="strategies.aggregation.clipped_mean:clipped_mean",
)

F = TypeVar("F", bound=Aggregation)


class AggregationError(ValueError):
    """What an aggregation returned is no global part."""


class Aggregator(Protocol):
    """Takes the uploads of one round, one at a time."""

    def add(self, values: Weights, kept: Positions | None, weight: float = 1.0) -> None:
        """Take one device's upload.

        Args:
            values: float32 (n,), its retained weights in ascending position.
            kept: where they belong; None: it kept everything, n = N.
            weight: of the device, positive.
        """
        ...

    def add_nothing(self, weight: float = 1.0) -> None:
        """Take note of a device that took part and sent nothing."""
        ...

    def finish(self) -> AverageResult:
        """Return the next global part."""
        ...


def per_weight(function: F) -> F:
    """Say that a function decides each weight by itself: it may be given blocks of weights."""
    function.per_weight = True  # type: ignore[attr-defined]
    return function


def streamed(stream: Callable[..., Aggregator]) -> Callable[[F], F]:
    """Say that `stream(current, **options)` does what the function does, one upload at a time."""

    def mark(function: F) -> F:
        function.stream = stream  # type: ignore[attr-defined]
        return function

    return mark


@dataclass(frozen=True)
class ChosenAggregation:
    """An aggregation with its options.

    Attributes:
        name: as in ``scheme.aggregation``.
        function: the aggregation.
        options: its keyword arguments.
    """

    name: str
    function: Aggregation
    options: Mapping[str, Any]

    def start(self, current: Weights) -> Aggregator:
        """Return what takes the uploads of a round; `current` is the broadcast, float32 (N,)."""
        stream: Callable[..., Aggregator] | None = getattr(self.function, "stream", None)
        if stream is not None:
            return stream(current, **self.options)
        return _Held(self, current)

    def __call__(self, current: Weights, uploads: Weights, masks: Masks, weights: Shares) -> Weights:
        """Aggregate, and check what came out.

        Raises:
            AggregationError: if it is no float32 vector of the right length.
        """
        found = np.asarray(self.function(current, uploads, masks, weights, **self.options))
        if found.shape != current.shape or not np.issubdtype(found.dtype, np.floating):
            raise AggregationError(
                f"scheme.aggregation = {self.name} returned {found.dtype} of shape {found.shape}; "
                f"float32 of shape {current.shape} is expected"
            )
        return found.astype(np.float32, copy=False)


def choose(name: str, options: Mapping[str, Any]) -> ChosenAggregation:
    """Return an aggregation by name or ``package.module:function``, tried on three small uploads.

    Raises:
        ValueError: if the name or an option is not valid, or the trial fails.
    """
    chosen = ChosenAggregation(name, AGGREGATIONS.select(name, options), dict(options))
    _try(chosen)
    return chosen


def _try(chosen: ChosenAggregation) -> None:
    """Aggregate three uploads, so that a function that cannot work is found before anything is trained.

    Raises:
        ValueError: with what it raised, or what is wrong with what it returned.
    """
    current = np.array([0.5, -0.25, 1.0, 2.0], np.float32)
    masks = np.array([[1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 0]], np.bool_)
    uploads = np.where(masks, current + np.array([[0.1], [0.2], [-0.1]], np.float32), current)
    try:
        aggregator = chosen.start(current)
        for values, mask in zip(uploads, masks, strict=True):
            aggregator.add(values[mask], Positions(mask))
        found = aggregator.finish().weights
    except ValueError:
        raise
    except Exception as error:
        cause = f"{type(error).__name__}: {error}"
        raise ValueError(f"scheme.aggregation = {chosen.name} fails on a first trial: {cause}") from error
    if not np.isfinite(found).all():
        raise ValueError(
            f"scheme.aggregation = {chosen.name} makes {found.tolist()} of finite uploads; it must be finite"
        )


class _Held:
    """Holds the uploads of a round for a function that needs them all."""

    def __init__(self, chosen: ChosenAggregation, current: Weights) -> None:
        self._chosen, self._current = chosen, current
        self._uploads = Uploads(current.size)

    def add(self, values: Weights, kept: Positions | None, weight: float = 1.0) -> None:
        self._uploads.add(values, None if kept is None else kept.mask, weight)

    def add_nothing(self, weight: float = 1.0) -> None:
        self._uploads.add(np.zeros(0, np.float32), np.zeros(self._current.size, np.bool_), weight)

    def finish(self) -> AverageResult:
        """Aggregate, block by block where the function decides each weight by itself."""
        size = self._current.size
        weights, counts = self._current.copy(), np.zeros(size, np.int32)
        whole = not getattr(self._chosen.function, "per_weight", False)
        for block, uploads, masks in self._uploads.blocks(self._current, whole=whole):
            counts[block] = masks.sum(0, dtype=np.int32)
            weights[block] = self._chosen(self._current[block], uploads, masks, self._uploads.weights)
        self._uploads.close()
        return AverageResult(np.where(counts > 0, weights, self._current), counts)


def in_turn(
    stream: Callable[..., Aggregator],
    current: Weights,
    uploads: Weights,
    masks: Masks,
    weights: Shares,
    **options: Any,
) -> Weights:
    """Aggregate as `stream` does, one row after the other."""
    aggregator = stream(current, **options)
    for values, mask, weight in zip(uploads, masks, weights, strict=True):
        if mask.any():
            aggregator.add(values[mask], Positions(mask), float(weight))
        else:
            aggregator.add_nothing(float(weight))
    return aggregator.finish().weights
