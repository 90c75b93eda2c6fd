"""Qualitative claims against the numbers.

Two sides are compared on what they share: the same seeds (learning) or the same channel draws (studies).
One seed or one draw is one sample, whatever else was swept with it: draws for several numbers of users or
antennas come from the same channels, so that their differences are averaged, not counted as samples.
Every check ends in two p-values (`experiments.report.significance`); those of all claims of a page are
corrected together (Holm), and at most 5 % of pages hold a verdict that is false. The verdict is *confirmed*,
*contradicted*, or *not decidable* when the numbers are too few or too close.

A claim that holds by construction (a plan meets its own threshold) is no finding: it is marked in the
yaml, counted apart, and if its numbers disagree the verdict is *fault*, of the program and not of the claim.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from experiments.report.folders import Run
from experiments.report.metrics import (
    Unit,
    collect,
    key_label,
    limits_text,
    matches,
    named,
    plus_minus,
    quantity,
    show,
    values_of,
    with_unit,
)
from experiments.report.pairing import (
    MissingNumbersError,
    error_of,
    paired,
    scale_of,
    span_of_difference,
    statistic_of,
)
from experiments.report.significance import (
    LEVEL,
    NOTHING,
    Evidence,
    above,
    all_of,
    between,
    crossing,
    holm,
    rank_correlation,
    ratio_between,
    rising,
)
from experiments.report.spec import Claim, Report

Verdict = Literal["confirmed", "contradicted", "not decidable", "by construction", "fault"]
_TOLERANCE = (
    1e-6  # relative; how far solvers of the same problem may differ where a claim holds by construction
)


@dataclass(frozen=True)
class Finding:
    """A claim with its verdict.

    Attributes:
        claim: the statement.
        verdict: see the module's docstring.
        evidence: the numbers, as text.
        p: p-value, corrected over all claims that were decided together; None without numbers or by
            construction.
    """

    claim: Claim
    verdict: Verdict
    evidence: str
    p: float | None = None


@dataclass(frozen=True)
class _Result:
    """What the numbers say of a claim: p-values, whether they agree with it exactly, and as text."""

    evidence: Evidence
    agrees: bool
    text: str


@dataclass(frozen=True)
class Assessment:
    """A claim with its numbers, before the correction over all claims; `result` is None without numbers."""

    claim: Claim
    result: _Result | None
    missing: str = ""


def check_pages(pages: Sequence[tuple[Report, Sequence[Run]]]) -> list[list[Finding]]:
    """Check all claims of all experiments that are shown on one page, corrected over all of them."""
    found = iter(
        decide([assess(claim, runs, report.dimensions) for report, runs in pages for claim in report.claims])
    )
    return [[next(found) for _ in report.claims] for report, _ in pages]


def check_claims(report: Report, runs: Sequence[Run]) -> list[Finding]:
    """Check every claim of a report on its completed runs, corrected over these claims."""
    return check_pages([(report, runs)])[0]


def check(claim: Claim, runs: Sequence[Run], dimensions: Sequence[str]) -> Finding:
    """Check one claim alone; `dimensions` are the keys by which the two sides of a comparison are paired."""
    return decide([assess(claim, runs, dimensions)])[0]


def decide(assessments: Sequence[Assessment]) -> list[Finding]:
    """Give verdicts, with at most 5 % chance that any of them is false."""
    tested = [a.result is not None and not a.claim.by_construction for a in assessments]
    corrected = iter(
        holm([a.result.evidence.p for a, t in zip(assessments, tested, strict=True) if t and a.result])
    )
    findings = []
    for assessment, is_tested in zip(assessments, tested, strict=True):
        claim, result = assessment.claim, assessment.result
        if result is None:
            findings.append(Finding(claim, "not decidable", assessment.missing))
        elif is_tested:
            p = next(corrected)
            side = result.evidence.against_false < result.evidence.against_true
            verdict: Verdict = "not decidable" if p > LEVEL else "confirmed" if side else "contradicted"
            findings.append(Finding(claim, verdict, result.text, p))
        else:
            reason = f"{claim.by_construction}. {result.text}"
            findings.append(Finding(claim, "by construction" if result.agrees else "fault", reason))
    return findings


def assess(claim: Claim, runs: Sequence[Run], dimensions: Sequence[str]) -> Assessment:
    """Put one claim to its test, at each point if it says "everywhere"."""
    chosen = [run for run in runs if run.completed and matches(run, claim.where)]
    try:
        if not claim.everywhere:
            return Assessment(claim, _CHECKS[claim.check](claim, chosen, dimensions))
        return Assessment(claim, _everywhere(claim, chosen, dimensions))
    except MissingNumbersError as missing:
        return Assessment(claim, None, str(missing))


def _everywhere(claim: Claim, runs: Sequence[Run], dimensions: Sequence[str]) -> _Result:
    """Return the result at every point together: a mean over the points could hide one that disagrees."""
    found = []
    for values in values_of(runs, claim.everywhere):
        point = dict(zip(claim.everywhere, values, strict=True))
        here = replace(claim, where={**claim.where, **point})
        members = [run for run in runs if matches(run, point)]
        found.append((named(point), _CHECKS[claim.check](here, members, dimensions)))
    if not found:
        raise MissingNumbersError(f"no completed run with {named(claim.where) or claim.y}")
    weakest, result = max(found, key=lambda item: (not item[1].agrees, item[1].evidence.against_false))
    return _Result(
        all_of([item.evidence for _, item in found]),
        all(item.agrees for _, item in found),
        f"at each of {len(found)} points; least clear at {weakest}: {result.text}",
    )


def _numbers(
    claim: Claim, runs: Sequence[Run], side: Mapping[str, Any], dimensions: Sequence[str]
) -> dict[Unit, float]:
    fixed = {*claim.first, *claim.second, *side}
    found = collect(
        [run for run in runs if matches(run, side)],
        claim.y,
        [key for key in dimensions if key not in fixed],
        reduce=claim.statistic if claim.statistic in ("max", "last") else None,
    )
    if not found:
        wanted = ", ".join(f"{key} = {show(value)}" for key, value in {**claim.where, **side}.items())
        raise MissingNumbersError(f"no completed run with {wanted or claim.y}")
    return found


def _compare(claim: Claim, runs: Sequence[Run], dimensions: Sequence[str]) -> _Result:
    numbers = [_numbers(claim, runs, side, dimensions) for side in (claim.first, claim.second)]
    samples = paired(numbers, runs, claim.statistic)
    sign = -1.0 if claim.relation == "below" else 1.0
    gap = samples.sides[0] - samples.sides[1]
    scale = scale_of(*samples.sides)
    evidence = above(
        sign * gap,
        -claim.margin,
        strict=claim.relation != "at_least",
        span=span_of_difference(claim.y),
        scale=scale,
    )
    lowest = float((sign * (samples.each[0] - samples.each[1])).min())
    agrees = lowest >= -claim.margin - _TOLERANCE * scale_of(*samples.each)
    sides = " against ".join(
        f"{_side_text(claim, side, runs)} ({named(values)})"
        for side, values in zip(numbers, (claim.first, claim.second), strict=True)
    )
    what = "difference of the mean distances from the median" if claim.statistic == "std" else "difference"
    difference = with_unit(claim.y, float(gap.mean()), error_of(gap), signed=True)
    return _Result(evidence, agrees, f"{sides}; {what} {difference} over {samples.text}")


def _side_text(claim: Claim, numbers: Mapping[Unit, float], runs: Sequence[Run]) -> str:
    """Return one side's number with its standard error."""
    values = (
        np.array(list(numbers.values())) if claim.statistic == "std" else paired([numbers], runs).sides[0]
    )
    return with_unit(claim.y, statistic_of(values, claim.statistic), error_of(values, claim.statistic))


def _ratio(claim: Claim, runs: Sequence[Run], dimensions: Sequence[str]) -> _Result:
    numbers = [_numbers(claim, runs, side, dimensions) for side in (claim.first, claim.second)]
    samples = paired(numbers, runs)
    a, b = samples.sides
    if b.mean() == 0:
        raise MissingNumbersError(f"the mean of {named(claim.second)} is 0: no ratio")
    quotient = float(a.mean() / b.mean())
    # Linearised error of a quotient of means of paired samples; for the reader, the test needs none.
    error = error_of((a - quotient * b) / b.mean())
    evidence = ratio_between(a, b, claim.least, claim.most, span=quantity(claim.y).span)
    limits = limits_text(claim.least, claim.most)
    return _Result(
        evidence,
        _inside(quotient, claim, evidence, a.size),
        f"{named(claim.first)} over {named(claim.second)}: ratio {plus_minus(quotient, error)} "
        f"({limits}), {samples.text}",
    )


def _value(claim: Claim, runs: Sequence[Run], dimensions: Sequence[str]) -> _Result:
    numbers = _numbers(claim, runs, claim.first, dimensions)
    samples = paired([numbers], runs)
    values = samples.sides[0]
    factor = quantity(claim.y).scale
    limits = limits_text(claim.least * factor, claim.most * factor)
    if claim.statistic == "max":
        most = float(samples.each[0].max())
        return _Result(
            _evidence_of_maximum(most, claim),
            claim.least <= most <= claim.most,
            f"largest {quantity(claim.y).label}: {with_unit(claim.y, most)} ({limits}), {samples.text}",
        )
    mean = float(values.mean())
    evidence = between(values, claim.least, claim.most, span=quantity(claim.y).span)
    return _Result(
        evidence,
        _inside(mean, claim, evidence, values.size),
        f"{quantity(claim.y).label}: {with_unit(claim.y, mean, error_of(values))} ({limits}), {samples.text}",
    )


def _evidence_of_maximum(found: float, claim: Claim) -> Evidence:
    """One counterexample contradicts; no number of samples confirms that nothing larger exists."""
    if found > claim.most:
        return Evidence(1.0, 0.0)
    return Evidence(0.0, 1.0) if math.isinf(claim.most) and found >= claim.least else NOTHING


def _inside(value: float, claim: Claim, evidence: Evidence, count: int) -> bool:
    """Return whether a number agrees with its limits, or misses them by no more than few samples explain."""
    if claim.least <= value <= claim.most:
        return True
    return count > 1 and evidence.against_true > LEVEL / 2


def _monotone(claim: Claim, runs: Sequence[Run], dimensions: Sequence[str]) -> _Result:
    places = [value for (value,) in values_of(runs, [claim.over])]
    if len(places) < 2:
        raise MissingNumbersError(f"fewer than two values of {claim.over}")
    numbers = [
        _numbers(claim, runs, {claim.over: place}, [key for key in dimensions if key != claim.over])
        for place in places
    ]
    samples = paired(numbers, runs, claim.statistic)
    sign = 1.0 if claim.direction == "rising" else -1.0
    steps = [sign * (after - before) for before, after in pairwise(samples.sides)]
    evidence = rising(steps, span=span_of_difference(claim.y), scale=scale_of(*samples.sides))
    lowest = min(float((sign * (after - before)).min()) for before, after in pairwise(samples.each))
    agrees = lowest >= -_TOLERANCE * scale_of(*samples.each)
    shown = ", ".join(
        f"{show(place, claim.over)}: {_side_text(claim, side, runs)}"
        for place, side in zip(places, numbers, strict=True)
    )
    against = sum(float(step.mean()) <= 0 for step in steps)
    note = f"; {against} of {len(steps)} steps go the other way" if against else ""
    return _Result(evidence, agrees, f"{key_label(claim.over)} → {shown}{note}; {samples.text} each")


def _crossing(claim: Claim, runs: Sequence[Run], dimensions: Sequence[str]) -> _Result:
    sides = [_numbers(claim, runs, side, dimensions) for side in (claim.first, claim.second)]
    samples = paired(sides, runs)
    if samples.each[0].size > samples.sides[0].size:
        raise MissingNumbersError(
            "several settings are swept: `where` or `everywhere` must name one distribution"
        )
    first, second = samples.sides
    levels = (0.1, 0.5, 0.9)
    shown = ", ".join(
        f"{level:.0%}: {a:.3g} / {b:.3g}"
        for level, a, b in zip(levels, np.quantile(first, levels), np.quantile(second, levels), strict=True)
    )
    both = f"{named(claim.first)} / {named(claim.second)}"
    return _Result(crossing(first, second), False, f"quantiles of {both}: {shown}; {samples.text}")


def _correlation(claim: Claim, runs: Sequence[Run], dimensions: Sequence[str]) -> _Result:
    del dimensions
    points = []
    for group in values_of(runs, claim.groups):
        members = [run for run in runs if matches(run, dict(zip(claim.groups, group, strict=True)))]
        y, x = collect(members, claim.y, ()), collect(members, claim.over, ())
        if x and y:
            points.append((float(np.mean(list(x.values()))), float(np.mean(list(y.values()))), group))
    if len(points) < 4:
        raise MissingNumbersError(f"{len(points)} groups; a rank correlation needs at least 4")
    sign = 1.0 if claim.direction == "rising" else -1.0
    x_values, y_values = (np.array([point[i] for point in points], dtype=float) for i in (0, 1))
    rank, evidence = rank_correlation(x_values, sign * y_values)
    shown = ", ".join(
        f"{show(group[0], claim.groups[0])} ({x:.3g}, {y:.3g})" for x, y, group in sorted(points)
    )
    return _Result(
        evidence,
        False,
        f"rank correlation {sign * rank:+.2f} over {len(points)} groups; "
        f"({quantity(claim.over).name}, {quantity(claim.y).name}): {shown}",
    )


_Check = Callable[[Claim, Sequence[Run], Sequence[str]], _Result]
_CHECKS: dict[str, _Check] = {
    "compare": _compare,
    "ratio": _ratio,
    "value": _value,
    "monotone": _monotone,
    "crossing": _crossing,
    "correlation": _correlation,
}
