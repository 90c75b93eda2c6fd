"""Qualitative claims against the numbers.

Two sides are compared on what they share: the same seeds (learning) or the same channel draws (studies),
as paired differences. A difference counts when its 95 % confidence interval (Student's t: 2 standard
errors of many draws, 4.3 of three seeds, 12.7 of two) excludes zero (the limit, where the claim names one).
The verdict is *confirmed*, *contradicted*, or *not decidable* when the numbers are too few or too close; the
numbers are given in every case.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from experiments.report.folders import Run
from experiments.report.metrics import (
    FloatVector,
    Unit,
    collect,
    key_label,
    matches,
    quantity,
    show,
    values_of,
)
from experiments.report.spec import Claim, Report

Verdict = Literal["confirmed", "contradicted", "not decidable"]
CONFIDENCE = 0.95
RANK_LIMIT = 0.7


@dataclass(frozen=True)
class Finding:
    """A claim with its verdict.

    Attributes:
        claim: the statement.
        verdict: confirmed, contradicted or not decidable.
        evidence: the numbers, as text.
    """

    claim: Claim
    verdict: Verdict
    evidence: str


@dataclass(frozen=True)
class Estimate:
    """A number with its standard error (infinite if it cannot be told) and count of samples."""

    value: float
    error: float
    count: int

    def verdict(self, least: float = -math.inf, most: float = math.inf) -> Verdict:
        """Place the number between the limits."""
        half = self.error and self.error * _errors_of_interval(self.count)
        low, high = self.value - half, self.value + half
        if least <= low and high <= most:
            return "confirmed"
        if high < least or low > most:
            return "contradicted"
        return "not decidable"


def _errors_of_interval(count: int) -> float:
    """Return how many standard errors the confidence interval reaches to either side."""
    from scipy.special import stdtrit

    return float(stdtrit(count - 1, (1 + CONFIDENCE) / 2)) if count > 1 else math.inf


def check_claims(report: Report, runs: Sequence[Run]) -> list[Finding]:
    """Check every claim of a report on its completed runs."""
    return [check(claim, runs, report.dimensions) for claim in report.claims]


def check(claim: Claim, runs: Sequence[Run], dimensions: Sequence[str]) -> Finding:
    """Check one claim; `dimensions` are the keys by which the two sides of a comparison are paired."""
    chosen = [run for run in runs if run.completed and matches(run, claim.where)]
    try:
        verdict, evidence = _CHECKS[claim.check](claim, chosen, dimensions)
    except _MissingError as missing:
        verdict, evidence = "not decidable", str(missing)
    return Finding(claim, verdict, evidence)


class _MissingError(Exception):
    """There are no numbers to check the claim on."""


def _numbers(
    claim: Claim, runs: Sequence[Run], side: Mapping[str, Any], dimensions: Sequence[str]
) -> dict[Unit, float]:
    found = collect(
        [run for run in runs if matches(run, side)], claim.y, [k for k in dimensions if k not in side]
    )
    if not found:
        named = ", ".join(f"{key} = {show(value)}" for key, value in {**claim.where, **side}.items())
        raise _MissingError(f"no completed run with {named or claim.y}")
    return found


def estimate(values: FloatVector, statistic: str = "mean") -> Estimate:
    """Return a statistic of independent samples with its standard error.

    The error of a standard deviation is that of normal samples. A single sample has no error to be told.
    """
    count = values.size
    spread = float(values.std(ddof=1)) if count > 1 else math.inf
    if statistic == "max":
        return Estimate(float(values.max()), 0.0, count)
    if statistic == "std":
        return Estimate(spread, spread / math.sqrt(2 * (count - 1)) if count > 1 else math.inf, count)
    return Estimate(float(values.mean()), spread / math.sqrt(count), count)


def difference(
    first: Mapping[Unit, float], second: Mapping[Unit, float], statistic: str = "mean"
) -> Estimate:
    """Return first - second: of the means over shared units if there are any, of the statistics otherwise.

    Raises:
        _MissingError: if the two share no unit although they are compared by mean.
    """
    if statistic != "mean":
        a, b = (estimate(np.array(list(side.values())), statistic) for side in (first, second))
        return Estimate(a.value - b.value, math.hypot(a.error, b.error), min(a.count, b.count))
    shared = [unit for unit in first if unit in second]
    if not shared:
        raise _MissingError("the two sides share no seed or draw")
    return estimate(np.array([first[unit] - second[unit] for unit in shared]))


def _text(column: str, value: Estimate, *, signed: bool = False) -> str:
    factor = quantity(column).scale
    unit = f" {quantity(column).unit}" if quantity(column).unit else ""
    known = math.isfinite(value.error) and value.error > 1e-6 * abs(value.value)
    error = f" ± {factor * value.error:.2g}" if known else ""
    sign = "+" if signed else ""
    return f"{format(factor * value.value, f'{sign}.4g')}{error}{unit}"


def _compare(claim: Claim, runs: Sequence[Run], dimensions: Sequence[str]) -> tuple[Verdict, str]:
    first = _numbers(claim, runs, claim.first, dimensions)
    second = _numbers(claim, runs, claim.second, dimensions)
    gap = difference(first, second, claim.statistic)
    if claim.relation == "at_least":
        verdict = gap.verdict(least=-claim.margin)
    elif claim.relation == "above":
        verdict = gap.verdict(least=np.nextafter(0, 1))
    else:
        verdict = gap.verdict(most=np.nextafter(0, -1))
    sides = " against ".join(
        f"{_text(claim.y, estimate(np.array(list(side.values())), claim.statistic))} ({_named(values)})"
        for side, values in ((first, claim.first), (second, claim.second))
    )
    return verdict, f"{sides}; difference {_text(claim.y, gap, signed=True)} over {_units(gap.count, runs)}"


def _ratio(claim: Claim, runs: Sequence[Run], dimensions: Sequence[str]) -> tuple[Verdict, str]:
    first = _numbers(claim, runs, claim.first, dimensions)
    second = _numbers(claim, runs, claim.second, dimensions)
    shared = [unit for unit in first if unit in second]
    if not shared:
        raise _MissingError("the two sides share no seed or draw")
    a, b = (np.array([side[unit] for unit in shared]) for side in (first, second))
    quotient = float(a.mean() / b.mean())
    # Linearised error of a quotient of means of paired samples.
    error = estimate((a - quotient * b) / b.mean()).error
    found = Estimate(quotient, error, len(shared))
    limits = _limits(claim.least, claim.most)
    return (
        found.verdict(claim.least, claim.most),
        f"{_named(claim.first)} over {_named(claim.second)}: ratio {quotient:.4g}"
        + (f" ± {error:.2g}" if math.isfinite(error) else "")
        + f" ({limits}), {_units(len(shared), runs)}",
    )


def _value(claim: Claim, runs: Sequence[Run], dimensions: Sequence[str]) -> tuple[Verdict, str]:
    numbers = _numbers(claim, runs, claim.first, dimensions)
    found = estimate(np.array(list(numbers.values())), claim.statistic)
    factor = quantity(claim.y).scale
    limits = _limits(claim.least * factor, claim.most * factor)
    return (
        found.verdict(claim.least, claim.most),
        f"{quantity(claim.y).label}: {_text(claim.y, found)} ({limits}), {_units(found.count, runs)}",
    )


def _monotone(claim: Claim, runs: Sequence[Run], dimensions: Sequence[str]) -> tuple[Verdict, str]:
    steps = [value for (value,) in values_of(runs, [claim.over])]
    if len(steps) < 2:
        raise _MissingError(f"fewer than two values of {claim.over}")
    sides = [_numbers(claim, runs, {claim.over: step}, dimensions) for step in steps]
    sign = 1.0 if claim.direction == "rising" else -1.0

    def advance(a: Mapping[Unit, float], b: Mapping[Unit, float]) -> Verdict:
        gap = difference(b, a, claim.statistic)
        return Estimate(sign * gap.value, gap.error, gap.count).verdict(least=np.nextafter(0, 1))

    whole = advance(sides[0], sides[-1])
    single = [advance(a, b) for a, b in pairwise(sides)]
    if whole == "contradicted" or "contradicted" in single:
        verdict: Verdict = "contradicted"
    else:
        verdict = whole
    shown = ", ".join(
        f"{show(step)}: {_text(claim.y, estimate(np.array(list(side.values())), claim.statistic))}"
        for step, side in zip(steps, sides, strict=True)
    )
    against = sum(step == "contradicted" for step in single)
    note = f"; {against} step(s) go the other way" if against else ""
    return verdict, f"{key_label(claim.over)} → {shown}{note}; {_units(len(sides[0]), runs)} each"


def _crossing(claim: Claim, runs: Sequence[Run], dimensions: Sequence[str]) -> tuple[Verdict, str]:
    levels = (0.1, 0.5, 0.9)
    first, second = (
        np.quantile(list(_numbers(claim, runs, side, dimensions).values()), levels)
        for side in (claim.first, claim.second)
    )
    gap = (first - second) / second
    clear = np.abs(gap) > 0.01
    if clear[0] and clear[2]:
        verdict: Verdict = "confirmed" if gap[0] * gap[2] < 0 else "contradicted"
    else:
        verdict = "not decidable"
    shown = ", ".join(
        f"{level:.0%}: {a:.3g} / {b:.3g}" for level, a, b in zip(levels, first, second, strict=True)
    )
    return verdict, f"quantiles of {_named(claim.first)} / {_named(claim.second)}: {shown}"


def _correlation(claim: Claim, runs: Sequence[Run], dimensions: Sequence[str]) -> tuple[Verdict, str]:
    from scipy.stats import spearmanr

    del dimensions
    points = []
    for group in values_of(runs, claim.groups):
        side = dict(zip(claim.groups, group, strict=True))
        members = [run for run in runs if matches(run, side)]
        y, x = collect(members, claim.y, ()), collect(members, claim.over, ())
        if x and y:
            points.append((np.mean(list(x.values())), np.mean(list(y.values())), group))
    if len(points) < 4:
        raise _MissingError(f"{len(points)} groups; a rank correlation needs at least 4")
    rank = float(spearmanr([p[0] for p in points], [p[1] for p in points]).statistic)
    sign = 1.0 if claim.direction == "rising" else -1.0
    if sign * rank >= RANK_LIMIT:
        verdict: Verdict = "confirmed"
    else:
        verdict = "contradicted" if sign * rank <= -RANK_LIMIT else "not decidable"
    shown = ", ".join(f"{show(group[0])} ({x:.3g}, {y:.3g})" for x, y, group in sorted(points))
    return verdict, (
        f"rank correlation {rank:+.2f} over {len(points)} groups (decided from ±{RANK_LIMIT}); "
        f"({claim.over}, {claim.y}): {shown}"
    )


_Check = Callable[[Claim, Sequence[Run], Sequence[str]], tuple[Verdict, str]]
_CHECKS: dict[str, _Check] = {
    "compare": _compare,
    "ratio": _ratio,
    "value": _value,
    "monotone": _monotone,
    "crossing": _crossing,
    "correlation": _correlation,
}


def _named(values: Mapping[str, Any]) -> str:
    return ", ".join(
        str(value) if isinstance(value, str) else f"{key_label(key)} {show(value)}"
        for key, value in values.items()
    )


def _limits(least: float, most: float) -> str:
    if math.isinf(most):
        return f"claimed: at least {least:.4g}"
    if math.isinf(least):
        return f"claimed: at most {most:.4g}"
    return f"claimed: {least:.4g} to {most:.4g}"


def _units(count: int, runs: Sequence[Run]) -> str:
    name = "draw" if runs and runs[0].is_study else "run"
    return f"{count} {name}{'' if count == 1 else 's'}"
