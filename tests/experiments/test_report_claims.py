"""Verdicts on made-up runs whose truth is known."""

import csv

import numpy as np
import pytest

from experiments.report.claims import check, estimate
from experiments.report.folders import Run
from experiments.report.spec import Claim

DIMENSIONS = ("scheme.name", "radio.latency_threshold_ms")


def make_run(folder, accuracy, *, seed=1, **config):
    """Return a learning run whose accuracy is `accuracy` in each of eight rounds."""
    folder.mkdir(parents=True)
    with (folder / "rounds.csv").open("w") as file:
        writer = csv.writer(file)
        writer.writerow(["round", "accuracy_mean", "latency_s"])
        writer.writerows([r, accuracy, 0.025] for r in range(1, 9))
    keys = {name.replace("__", "."): value for name, value in config.items()}
    return Run(folder, folder.name, {"seed": seed, **keys}, {}, {"status": "completed"})


@pytest.fixture
def two_schemes(tmp_path):
    """Two schemes whose seeds differ by far more than the schemes do: only pairing by seed tells."""

    def make(gaps):
        runs = []
        for seed, (base, gap) in enumerate(zip(np.linspace(0.3, 0.9, len(gaps)), gaps, strict=True)):
            for name, value in (("ours", base + gap), ("theirs", base)):
                folder = tmp_path / f"{name}-{seed}-{gap}"
                runs.append(make_run(folder, value, seed=seed, scheme__name=name))
        return runs

    return make


def compare(relation, margin=0.0):
    return Claim(
        text="",
        check="compare",
        y="accuracy_mean",
        first={"scheme.name": "ours"},
        second={"scheme.name": "theirs"},
        relation=relation,
        margin=margin,
    )


@pytest.mark.parametrize(
    ("gaps", "relation", "margin", "verdict"),
    [
        ((0.02, 0.021, 0.019), "above", 0, "confirmed"),
        ((0.02, 0.021, 0.019), "below", 0, "contradicted"),
        ((0.02, -0.021, 0.001), "above", 0, "not decidable"),
        ((-0.004, -0.005, -0.006), "above", 0, "contradicted"),
        ((-0.004, -0.005, -0.006), "at_least", 0.01, "confirmed"),
        ((-0.024, -0.025, -0.026), "at_least", 0.01, "contradicted"),
        ((0.0, 0.0, 0.0), "at_least", 0, "confirmed"),
        ((0.0, 0.0, 0.0), "above", 0, "contradicted"),
        ((0.5,), "above", 0, "not decidable"),  # one seed has no spread
    ],
)
def test_schemes_are_compared_seed_by_seed(two_schemes, gaps, relation, margin, verdict):
    finding = check(compare(relation, margin), two_schemes(gaps), DIMENSIONS)
    assert finding.verdict == verdict
    assert f"{len(gaps)} run" in finding.evidence


def test_runs_that_did_not_complete_do_not_count(two_schemes):
    runs = [
        Run(run.folder, run.name, run.config, {}, {"status": "failed"}) if i % 2 else run
        for i, run in enumerate(two_schemes((0.1, 0.1)))
    ]
    finding = check(compare("above"), runs, DIMENSIONS)
    assert finding.verdict == "not decidable"
    assert "scheme.name = theirs" in finding.evidence


@pytest.mark.parametrize(
    ("levels", "verdict"),
    [
        ((0.5, 0.6, 0.7), "confirmed"),
        ((0.7, 0.6, 0.5), "contradicted"),
        ((0.5, 0.45, 0.7), "contradicted"),  # the ends agree, a step does not
        ((0.5, 0.5, 0.5), "contradicted"),
    ],
)
def test_a_monotone_claim_needs_its_ends_and_no_step_against_it(tmp_path, levels, verdict):
    same = len(set(levels)) == 1
    runs = [
        make_run(
            tmp_path / f"{threshold}-{seed}",
            level + (0.0 if same else 0.001 * seed * (i + 1)),
            seed=seed,
            radio__latency_threshold_ms=threshold,
        )
        for i, (threshold, level) in enumerate(zip((15, 20, 30), levels, strict=True))
        for seed in (1, 2)
    ]
    claim = Claim(text="", check="monotone", y="accuracy_mean", over="radio.latency_threshold_ms")
    assert check(claim, runs, DIMENSIONS).verdict == verdict


def test_a_value_is_placed_between_its_limits(tmp_path):
    runs = [make_run(tmp_path / str(seed), 0.9, seed=seed) for seed in (1, 2)]
    for least, most, verdict in ((0.02, 0.03, "confirmed"), (0.03, 0.04, "contradicted")):
        claim = Claim(text="", check="value", y="latency_s", least=least, most=most)
        assert check(claim, runs, ()).verdict == verdict


def test_a_ratio_has_the_error_of_paired_samples(tmp_path):
    """The second side is exactly twice the first, whatever the seed: no error."""
    runs = [
        make_run(tmp_path / f"{name}{seed}", factor * level, seed=seed, scheme__name=name)
        for name, factor in (("half", 0.5), ("whole", 1.0))
        for seed, level in ((1, 0.4), (2, 0.8))
    ]
    claim = Claim(
        text="",
        check="ratio",
        y="accuracy_mean",
        first={"scheme.name": "half"},
        second={"scheme.name": "whole"},
        least=0.4999,
        most=0.5001,
    )
    assert check(claim, runs, DIMENSIONS).verdict == "confirmed"


def test_the_error_of_a_mean_and_of_a_deviation():
    """That of a deviation is sigma / sqrt(2 (n - 1)) for normal samples."""
    rng = np.random.default_rng(1)
    repeats = np.array([rng.standard_normal(50).std(ddof=1) for _ in range(4000)])
    found = estimate(rng.standard_normal(50), "std")
    assert found.error == pytest.approx(repeats.std(), rel=0.25)
    assert estimate(np.ones(1)).error == np.inf
