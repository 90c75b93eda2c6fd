"""The page of runs whose configuration says nothing of it: what the papers ask, of whatever was swept.

Accuracy and loss against rounds, emulated seconds, bits and joules; the final value against each swept
number; seconds, bits and joules to a target accuracy; the devices. What the runs do not have is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from experiments.report.folders import Run, differing
from experiments.report.metrics import rounds, to_target, values_of
from experiments.report.spec import Panel, Report, Spread
from records.summary import ACCURACY_LEVELS

LEARNING, SPENT, AT_THE_END, TO_TARGET, DEVICES, DRAWS = (
    "Learning",
    "What it costs",
    "At the end",
    "To a target accuracy",
    "Devices",
    "Draws",
)
_ALONG = ("", "elapsed_s", "sent_bits", "spent_j")  # what learning is drawn against
_BY_ROUND = (
    "latency_s",
    "energy_j",
    "pruning_ratio_mean",
    "normalised_mse",
    "mse_realised",
    "starved",
    "uncovered_share",
)
_WIDE = 30.0  # of swept numbers: the largest over the smallest, from which an axis is logarithmic
_MOST_COLUMNS = 4  # of a study
_LEAST_DRAWS = 10  # of a distribution


def default_report(runs: Sequence[Run], *, spread: Spread = "auto", target: float | None = None) -> Report:
    """Return the page of these runs.

    Args:
        runs: finished or not.
        spread: what bands and error bars are.
        target: accuracy; None: the highest common level that at least half of the runs reach.
    """
    keys = _shortest(runs, differing(runs))
    learning = [run for run in runs if not run.is_study and run.completed]
    studies = [run for run in runs if run.is_study and run.completed]
    target = target if target is not None else common_target(learning)
    panels = [*_learning(learning, keys, target), *_studies(studies, keys)]
    return Report("runs", "Runs", tuple(keys), tuple(panels), spread=spread, target=target)


def common_target(runs: Sequence[Run]) -> float | None:
    """Return the highest of the usual accuracy levels that at least half of the runs reach."""
    for level in sorted(ACCURACY_LEVELS, reverse=True):
        reached = sum(to_target(run, "round", level) is not None for run in runs)
        if reached and 2 * reached >= len(runs):
            return level
    return None


def _learning(runs: Sequence[Run], keys: Sequence[str], target: float | None) -> Iterator[Panel]:
    if not runs:
        return
    metrics = _metrics(runs)
    for y in (*metrics, "loss_mean"):
        for x in _ALONG:
            if not x or _known(runs, x):
                yield Panel(kind="curve", x=x, y=y, group=LEARNING)
    for y in _BY_ROUND:
        if _known(runs, y) and (y not in ("starved", "uncovered_share") or _ever(runs, y)):
            yield Panel(kind="curve", y=y, log=y in ("mse_realised", "normalised_mse"), group=SPENT)
    for y in (*metrics, "loss_mean"):
        yield from _against(runs, keys, y, AT_THE_END)
    if target is not None:
        for y in ("round", *_ALONG[1:]):
            if _known(runs, y):
                yield from _against(runs, keys, y, TO_TARGET, target)
    if "accuracy_mean" in metrics:
        yield Panel(kind="devices", y="test_accuracy", group=DEVICES)
        yield Panel(kind="heat", y="test_accuracy", group=DEVICES)
    yield Panel(kind="heat", y="starved", group=DEVICES)


def _studies(runs: Sequence[Run], keys: Sequence[str]) -> Iterator[Panel]:
    if not runs:
        return
    columns = [name for name in runs[0].header("draws.csv") if name != "draw"][:_MOST_COLUMNS]
    for y in columns:
        yield from _against(runs, keys, y, DRAWS)
    if columns and len(runs[0].table("draws.csv")) >= _LEAST_DRAWS:
        yield Panel(kind="cdf", x=columns[0], group=DRAWS)


def _against(
    runs: Sequence[Run], keys: Sequence[str], y: str, group: str, target: float | None = None
) -> Iterator[Panel]:
    """One panel for each swept number; where there is none, bars for the first name."""
    numeric = [key for key in keys if _is_number(runs, key)]
    for key in numeric:
        values = [value for (value,) in values_of(runs, [key])]
        yield Panel(
            kind="final",
            x=key,
            y=y,
            series=[other for other in keys if other != key],
            logx=len(values) > 2 and min(values) > 0 and max(values) / min(values) >= _WIDE,
            target=target,
            group=group,
            title=_of_target(y, target),
        )
    if keys and not numeric:
        yield Panel(
            kind="bar",
            x=keys[0],
            y=y,
            series=keys[1:],
            target=target,
            group=group,
            title=_of_target(y, target),
        )


def _of_target(y: str, target: float | None) -> str:
    if target is None:
        return ""
    what = {"round": "rounds", "elapsed_s": "emulated seconds", "sent_bits": "bits", "spent_j": "joules"}[y]
    return f"{what} to an accuracy of {target:g}"


def _is_number(runs: Sequence[Run], key: str) -> bool:
    values = [run.config.get(key) for run in runs]
    numbers = {value for value in values if isinstance(value, int | float) and not isinstance(value, bool)}
    return len(numbers) > 1 and all(type(value) in (int, float) for value in values)


def _metrics(runs: Sequence[Run]) -> list[str]:
    """Return the columns of what the devices' tests report: each has a mean and a worst."""
    header = dict.fromkeys(column for run in runs for column in run.header("rounds.csv"))
    means = [name for name in header if name.endswith("_mean") and f"{name[:-5]}_worst" in header]
    return [name for name in means if _known(runs, name)]


def _known(runs: Sequence[Run], column: str) -> bool:
    return any(rounds(run, column)[1].size for run in runs)


def _ever(runs: Sequence[Run], column: str) -> bool:
    return any(rounds(run, column)[1].any() for run in runs)


def _shortest(runs: Sequence[Run], keys: Sequence[str]) -> list[str]:
    """Drop keys that tell no more runs apart than those before them (a scheme changes several at once)."""
    chosen: list[str] = []
    told_apart = 1
    ordered = sorted(keys, key=lambda key: not key.endswith((".name", ".method")))
    for key in ordered:
        count = len({tuple(str(run.config.get(k)) for k in [*chosen, key]) for run in runs})
        if count > told_apart:
            chosen, told_apart = [*chosen, key], count
    return chosen
