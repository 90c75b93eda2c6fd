"""What a test reports, by name: a function of all outputs and targets of a device's test samples.

Over devices, values are averaged; over samples they are put together as the metric says, so that the figure
over all samples is that of one big test: squares for a root mean square, logarithms for a perplexity.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from registry import Registry
from task.dataset import Dataset
from task.losses import class_second, cross_entropy

MetricFunction = Callable[[torch.Tensor, torch.Tensor], Any]
Combination = Literal["mean", "root_mean_square", "geometric"]
METRICS: Registry[MetricFunction] = Registry("metric", key="task.metrics")

_LOWER = frozenset({"rmse", "perplexity"})  # is better
_COMBINATIONS: dict[str, Combination] = {"rmse": "root_mean_square", "perplexity": "geometric"}


@dataclass(frozen=True, eq=False)
class Metric:
    """A metric.

    Attributes:
        name: as the columns of the records call it.
        function: computes it from outputs (n, ...) and targets (n, ...).
    """

    name: str
    function: MetricFunction

    def of(self, outputs: torch.Tensor, targets: torch.Tensor) -> float:
        """Return its value."""
        return float(self.function(outputs, targets))


def make_metrics(names: Sequence[str] | None, data: Dataset) -> tuple[Metric, ...]:
    """Return the metrics called `names`; None: accuracy for labels, rmse for real numbers.

    Accuracy is always measured where samples have a label.

    Raises:
        ValueError: if a name is not valid, stands there twice, or does not fit the targets.
    """
    if names is None:
        names = ("rmse",) if data.num_classes is None else ("accuracy",)
    elif data.num_classes is not None and "accuracy" not in names:
        names = ("accuracy", *names)
    short = [column_name(name) for name in names]
    for name in names:
        if short.count(column_name(name)) > 1:
            raise ValueError(f"task.metrics = {list(names)}: {column_name(name)} stands there twice")
        needs_labels = name in ("accuracy", "balanced_accuracy", "perplexity")
        if name in METRICS and needs_labels != (data.num_classes is not None):
            kind = "real numbers" if data.num_classes is None else "labels"
            fitting = "rmse" if data.num_classes is None else "accuracy, balanced_accuracy, perplexity"
            raise ValueError(f"task.metrics = {name}: the targets are {kind}; valid: {fitting}, or your own")
    return tuple(Metric(column, METRICS.select(name, {})) for column, name in zip(short, names, strict=True))


def column_name(name: str) -> str:
    """Return what columns call a metric: of ``package.module:function`` the function."""
    return name.rpartition(":")[2].replace(".", "_").lower()


def lower_is_better(name: str) -> bool:
    """Return whether the worst device is the one with the highest value."""
    return name in _LOWER


def combined(name: str, values: Sequence[float], weights: Sequence[float]) -> float:
    """Return the metric over all samples from each device's value and number of samples."""
    kind, total = _COMBINATIONS.get(name, "mean"), math.fsum(weights)

    def mean(numbers: Sequence[float]) -> float:
        return math.fsum(number * weight for number, weight in zip(numbers, weights, strict=True)) / total

    if kind == "root_mean_square":
        return math.sqrt(mean([value * value for value in values]))
    if kind == "geometric":
        return math.exp(mean([math.log(value) if value > 0 else -math.inf for value in values]))
    return mean(values)


def _classes(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the class that is named for each target; of a single logit, whether it is positive."""
    if outputs.shape == targets.shape:
        return (outputs > 0).to(torch.int64)
    if outputs.ndim == targets.ndim + 1 and outputs.shape[-1] == 1:
        return (outputs.squeeze(-1) > 0).to(torch.int64)
    return class_second(outputs, targets).argmax(dim=1)


@METRICS.register("accuracy")
def accuracy(outputs: torch.Tensor, targets: torch.Tensor) -> float:
    """Share of right answers (positions of -100 do not count)."""
    counted = targets != -100
    right = int((_classes(outputs, targets) == targets).logical_and_(counted).sum())
    return right / max(int(counted.sum()), 1)


@METRICS.register("balanced_accuracy")
def balanced_accuracy(outputs: torch.Tensor, targets: torch.Tensor) -> float:
    """Mean, over the classes that are there, of the share of right answers."""
    named, truth = _classes(outputs, targets).flatten(), targets.flatten()
    named, truth = named[truth != -100], truth[truth != -100]
    shares = [float((named[truth == label] == label).double().mean()) for label in torch.unique(truth)]
    return math.fsum(shares) / max(len(shares), 1)


@METRICS.register("rmse")
def rmse(outputs: torch.Tensor, targets: torch.Tensor) -> float:
    """Root of the mean squared difference."""
    difference = outputs.reshape(targets.shape).to(torch.float64) - targets
    return math.sqrt(float(difference.square().mean()))


@METRICS.register("perplexity")
def perplexity(outputs: torch.Tensor, targets: torch.Tensor) -> float:
    """exp of the mean cross-entropy: among how many classes the answer is as good as a guess."""
    mean = float(cross_entropy(outputs, targets).to(torch.float64).mean())
    return math.exp(mean) if mean < 700.0 else math.inf
