"""What the page of any sweep shows: the papers' questions, with numbers that a hand computes."""

import html.parser
import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from experiments.report.cli import build_report
from experiments.report.defaults import default_report
from experiments.report.figures import caption
from experiments.report.folders import find_runs
from experiments.report.metrics import samples, spread_of, to_target
from experiments.report.panels import panels_of
from experiments.report.spec import Panel, Report
from experiments.report.views import thinned


def write(
    folder, *, seed=1, accuracy=(0.2, 0.5, 0.8, 0.9), energy=True, scheme="proposed", kept=(5, 0), **config
):
    """Write a run of two devices: 2 s, 10 bits and 3 J a round; the second device is one point worse."""
    folder.mkdir(parents=True)
    tree = {"seed": seed, "scheme": {"name": scheme}, **config}
    (folder / "config.yaml").write_text(json.dumps(tree))
    (folder / "summary.json").write_text(json.dumps({"status": "completed", "seed": seed}))
    head = "round,accuracy_mean,accuracy_worst,loss_mean,latency_s,uplink_bits" + ",energy_j" * energy
    rows = [f"{i},{a},{a - 0.01},{1 - a},2,10" + ",3" * energy for i, a in enumerate(accuracy, 1)]
    (folder / "rounds.csv").write_text("\n".join([head, *rows]) + "\n")
    devices = [
        f"{i},{d},{kept[d]},{a - 0.01 * d if a != '' else ''}"
        for i, a in enumerate(accuracy, 1)
        for d in (0, 1)
    ]
    (folder / "devices.csv").write_text(
        "\n".join(["round,device,kept_weights,test_accuracy", *devices]) + "\n"
    )
    return folder


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("sweep")
    for scheme, lift in (("proposed", 0.0), ("fedavg", -0.1)):
        for threshold in (10, 20, 40):
            for seed in (1, 2, 3):
                write(
                    tmp_path / "runs" / f"{scheme}{threshold}{seed}",
                    seed=seed,
                    scheme=scheme,
                    accuracy=[a + lift + 0.001 * seed for a in (0.2, 0.5, 0.8, 0.9)],
                    radio={"latency_threshold_ms": threshold},
                )
    return tmp_path / "runs"


@pytest.fixture(scope="module")
def text(sweep):
    """The page of the sweep: drawing it takes seconds, so once."""
    return build_report([sweep], sweep.parent / "out", spread="confidence").read_text()


def panels_by(runs):
    runs = find_runs([runs])
    return {
        (data.panel.kind, data.panel.x, data.panel.y, data.panel.target): data
        for data in panels_of(default_report(runs), runs)
    }


def test_any_sweep_answers_the_papers_question(sweep):
    found = panels_by(sweep)
    for y in ("accuracy_mean", "loss_mean"):
        for x in ("", "elapsed_s", "sent_bits", "spent_j"):
            assert ("curve", x, y, None) in found, (x, y)
        assert ("final", "radio.latency_threshold_ms", y, None) in found
    targets = {y: target for kind, _, y, target in found if target is not None}
    assert set(targets) == {"round", "elapsed_s", "sent_bits", "spent_j"}
    assert set(targets.values()) == {0.9}
    for key in (("devices", "", "test_accuracy", None), ("heat", "", "test_accuracy", None)):
        assert key in found
    assert ("heat", "", "starved", None) in found


def test_what_was_not_recorded_has_no_panel(tmp_path):
    write(tmp_path / "runs" / "a", energy=False, kept=(5, 5))
    write(tmp_path / "runs" / "b", energy=False, kept=(5, 5), seed=2)
    found = panels_by(tmp_path / "runs")
    assert not [key for key in found if "spent_j" in key or "starved" in key]
    assert all(data.lines or data.heat is not None for data in found.values())


def test_a_target_is_counted_to_the_evaluation_that_first_reached_it(sweep):
    """Round 3 of four is the first at 0.8: 6 s, 30 bits, 9 J; fedavg is there a round later."""
    run = next(run for run in find_runs([sweep]) if run.name.startswith("proposed"))
    assert {y: to_target(run, y, 0.8) for y in ("round", "elapsed_s", "sent_bits", "spent_j")} == {
        "round": 3,
        "elapsed_s": 6,
        "sent_bits": 30,
        "spent_j": 9,
    }
    assert to_target(run, "elapsed_s", 0.95) is None
    # As the column of a claim; what was never reached is no number.
    assert samples(run, "elapsed_s@0.8") == {0: 6}
    assert samples(run, "elapsed_s@0.95") == {}


def test_runs_that_never_reach_the_target_are_counted_aloud(sweep, text):
    data = panels_by(sweep)["final", "radio.latency_threshold_ms", "elapsed_s", 0.9]
    assert [line.label for line in data.lines] == ["proposed"]
    assert "9 of 18 runs never reach it" in caption([data])
    assert "9 of 18 runs never reach it" in text
    assert ">never</td>" in text


def test_maps_hold_each_device_of_each_setting(sweep):
    found = panels_by(sweep)
    heat = found["heat", "", "test_accuracy", None].heat
    assert heat is not None
    assert (len(heat.rows), heat.columns) == (6, ("0", "1"))
    # The last quarter of four evaluations, at least two: 0.8 and 0.9, with seeds 1, 2, 3 a thousandth each.
    assert heat.values[heat.rows.index("proposed, 10")] == pytest.approx([0.852, 0.842])
    starved = found["heat", "", "starved", None].heat
    assert starved is not None
    assert starved.values == pytest.approx(np.tile([0.0, 1.0], (6, 1)))


def test_a_single_setting_is_mapped_by_round(tmp_path):
    write(tmp_path / "runs" / "a")
    heat = panels_by(tmp_path / "runs")["heat", "", "test_accuracy", None].heat
    assert heat is not None
    assert heat.values == pytest.approx(np.array([[0.2, 0.5, 0.8, 0.9], [0.19, 0.49, 0.79, 0.89]]))


def test_evaluations_that_are_missing_leave_no_holes(tmp_path):
    """Evaluated in every other round only."""
    write(tmp_path / "runs" / "a", accuracy=(0.2, 0.5, 0.8, 0.9))
    path = tmp_path / "runs" / "a" / "rounds.csv"
    rows = path.read_text().splitlines()
    path.write_text("\n".join([rows[0], "1,,,,2,10,3", rows[2], "3,,,,2,10,3", rows[4]]) + "\n")
    line = panels_by(tmp_path / "runs")["curve", "elapsed_s", "accuracy_mean", None].lines[0]
    assert line.x == pytest.approx([4, 8])
    assert line.y == pytest.approx([0.5, 0.9])


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=8))
def test_confidence_is_that_of_the_t_test(values):
    numbers = np.array(values)
    half = spread_of(numbers, "confidence", study=False)
    error = numbers.std(ddof=1) / np.sqrt(numbers.size)
    assert half == pytest.approx(stats.t.ppf(0.975, numbers.size - 1) * error, abs=1e-9)
    assert spread_of(numbers, "deviation", study=True) == pytest.approx(numbers.std(ddof=1))
    assert spread_of(numbers, "auto", study=True) == pytest.approx(2 * error)


@pytest.mark.parametrize(
    ("spread", "words"),
    [("confidence", "95 % confidence"), ("deviation", "standard deviation"), ("auto", "standard deviation")],
)
def test_the_caption_says_what_the_bands_are(sweep, spread, words):
    runs = find_runs([sweep])
    report = default_report(runs, spread=spread, target=0.8)
    assert {panel.target for panel in report.panels} == {None, 0.8}
    assert f"bands: {words}" in caption(panels_of(report, runs))


class Pictures(html.parser.HTMLParser):
    """Collects ids, references to them, and whether the tags are balanced."""

    def __init__(self):
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "link", "br", "img", "hr", "input"):
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            self.references += re.findall(r"^#([\w.-]+)$|url\(#([^)]+)\)", value or "") and [
                a or b for a, b in re.findall(r"^#([\w.-]+)$|url\(#([^)]+)\)", value or "")
            ]

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in ("meta", "link", "br", "img", "hr", "input"):
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag


def test_the_page_is_well_formed_and_its_names_are_unique(text):
    """Many pictures in one page must not share the names of their parts."""
    parser = Pictures()
    parser.feed(text.partition("<!doctype html>")[2])
    assert parser.open == []
    assert len(parser.ids) == len(set(parser.ids)) > 20
    assert set(parser.references) <= set(parser.ids)


def test_every_line_can_be_switched_and_has_its_values(sweep, text):
    figures = re.findall(r'<figure class="panel" data-set="([^"]*)".*?</figure>', text, re.DOTALL)
    bodies = re.findall(r'<figure class="panel".*?</figure>', text, re.DOTALL)
    switches = dict(re.findall(r'<div class="switches" data-set="([^"]*)">(.*?)</div>', text))
    assert {name for name in figures if name} == set(switches)
    for name, body in zip(figures, bodies, strict=True):
        values = json.loads(re.search(r'<script type="application/json">(.*?)</script>', body)[1])
        for line in values.get("lines", ()):
            assert f'class="s{line["i"]}"' in body
            assert len(line["px"]) == len(line["py"]) == len(line["x"]) == len(line["y"])
            left, top, width, height = values["box"]
            assert all(left - 1 <= x <= left + width + 1 for x in line["px"])
            assert all(top - 1 <= y <= top + height + 1 for y in line["py"])
            if name:
                assert f'data-line="{line["i"]}"' in switches[name]
    curve = json.loads(re.search(r'<script type="application/json">(.*?)</script>', bodies[0])[1])
    run = next(run for run in find_runs([sweep]) if run.name == "proposed101")
    assert curve["lines"][0]["y"][-1] == pytest.approx(
        samples(run, "accuracy_mean", "last")[0] + 0.001, abs=1e-3
    )


def test_long_lines_are_thinned_for_the_page_and_keep_their_ends(tmp_path):
    write(tmp_path / "runs" / "a", accuracy=[0.1 + 0.001 * i for i in range(700)])
    data = panels_by(tmp_path / "runs")["curve", "", "accuracy_mean", None]
    (line,) = thinned(data).lines
    assert line.x.size == line.y.size == line.spread.size == 120
    assert (line.x[0], line.x[-1]) == (1, 700)
    assert (data.lines[0].x.size, line.y[-1]) == (700, data.lines[0].y[-1])


def test_no_word_of_a_run_becomes_markup(tmp_path):
    report = {"name": "x", "series": ["scheme.name"], "panels": [{"kind": "curve", "y": "loss_mean"}]}
    write(tmp_path / "runs" / "a", scheme="</script><b>x", report=report)
    write(tmp_path / "runs" / "b", scheme='"><svg onload=alert(1)>', report=report)
    text = build_report([tmp_path / "runs"], tmp_path / "out").read_text()
    assert "<b>x" not in text
    assert "<svg onload" not in text


def test_tables_turn_settings_into_columns(sweep):
    runs = find_runs([sweep])
    from experiments.report.page import Section, tables
    from experiments.report.spec import Table

    table = Table(y="accuracy_mean", rows=["radio.latency_threshold_ms"], columns="scheme.name")
    report = Report("n", "t", ("scheme.name",), (Panel(kind="curve", y="loss_mean"),), tables=(table,))
    ((_, head, rows),) = tables(Section("n", report, runs, None, ()))
    assert head == ["latency threshold (ms)", "proposed", "fedavg"]
    assert rows[0] == ["10", "0.85200 ± 0.00058", "0.75200 ± 0.00058"]
