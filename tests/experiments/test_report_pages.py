"""Folders in; figures, tables, one page and CSV out."""

import csv
import json
import re
import shutil
from urllib.parse import unquote

import numpy as np
import pytest

from experiments.report import page as page_module
from experiments.report import tidy
from experiments.report.cli import build_report, main
from experiments.report.defaults import default_report
from experiments.report.folders import ReportError, Run, find_runs
from experiments.report.metrics import samples
from experiments.report.spec import read_report
from records.recorder import read_table
from tests.experiments.small_sweeps import run_tiny


@pytest.fixture(scope="module")
def runs_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for threshold in (1, 2):
        for seed in (1, 2):
            run_tiny(
                folder / f"t{threshold}s{seed}", f"radio.latency_threshold_ms={threshold}", f"seed={seed}"
            )
    shutil.copytree(folder / "t1s1", folder / "half")
    (folder / "half" / "summary.json").write_text('{"status": "running", "seed": 1}')
    (folder / "broken").mkdir()
    (folder / "broken" / "summary.json").write_text("{")
    (folder / "broken" / "config.yaml").write_text("{")
    return folder


@pytest.fixture(scope="module")
def page(runs_folder, tmp_path_factory):
    return build_report([runs_folder], tmp_path_factory.mktemp("out") / "report")


def test_the_page_is_self_contained_and_names_what_differs(page):
    text = page.read_text()
    for target in re.findall(r"""(?:src|href)=["']([^"']*)""", text):
        assert target.startswith(("data:", "#")) or (page.parent / unquote(target)).is_file(), target
    assert "http" not in text
    assert "@import" not in text
    assert "radio.latency_threshold_ms" in text
    assert "2 of them not completed" in text
    assert text.count("<svg") == text.count('<figure class="panel"') > 8
    assert "latency threshold (ms)" in text
    for name in ("rounds.csv", "devices.csv", "runs.csv", "runs.png", "runs.pdf"):
        assert f'href="{name}"' in text


def test_a_page_without_claims_has_no_table_of_claims(page):
    text = page.read_text().partition("</style>")[2].rpartition("<script>")[0]
    for words in ("all claims", "confirmed", "Holm", "standard error"):
        assert words not in text, words


def made_up_study(folder, draws, **claim):
    """Write a study of two methods with one claim."""
    for name in ("ours", "theirs"):
        run = folder / name
        run.mkdir(parents=True)
        report = {
            "name": "made_up",
            "series": ["scheduler.method"],
            "panels": [{"kind": "cdf", "x": "normalised_mse"}],
            "claims": [
                {
                    **{"text": "a | b", "check": "compare", "y": "normalised_mse", "relation": "at_least"},
                    **{"first": {"scheduler.method": "ours"}, "second": {"scheduler.method": "theirs"}},
                    **claim,
                }
            ],
        }
        config = {"seed": 1, "study": {"name": "scheduling"}, "scheduler": {"method": name}, "report": report}
        (run / "config.yaml").write_text(json.dumps(config))
        (run / "summary.json").write_text(json.dumps({"status": "completed", "draws": draws}))
        rows = "".join(
            f"{i},{0.1 * i + (name == 'ours') * (0.5 - 0.1 * (i == 3))}\n" for i in range(1, draws + 1)
        )
        (run / "draws.csv").write_text("draw,normalised_mse\n" + rows)
    return folder


def test_a_distribution_is_not_captioned_as_bars(tmp_path):
    text = build_report([made_up_study(tmp_path / "runs", 12)], tmp_path / "out").read_text()
    assert "share of 12 draws per line that lie below (seed 1)" in text
    assert "two standard errors" not in text


def test_results_of_a_study_have_the_spread_of_its_draws(tmp_path):
    """Twelve draws 0.1, 0.2, ... of the second method: mean 0.65, deviation 0.1 sqrt(13)."""
    build_report([made_up_study(tmp_path / "runs", 12)], tmp_path / "out")
    text = (tmp_path / "out" / "results.md").read_text()
    assert "| theirs | 1 | 0.65 ± 0.36 |" in text
    assert "\n| --- | --- | --- |\n" in text  # what makes it a table
    assert "Mean ± standard deviation over 12 draws per run." in text


def test_a_table_shows_the_mean_or_the_largest_of_a_cell(tmp_path):
    """Of the draws 0.1, 0.2, ... 1.2: the mean is 0.65, the largest 1.2."""
    runs = made_up_study(tmp_path / "runs", 12)
    for file in runs.rglob("config.yaml"):
        config = json.loads(file.read_text())
        cell = {"y": "normalised_mse", "rows": ["seed"], "columns": "scheduler.method"}
        config["report"]["tables"] = [cell, {**cell, "statistic": "max"}]
        file.write_text(json.dumps(config))
    build_report([runs], tmp_path / "out")
    text = (tmp_path / "out" / "results.md").read_text()
    assert "### normalised MSE\n" in text
    assert "### largest normalised MSE\n" in text
    mean, largest = (line.split("|") for line in text.splitlines() if line.startswith("| 1 |"))
    assert any(re.fullmatch(r" 0\.65 ± 0\.1\d* ", cell) for cell in mean)
    assert " 1.2 " in largest


def test_a_fault_is_loud(tmp_path, capsys):
    """On the page, on the command line, in its exit status; a claim that holds is none of it."""
    fault = {"by_construction": "it starts there", "margin": -0.45}
    runs = made_up_study(tmp_path / "runs", 12, **fault)
    with pytest.raises(SystemExit) as stop:
        main([str(runs), "--out", str(tmp_path / "out")])
    assert stop.value.code == 1
    assert "FAULT" in capsys.readouterr().err
    assert "Fault of the program" in (tmp_path / "out" / "index.html").read_text()
    assert json.loads((tmp_path / "out" / "claims.json").read_text())[0]["verdict"] == "fault"
    held = made_up_study(tmp_path / "held", 12, by_construction="it starts there")
    main([str(held), "--out", str(tmp_path / "fine")])
    assert "Fault" not in (tmp_path / "fine" / "index.html").read_text()
    assert r"| a \| b | = by construction |" in (tmp_path / "fine" / "claims.md").read_text()


def test_the_uplink_is_shown_over_the_air_too(tmp_path):
    run_tiny(tmp_path / "run", "scheme=over_the_air")
    text = build_report([tmp_path / "run"], tmp_path / "out").read_text()
    sent = [float(row["wire_bytes"]) for row in read_table(tmp_path / "run" / "rounds.csv")]
    assert f'<td class="n">{np.mean(sent) / 1e6:.4g}</td>' in text
    assert "received per round (MB)" in text


def test_tidy_rows_hold_every_row_with_its_run_and_what_differs(page, runs_folder):
    rows = read_table(page.parent / "rounds.csv")
    originals = sum(len(read_table(path)) for path in runs_folder.glob("*/rounds.csv"))
    assert len(rows) == originals
    one = next(row for row in rows if row["run"] == "t2s1" and row["round"] == "2")
    assert one["radio.latency_threshold_ms"] == "2.0"
    assert one["seed"] == "1"
    assert one["accuracy_mean"] == read_table(runs_folder / "t2s1" / "rounds.csv")[1]["accuracy_mean"]
    runs = read_table(page.parent / "runs.csv")
    assert {row["run"]: row["status"] for row in runs}["half"] == "killed"
    assert next(row for row in runs if row["run"] == "t1s2")["config.seed"] == "2"


def test_figures_come_as_png_and_pdf(page):
    assert (page.parent / "runs.png").read_bytes()[:4] == b"\x89PNG"
    assert (page.parent / "runs.pdf").read_bytes()[:4] == b"%PDF"


def test_a_row_cut_short_by_a_kill_is_not_read(tmp_path):
    (tmp_path / "rounds.csv").write_text("round,accuracy_mean\n1,0.25\n2,0.5\n3")
    run = Run(tmp_path, "x", {"seed": 1}, {}, {"status": "completed"})
    assert [row["round"] for row in run.table("rounds.csv")] == ["1", "2"]
    assert samples(run, "accuracy_mean") == {0: 0.375}


def test_runs_without_a_report_node_are_drawn_by_what_differs(runs_folder):
    runs = [run for run in find_runs([runs_folder]) if run.completed]
    report = default_report(runs)
    assert report.series == ("radio.latency_threshold_ms",)
    assert {panel.y for panel in report.panels} >= {"accuracy_mean", "loss_mean", "pruning_ratio_mean"}


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"titel": "x"}, "report.titel is unknown; valid: claims, name, panels"),
        ({"panels": [{"kind": "pie"}]}, r"report.panels\[0\].kind = 'pie' is not one of: curve, final"),
        ({"panels": [{"y": "loss_mean"}]}, r"report.panels\[0\].kind is not set"),
        (
            {"claims": [{"text": "x", "check": "ratio", "y": "a", "lest": 1}]},
            r"report.claims\[0\].lest is unknown",
        ),
        (
            {"claims": [{"text": "x", "check": "value", "y": "a", "over": "seed", "least": 1}]},
            r"report.claims\[0\].over has no effect on check: value, which uses: .*least",
        ),
        ({"claims": [{"text": "x", "check": "value", "y": "a"}]}, "neither least nor most"),
        ({"claims": [{"text": "x", "check": "monotone", "y": "a"}]}, r"claims\[0\].over is not set"),
        (
            {"claims": [{"text": "x", "check": "value", "y": "a", "least": 1, "statistic": "std"}]},
            "statistic = std has no test with check: value; valid: mean, max",
        ),
    ],
)
def test_a_mistake_in_a_report_node_is_named(node, message):
    with pytest.raises(ReportError, match=message):
        read_report(node)


def test_the_command_says_what_it_cannot_find(tmp_path, capsys):
    for path, message in ((tmp_path / "nowhere", "is not a folder"), (tmp_path, "no run folder")):
        with pytest.raises(SystemExit) as stop:
            main([str(path)])
        assert stop.value.code == 2
        assert message in capsys.readouterr().err


def test_claims_are_also_written_as_json(page):
    assert json.loads((page.parent / "claims.json").read_text()) == []


def test_csv_files_are_readable_by_the_standard_reader(page):
    tables = list(page.parent.glob("*.csv"))
    assert tables
    for path in tables:
        with path.open(newline="") as file:
            header, *rows = csv.reader(file)
        assert len(set(header)) == len(header), path.name
        assert all(len(row) == len(header) for row in rows), path.name


def test_text_that_a_device_wrote_is_safe_in_tables():
    """A reason reaches the summary of a failed run, and from there the report's CSV and Markdown."""
    evil = '=HYPERLINK("http://x")\x1b[31m|'
    assert tidy._cell(evil) == '\'=HYPERLINK("http://x")\\x1b[31m|'
    assert tidy._cell([evil]).startswith("'=")
    assert page_module._cell(evil) == '\'=HYPERLINK("http://x")\\x1b[31m\\|'
    assert tidy._cell(-40.0) == -40.0
