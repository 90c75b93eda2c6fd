"""Tests behind the verdicts: arrays in, two p-values out.

Every check of a claim ends in an `Evidence`: the p-value against "the claim is false" and that against "the
claim is true". Compound claims are built from simple ones: "all of these hold" is confirmed when every part
is (intersection-union: the largest p-value) and contradicted when one part is (union-intersection: the
smallest, times their number). `holm` corrects over all claims of a page. The error rates of every test
here are simulated in tests/experiments/test_error_rates.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import numpy.typing as npt

FloatVector = npt.NDArray[np.float64]
Span = tuple[float, float]

LEVEL = 0.05  # of all verdicts of a page together
_ROUNDING = 1e-9  # relative; a smaller spread is that of the arithmetic, not of the samples
_SHOWS_SKEWNESS = 10  # samples
_EXACT_PERMUTATIONS = 8  # groups whose orders are counted one by one


@dataclass(frozen=True)
class Evidence:
    """How well the numbers speak for and against a claim.

    Attributes:
        against_false: p-value of the hypothesis that the claim is false; small: confirmed.
        against_true: p-value of the hypothesis that the claim is true; small: contradicted.
    """

    against_false: float
    against_true: float

    @property
    def p(self) -> float:
        """Two-sided p-value, for the correction over many claims."""
        return min(1.0, 2 * min(self.against_false, self.against_true))


NOTHING = Evidence(1.0, 1.0)


def all_of(parts: Sequence[Evidence]) -> Evidence:
    """Return the evidence for "every part holds"."""
    if not parts:
        return NOTHING
    return Evidence(
        max(part.against_false for part in parts),
        min(1.0, len(parts) * min(part.against_true for part in parts)),
    )


def above(
    values: FloatVector,
    limit: float = 0.0,
    *,
    strict: bool = True,
    span: Span | None = None,
    scale: float = 0.0,
) -> Evidence:
    """Test "the mean is above `limit`" (at least, if not strict) by Student's t.

    Samples without spread are a number that does not depend on chance, and decide; except where a value can
    repeat by chance (accuracies, shares, counts: those with a `span`). Then the largest chance that the
    samples all agree, under any law on the span that has the mean of the hypothesis, is the p-value.

    Args:
        values: (n,) independent samples.
        limit: the claim's limit.
        strict: whether equality makes the claim false.
        span: the values that a sample can take, where they can repeat by chance.
        scale: size of the numbers from which the samples were computed, for rounding.
    """
    count = values.size
    if count < 2:
        return NOTHING
    mean = float(values.mean())
    error = float(values.std(ddof=1)) / math.sqrt(count)
    rounding = _ROUNDING * max(abs(limit), float(np.abs(values).max()), scale)
    if error > rounding:
        return _student(values, (mean - limit) / error)
    gap = 0.0 if abs(mean - limit) <= rounding else mean - limit
    if span is not None:
        low, high = span
        down = gap / (mean - low) if mean > low else 0.0
        up = -gap / (high - mean) if high > mean else 0.0
        return Evidence(
            1.0 if gap <= 0 else (1 - min(1.0, down)) ** count,
            1.0 if gap >= 0 else (1 - min(1.0, up)) ** count,
        )
    holds = gap > 0 or (gap == 0 and not strict)
    return Evidence(0.0, 1.0) if holds else Evidence(1.0, 0.0)


def _student(values: FloatVector, t: float) -> Evidence:
    """Return the p-values of Student's t, also after Hall's correction for skewed samples if there are ten.

    The larger one counts. Skewed samples (errors, waiting times) make the plain test wrong in one direction
    far too often: 10 % instead of 2.5 % with 40 log-normal samples. Fewer than ten show no skewness; the test
    then rests on the samples being close to normal, as means over a test set are.

    Reference: P. Hall, "On the removal of skewness by transformation", J. R. Stat. Soc. B 54 (1992).
    """
    from scipy.special import stdtr

    count = values.size
    scores = [t]
    if count >= _SHOWS_SKEWNESS:
        centred = values - values.mean()
        skewness = float(np.mean(centred**3)) / float(np.mean(centred**2)) ** 1.5
        scores.append(
            t + skewness * (2 * t**2 + 1) / (6 * math.sqrt(count)) + skewness**2 * t**3 / (27 * count)
        )
    return Evidence(
        float(max(stdtr(count - 1, -score) for score in scores)),
        float(max(stdtr(count - 1, score) for score in scores)),
    )


def between(
    values: FloatVector, least: float, most: float, *, span: Span | None = None, scale: float = 0.0
) -> Evidence:
    """Test "the mean lies between `least` and `most`" (each may be infinite): one t-test per limit."""
    parts = []
    if math.isfinite(least):
        parts.append(above(values, least, strict=False, span=span, scale=scale))
    if math.isfinite(most):
        turned = (-span[1], -span[0]) if span else None
        parts.append(above(-values, -most, strict=False, span=turned, scale=scale))
    return all_of(parts)


def ratio_between(
    first: FloatVector, second: FloatVector, least: float, most: float, *, span: Span | None = None
) -> Evidence:
    """Test "mean(first) / mean(second) lies between the limits" for paired samples.

    Fieller's way: the sign of mean(first - limit x second), which is exact for normal samples of any number,
    where the error of a quotient is not.
    """
    sign = 1.0 if second.mean() > 0 else -1.0
    scale = float(max(np.abs(first).max(initial=0.0), np.abs(second).max(initial=0.0)))
    parts = []
    for limit, side in ((least, sign), (most, -sign)):
        if math.isfinite(limit):
            reach = (span[1] - span[0]) * (1 + abs(limit)) if span else 0.0
            parts.append(
                above(
                    side * (first - limit * second),
                    strict=False,
                    span=(-reach, reach) if span else None,
                    scale=scale,
                )
            )
    return all_of(parts)


def rising(steps: Sequence[FloatVector], *, span: Span | None = None, scale: float = 0.0) -> Evidence:
    """Test "the means rise from each value to the next".

    Args:
        steps: one vector of paired differences per step, value after minus value before.
        span: of a difference, as in `above`.
        scale: as in `above`.

    Confirmed only if every single step rises; contradicted if one step falls, or the last value lies below
    the first.
    """
    parts = [above(step, span=span, scale=scale) for step in steps]
    found = all_of(parts)
    if len(steps) > 1 and len({step.size for step in steps}) == 1:
        reach = (len(steps) * span[0], len(steps) * span[1]) if span else None
        whole = above(np.sum(steps, axis=0), span=reach, scale=scale)
        found = Evidence(found.against_false, all_of([*parts, whole]).against_true)
    return found


def deviations(values: FloatVector) -> FloatVector:
    """Return the distances from the median: their mean is the spread that `Brown and Forsythe` compare.

    With an odd number of samples one distance is 0 by definition; where that could matter (few samples) it
    makes the test more careful, not less.
    """
    return np.abs(values - np.median(values))


def crossing(first: FloatVector, second: FloatVector) -> Evidence:
    """Test "the distribution functions cross between the 10 % and the 90 % point of all samples".

    At each of the two points, the pairs of which exactly one sample lies below it show which function is
    higher there: an exact sign test (McNemar). The functions cross if one is higher at one point and the
    other at the other; they do not if the same is higher at both.

    Args:
        first, second: (n,) paired samples.
    """
    both = np.concatenate((first, second))
    sides = []
    for level in (0.1, 0.9):
        point = np.quantile(both, level)
        below, other = first <= point, second <= point
        sides.append(_signs(int((below & ~other).sum()), int((~below & other).sum())))
    (low_first, low_second), (high_first, high_second) = sides
    # Each verdict has two forms, of which one suffices.
    crosses = min(max(low_first, high_second), max(low_second, high_first))
    same = min(max(low_first, high_first), max(low_second, high_second))
    return Evidence(min(1.0, 2 * crosses), min(1.0, 2 * same))


def _signs(mine: int, theirs: int) -> tuple[float, float]:
    """Return the one-sided p-values of a sign test: that the first, that the second is the more frequent."""
    from scipy.special import bdtr

    total = mine + theirs
    return float(bdtr(theirs, total, 0.5)), float(bdtr(mine, total, 0.5))


def rank_correlation(x: FloatVector, y: FloatVector) -> tuple[float, Evidence]:
    """Return Spearman's rank correlation, and the test "it is positive".

    Up to eight groups all orders are counted; beyond, Student's approximation serves.

    Args:
        x, y: (g,) one number per group.
    """
    from scipy.special import stdtr
    from scipy.stats import rankdata

    a, b = (rankdata(side) - (side.size + 1) / 2 for side in (x, y))
    norm = math.sqrt(float(a @ a) * float(b @ b))
    if norm == 0 or a.size < 3:
        return math.nan, NOTHING
    rank = float(a @ b) / norm
    if a.size <= _EXACT_PERMUTATIONS:
        orders = np.array(list(permutations(range(a.size))))
        chance = b[orders] @ a / norm
        found = Evidence(float(np.mean(chance >= rank - 1e-12)), float(np.mean(chance <= rank + 1e-12)))
        return rank, found
    free = a.size - 2
    t = rank * math.sqrt(free / max(1e-300, 1 - rank**2))
    return rank, Evidence(float(stdtr(free, -t)), float(stdtr(free, t)))


def holm(p: Sequence[float]) -> list[float]:
    """Return p-values corrected by Holm's step-down method: all at most 0.05 are false with 5 % at most."""
    order = np.argsort(p, kind="stable")
    corrected = [1.0] * len(p)
    running = 0.0
    for place, index in enumerate(order):
        running = max(running, min(1.0, (len(p) - place) * p[index]))
        corrected[index] = running
    return corrected
