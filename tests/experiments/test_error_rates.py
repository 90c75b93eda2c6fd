"""A test of the tests: verdicts on numbers whose truth is known are false at most 5 % of the time, each way.

Three seeds of a learning run and 40 draws of a study, from the smallest experiment that can be told apart to
equal distributions. Seeded; every rate comes from several hundred made-up experiments.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.report.claims import check, check_claims
from experiments.report.folders import Run
from experiments.report.spec import Claim, Report

DIMENSIONS = ("scheme.name", "fleet.num_devices")
COUNTS = (3, 40)
LIMIT = 0.05


def runs_of(settings, count):
    """Return runs from (configuration, (count,) numbers): one draw each of a study, or one seed each."""
    runs = []
    for i, (given, values) in enumerate(settings):
        if count == 40:
            rows = [{"draw": str(d), "y": repr(float(v))} for d, v in enumerate(values, start=1)]
            config = {"seed": 1, "study.name": "made up", **given}
            runs.append(Run(Path(f"{i}"), "", config, {}, {"status": "completed"}, {"draws.csv": rows}))
            continue
        for seed, value in enumerate(values):
            rows = [{"round": "1", "y": repr(float(value))}]
            tables = {"rounds.csv": rows}
            runs.append(
                Run(Path(f"{i}-{seed}"), "", {"seed": seed, **given}, {}, {"status": "completed"}, tables)
            )
    return runs


def rates(make, claim, count, repeats=300, seed=7):
    """Return how often the claim is confirmed and contradicted."""
    rng = np.random.default_rng(seed)
    verdicts = [check(claim, runs_of(make(rng, count), count), DIMENSIONS).verdict for _ in range(repeats)]
    return verdicts.count("confirmed") / repeats, verdicts.count("contradicted") / repeats


def along(*means, deviation=1.0):
    """Made-up numbers whose means follow the number of users."""
    return lambda rng, n: [
        ({"fleet.num_devices": 20 * (i + 1)}, mean + deviation * rng.standard_normal(n))
        for i, mean in enumerate(means)
    ]


def two(first, second):
    """Made-up numbers of two schemes."""
    return lambda rng, n: [
        ({"scheme.name": "ours"}, first(rng, n)),
        ({"scheme.name": "theirs"}, second(rng, n)),
    ]


def normal(mean=0.0, deviation=1.0):
    return lambda rng, n: mean + deviation * rng.standard_normal(n)


def skewed(shape):
    """Numbers of mean 1 that lean to the left: the larger the shape, the less."""
    return lambda rng, n: rng.gamma(shape, 1 / shape, n)


SIDES: dict[str, Any] = {"first": {"scheme.name": "ours"}, "second": {"scheme.name": "theirs"}}
RISING = Claim(text="", check="monotone", y="y", over="fleet.num_devices")
SPREAD = Claim(text="", check="monotone", y="y", over="fleet.num_devices", statistic="std")
ABOVE = Claim(text="", check="compare", y="y", relation="above", **SIDES)
WITHIN_ONE = Claim(text="", check="compare", y="y", relation="at_least", margin=1.0, **SIDES)
WIDER = Claim(text="", check="compare", y="y", relation="above", statistic="std", **SIDES)
TWICE = Claim(text="", check="ratio", y="y", least=1.9, most=2.1, **SIDES)
ONE = Claim(text="", check="value", y="y", least=1.0, most=3.0)
CROSS = Claim(text="", check="crossing", y="y", **SIDES)

# What the truth is -> the verdicts that would be false.
FALSE_VERDICTS = [
    pytest.param(along(0, 10, 8), RISING, "confirmed", id="rise and fall"),
    pytest.param(along(0, 10, 10, 10), RISING, "both", id="rise and flat"),
    pytest.param(along(0, 0, 0, 0, 0), RISING, "both", id="flat"),
    pytest.param(along(0, 0.5, 1, 1.5), RISING, "contradicted", id="slow rise"),
    pytest.param(along(0, 0, 0, 0), SPREAD, "both", id="equal spreads"),
    pytest.param(two(normal(), normal()), ABOVE, "both", id="equal means"),
    pytest.param(two(skewed(1), skewed(1)), ABOVE, "both", id="equal skewed means"),
    pytest.param(two(normal(0.1), normal()), ABOVE, "contradicted", id="slightly above"),
    pytest.param(two(normal(-1), normal()), WITHIN_ONE, "both", id="worse by the margin"),
    pytest.param(two(normal(-1.2), normal()), WITHIN_ONE, "confirmed", id="worse by more than the margin"),
    pytest.param(two(normal(), normal()), WIDER, "both", id="equally wide"),
    pytest.param(two(skewed(1), skewed(1)), WIDER, "both", id="equally wide and skewed"),
    pytest.param(two(normal(2.1, 0.2), normal(1, 0.2)), TWICE, "both", id="ratio at its limit"),
    pytest.param(two(normal(2.2, 0.2), normal(1, 0.2)), TWICE, "confirmed", id="ratio beyond its limit"),
    pytest.param(two(normal(2.0, 0.5), normal(1, 0.1)), TWICE, "contradicted", id="ratio inside"),
    pytest.param(lambda rng, n: [({}, normal(1)(rng, n))], ONE, "both", id="value at its limit"),
    pytest.param(lambda rng, n: [({}, skewed(4)(rng, n))], ONE, "both", id="skewed value at its limit"),
    pytest.param(two(normal(), normal()), CROSS, "both", id="equal distributions"),
    pytest.param(two(skewed(1), skewed(1)), CROSS, "both", id="equal skewed distributions"),
    pytest.param(two(normal(0.5), normal()), CROSS, "confirmed", id="one distribution below the other"),
    pytest.param(two(normal(0, 3), normal()), CROSS, "contradicted", id="crossing distributions"),
]


# Each with one of the counts; all of them are a run of its own.
ALTERNATELY = [
    pytest.param(*case.values, count, id=f"{case.id}-{count}", marks=mark)
    for i, case in enumerate(FALSE_VERDICTS)
    for j, count in enumerate(COUNTS)
    for mark in [pytest.mark.slow if (i + j) % 2 else pytest.mark.exhaustive]
]


@pytest.mark.parametrize(("make", "claim", "false", "count"), ALTERNATELY)
def test_false_verdicts_are_rare(make, claim, false, count):
    confirmed, contradicted = rates(make, claim, count)
    if false != "contradicted":
        assert confirmed <= LIMIT
    if false != "confirmed":
        assert contradicted <= LIMIT


@pytest.mark.parametrize(
    ("make", "claim", "verdict"),
    [
        (along(0, 10, 8), RISING, "contradicted"),
        (along(0, 2, 4), RISING, "confirmed"),
        (two(normal(2), normal()), ABOVE, "confirmed"),
        (two(normal(-2), normal()), ABOVE, "contradicted"),
        (two(normal(0, 3), normal()), WIDER, "confirmed"),
        (two(normal(2, 0.1), normal(1, 0.05)), TWICE, "confirmed"),
        (two(normal(0, 6), normal()), CROSS, "confirmed"),
        (two(normal(3), normal()), CROSS, "contradicted"),
    ],
)
def test_clear_truths_are_found_with_40_draws(make, claim, verdict):
    """A test that never decides would have no false verdicts either."""
    confirmed, contradicted = rates(make, claim, 40, repeats=20)
    assert (confirmed if verdict == "confirmed" else contradicted) >= 0.9


def test_three_seeds_decide_what_is_far_above_their_spread():
    confirmed, _ = rates(two(normal(1.0, 0.01), normal(0.5, 0.01)), ABOVE, 3, repeats=50)
    assert confirmed >= 0.9


@pytest.mark.slow
def test_a_rank_correlation_of_unrelated_groups_is_rare():
    """Six groups: beyond 0.7 by chance 7 % of the time, which is why the permutations are counted."""
    claim = Claim(text="", check="correlation", y="y", over="x", groups=("scheme.name",))
    rng = np.random.default_rng(3)
    verdicts = []
    for _ in range(600):
        runs = []
        for i, (x, y) in enumerate(rng.standard_normal((6, 2))):
            tables = {"rounds.csv": [{"round": "1", "x": repr(float(x)), "y": repr(float(y))}]}
            config = {"seed": 1, "scheme.name": f"s{i}"}
            runs.append(Run(Path(str(i)), "", config, {}, {"status": "completed"}, tables))
        verdicts.append(check(claim, runs, DIMENSIONS).verdict)
    assert verdicts.count("confirmed") <= 600 * LIMIT
    assert verdicts.count("contradicted") <= 600 * LIMIT
    assert len(set(verdicts)) == 3


@pytest.mark.parametrize(
    ("count", "pages"),
    [
        pytest.param(3, 60, marks=pytest.mark.slow),
        pytest.param(3, 400, marks=pytest.mark.exhaustive),
        pytest.param(40, 50, marks=pytest.mark.exhaustive),
    ],
)
def test_73_claims_without_truth_get_a_false_verdict_on_one_page_in_twenty(count, pages):
    """Claims of one page share their runs, so they are dependent; the correction holds all the same."""
    rng = np.random.default_rng(11)
    wrong = 0
    for _ in range(pages):
        runs = []
        for number in range(1, count + 1):
            for name in ("ours", "theirs"):
                row = {f"y{i}": repr(float(v)) for i, v in enumerate(rng.standard_normal(73))}
                tables = {"rounds.csv": [{"round": "1", **row}]}
                config = {"seed": number, "scheme.name": name}
                runs.append(Run(Path(f"{name}{number}"), "", config, {}, {"status": "completed"}, tables))
        claims = tuple(
            Claim(text="", check="compare", y=f"y{i}", relation="above", **SIDES) for i in range(73)
        )
        report = Report("made-up", "Made up", ("scheme.name",), (), claims)
        wrong += any(finding.verdict != "not decidable" for finding in check_claims(report, runs))
    assert wrong <= pages * (LIMIT + 2 * (LIMIT / pages) ** 0.5)  # two standard errors of so many pages


def shared_channels(rng, n, lead=0.0):
    """Draw the numbers of two schemes for eight numbers of users from the same channels."""
    channel = rng.standard_normal(n)
    return [
        (
            {"scheme.name": name, "fleet.num_devices": users},
            (channel if name == "ours" else 0) + gain + 0.1 * rng.standard_normal(n),
        )
        for name, gain in (("ours", lead), ("theirs", 0.0))
        for users in range(8)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("count", COUNTS)
def test_draws_that_share_their_channels_are_not_samples_of_their_own(count):
    """Counted as eight times as many samples, equal schemes would differ in half of the experiments."""
    confirmed, contradicted = rates(shared_channels, ABOVE, count)
    assert confirmed <= LIMIT
    assert contradicted <= LIMIT


def test_the_evidence_counts_draws_not_draws_times_settings():
    rng = np.random.default_rng(5)
    finding = check(ABOVE, runs_of(shared_channels(rng, 40), 40), DIMENSIONS)
    assert "40 draws, each the mean of 8 settings" in finding.evidence


@pytest.mark.slow
@pytest.mark.parametrize("count", COUNTS)
def test_everywhere_is_not_confirmed_by_a_good_mean(count):
    """Seven points far ahead and one where the schemes are equal: the mean is ahead, "everywhere" is not."""

    def make(rng, n):
        return [
            (
                {"scheme.name": name, "fleet.num_devices": users},
                (50.0 if name == "ours" and users else 0.0) + rng.standard_normal(n),
            )
            for name in ("ours", "theirs")
            for users in range(8)
        ]

    everywhere = Claim(
        text="", check="compare", y="y", relation="above", everywhere=("fleet.num_devices",), **SIDES
    )
    confirmed, contradicted = rates(make, everywhere, count)
    assert confirmed <= LIMIT
    assert contradicted <= LIMIT
    pooled, _ = rates(make, ABOVE, count, repeats=20)
    assert pooled == 1.0
