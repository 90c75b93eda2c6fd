"""Folders in; figures, tables, one page and CSV out."""

import csv
import json
import re
import shutil

import pytest
from small_sweeps import run_tiny

from experiments.report.cli import build_report, main
from experiments.report.folders import ReportError, Run, find_runs
from experiments.report.metrics import samples
from experiments.report.spec import default_report, read_report
from server_app.recorder import read_table


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
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)""", text)
    assert "http" not in text
    assert "@import" not in text
    assert "radio.latency_threshold_ms" in text
    assert "2 of them not completed" in text
    assert "data:image/png;base64," in text


def test_tidy_rows_hold_every_row_with_its_run_and_what_differs(page, runs_folder):
    rows = read_table(page.parent / "rounds.csv")
    originals = sum(len(read_table(path)) for path in runs_folder.glob("*/rounds.csv"))
    assert len(rows) == originals
    one = next(row for row in rows if row["run"] == "t2s1" and row["round"] == "2")
    assert one["radio.latency_threshold_ms"] == "2.0"
    assert one["seed"] == "1"
    assert one["accuracy_mean"] == read_table(runs_folder / "t2s1" / "rounds.csv")[1]["accuracy_mean"]
    runs = read_table(page.parent / "runs.csv")
    assert {row["run"]: row["status"] for row in runs}["half"] == "running"
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
    for path in page.parent.glob("*.csv"):
        with path.open(newline="") as file:
            header, *rows = csv.reader(file)
        assert len(set(header)) == len(header), path.name
        assert all(len(row) == len(header) for row in rows), path.name
