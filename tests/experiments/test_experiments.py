"""Every experiment composes in both sizes, and what its page mentions exists."""

from pathlib import Path
from typing import Any

import pytest
import yaml

import conf
from experiments.command_line import sweep_of
from experiments.report.folders import Run
from experiments.report.metrics import matches
from experiments.report.spec import read_report
from experiments.reproduce import experiments
from experiments.studies import resolve
from server_app.settings import compose_settings, flatten

EXPERIMENTS = sorted(path.stem for path in (Path(conf.__path__[0]) / "experiment").glob("*.yaml"))
REQUIRED = {
    *("p1_fig3", "p1_fig4", "p1_fig5", "p1_fig6", "p1_table1"),
    *("p2_fig4", "p2_fig5", "p2_fig6", "p2_fig7", "p2_fig8", "p2_table2"),
    *("hybrid_over_the_air", "aircomp_vs_ofdma", "profiles", "printed_formula", "dirichlet"),
}


def jobs_of(experiment, size):
    overrides = [f"experiment={experiment}", f"size={size}"]
    return sweep_of(overrides)[0]


def test_every_figure_and_table_has_its_experiment():
    assert set(EXPERIMENTS) >= REQUIRED


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_composes_and_its_claims_concern_its_own_jobs(experiment):
    """Composing every job would be slow: each choice of each group is composed once, of numbers one."""
    seen: set[Any] = set()
    runs: list[Any] = []
    numbers: set[tuple[str, Any]] = set()
    for size in ("quick", "full"):
        jobs = jobs_of(experiment, size)
        assert len({tuple(job) for job in jobs}) == len(jobs)
        for job in jobs:
            values = [
                (key.lstrip("+"), yaml.safe_load(value))
                for key, value in (item.split("=", 1) for item in job)
            ]
            swept = {(key, value) for key, value in values if is_number(value)}
            numbers |= swept
            choices = {item for item, pair in zip(job, values, strict=True) if pair not in swept} | {size}
            if choices <= seen:
                continue
            seen |= choices
            settings = compose_settings(job)
            if settings.study.name:
                resolve(settings.study.name)
            tree = settings.to_dict()
            report = tree.pop("report")
            runs.append(Run(Path("/".join(job)), "", flatten(tree), report, {"status": "completed"}))
    page = read_report(runs[0].report)
    assert page.name == experiment
    assert page.panels
    assert page.claims
    for key in page.dimensions:
        assert any(key in run.config for run in runs), key
    for claim in page.claims:
        for side in (claim.where, claim.first, claim.second):
            for key, value in side.items():
                composed = any(matches(run, {key: value}) for run in runs)
                assert composed or (key, value) in numbers, (claim.text, key, value)


@pytest.mark.slow
@pytest.mark.parametrize("last_too", [False, pytest.param(True, marks=pytest.mark.exhaustive)])
def test_every_experiment_runs_and_reports(tmp_path, data_root, monkeypatch, last_too):
    """The first job of each, or the first and the last, cut to the smallest, on real images."""
    from experiments.cli import run_job
    from experiments.report.cli import build_report

    monkeypatch.setenv("AIRFLOWER_DATA_ROOT", str(data_root))
    monkeypatch.setattr("server_app.run.draw_run", lambda *_, **__: None)  # the page has figures of its own
    trained = ("rounds=1", "partition.test_samples_per_device=10", "partition.samples_per_device=40")
    declared = experiments()
    for experiment in EXPERIMENTS:
        is_study = "study" in declared[experiment]
        tiny = ("engine.workers=1", *(("study.draws=2",) if is_study else trained))
        jobs = jobs_of(experiment, "quick")
        for i, job in enumerate((jobs[0], jobs[-1])[: 1 + last_too]):
            learned = any("actor_critic" in override for override in job)
            overrides = [*job, *tiny, *(["+scheduler.options.updates=5"] if learned else [])]
            run_job(compose_settings(overrides), tmp_path / "runs" / experiment / str(i))
    page = build_report([tmp_path / "runs"], tmp_path / "report")
    text = page.read_text()
    for experiment in EXPERIMENTS:
        assert f'id="{experiment}"' in text
        assert (tmp_path / "report" / f"{experiment}.pdf").stat().st_size > 1000
