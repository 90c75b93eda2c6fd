"""Verdicts on made-up runs whose truth is known."""

import csv
from dataclasses import replace

import numpy as np
import pytest

from experiments.report.claims import check, check_claims
from experiments.report.folders import Run
from experiments.report.metrics import plus_minus
from experiments.report.pairing import error_of
from experiments.report.significance import holm
from experiments.report.spec import Claim, Report

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
        # Accuracies come in steps: three equal ones happen by chance, and say nothing of the spread.
        ((0.0, 0.0, 0.0), "at_least", 0, "not decidable"),
        ((0.0, 0.0, 0.0), "above", 0, "not decidable"),
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
        ((0.5, 0.7, 0.7), "not decidable"),  # flat is neither a rise nor a fall
        ((0.5, 0.5, 0.5), "not decidable"),
    ],
)
def test_a_monotone_claim_needs_every_step(tmp_path, levels, verdict):
    runs = [
        make_run(
            tmp_path / f"{threshold}-{seed}",
            level + 0.001 * (seed if len(set(levels)) == 3 else (seed - 1.5) * (-1) ** i) * (i + 1),
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
    """The second side is twice the first, whatever the seed."""
    runs = [
        make_run(tmp_path / f"{name}{seed}", factor * level, seed=seed, scheme__name=name)
        for name, factor in (("half", 0.5), ("whole", 1.0))
        for seed, level in ((1, 0.4), (2, 0.404))
    ]
    claim = Claim(
        text="",
        check="ratio",
        y="accuracy_mean",
        first={"scheme.name": "half"},
        second={"scheme.name": "whole"},
        least=0.49,
        most=0.51,
    )
    assert check(claim, runs, DIMENSIONS).verdict == "confirmed"


def test_the_error_of_a_mean_and_of_a_deviation():
    """That of a deviation is sigma / sqrt(2 (n - 1)) for normal samples."""
    rng = np.random.default_rng(1)
    repeats = np.array([rng.standard_normal(50).std(ddof=1) for _ in range(4000)])
    assert error_of(rng.standard_normal(50), "std") == pytest.approx(repeats.std(), rel=0.25)
    assert error_of(np.ones(1)) == np.inf


def constructed(check_kind, **more):
    return Claim(
        text="", check=check_kind, y="latency_s", by_construction="the plan fills its threshold", **more
    )


@pytest.mark.parametrize(("most", "verdict"), [(0.0251, "by construction"), (0.0249, "fault")])
def test_a_claim_by_construction_is_no_finding_and_its_failure_a_fault(tmp_path, most, verdict):
    runs = [make_run(tmp_path / str(seed), 0.9, seed=seed) for seed in (1, 2, 3)]
    finding = check(constructed("value", most=most), runs, ())
    assert finding.verdict == verdict
    assert finding.p is None
    assert "the plan fills its threshold" in finding.evidence


def test_one_draw_that_breaks_a_construction_is_a_fault(two_schemes):
    """On average the first side is far above the second."""
    claim = Claim(**{**compare("at_least").__dict__, "by_construction": "it starts from the other"})
    assert check(claim, two_schemes((0.2, 0.3, 0.0)), DIMENSIONS).verdict == "by construction"
    assert check(claim, two_schemes((0.21, 0.31, -0.001)), DIMENSIONS).verdict == "fault"


def test_claims_by_construction_do_not_thin_out_the_others(tmp_path):
    """Only tested claims count in the correction."""
    runs = [make_run(tmp_path / str(seed), 0.8 + 0.01 * seed, seed=seed) for seed in (1, 2, 3)]
    tested = Claim(text="", check="value", y="accuracy_mean", least=0.75)
    alone = check(tested, runs, ())
    page = Report("n", "t", (), (), (tested, *[constructed("value", most=1.0)] * 50))
    assert check_claims(page, runs)[0] == alone
    many = Report("n", "t", (), (), (tested,) * 10)
    assert [finding.verdict for finding in check_claims(many, runs)] == ["not decidable"] * 10
    assert alone.verdict == "confirmed"


def test_every_round_is_the_largest_of_all_rounds_not_the_mean_of_a_run(tmp_path):
    """One late round of eight; and no number of rounds in time proves that there is no late one."""
    run = make_run(tmp_path / "1", 0.9)
    run.table("rounds.csv")[3]["latency_s"] = "0.026"
    claim = Claim(text="", check="value", y="latency_s", statistic="max", most=0.025)
    assert check(claim, [run], ()).verdict == "contradicted"
    assert check(claim, [make_run(tmp_path / "2", 0.9)], ()).verdict == "not decidable"


def test_the_last_evaluation_is_not_that_of_the_last_quarter(tmp_path):
    runs = [make_run(tmp_path / f"{seed}", 0.5, seed=seed) for seed in range(9)]
    for run, last in zip(runs, np.linspace(0.79, 0.81, 9), strict=True):
        text = (run.folder / "rounds.csv").read_text().replace("8,0.5,", f"8,{last},")
        (run.folder / "rounds.csv").write_text(text)
    tail = Claim(text="", check="value", y="accuracy_mean", least=0.75, most=0.85)
    assert check(replace(tail, statistic="last"), runs, DIMENSIONS).verdict == "confirmed"
    assert check(tail, runs, DIMENSIONS).verdict == "contradicted"  # 0.65: of rounds 7 and 8


def test_a_seed_whose_job_failed_is_left_out_of_a_pooled_comparison(tmp_path):
    """Without: the seed's mean would be that of other settings."""
    runs = [
        make_run(
            tmp_path / f"{name}{seed}{threshold}",
            0.01 * threshold + (0.001 * seed if name == "ours" else 0),
            seed=seed,
            scheme__name=name,
            radio__latency_threshold_ms=threshold,
        )
        for name in ("ours", "theirs")
        for seed in (1, 2, 3, 4)
        for threshold in (15, 30)
        if (name, seed, threshold) != ("ours", 4, 30)
    ]
    assert "over 3 seeds, each the mean of 2 settings" in check(compare("above"), runs, DIMENSIONS).evidence


def test_holm_is_the_step_down_method():
    """Holm 1979: the smallest p-value times their number, the next times one less, never falling."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (24.25, 3.6e-15, "24.25"),
        (0.9827, 0.0033, "0.9827 ± 0.0033"),
        (0.07555, 0.0048, "0.0756 ± 0.0048"),
        (38.174, 0.012, "38.174 ± 0.012"),
        (25.0, np.inf, "25"),
        (0.0, 0.0, "0"),
        (12345.0, 1300.0, "12345 ± 1300"),
        (0.0, 0.002, "0.0000 ± 0.0020"),
    ],
)
def test_numbers_are_rounded_to_their_error(value, error, text):
    assert plus_minus(value, error) == text
