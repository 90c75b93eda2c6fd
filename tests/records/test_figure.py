"""The figure of a run shows what the run recorded, and nothing that it did not."""

import json
from typing import Any

import matplotlib
import pytest
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from records.figure import draw_run


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """Return a function that draws rows and gives the visible axes."""
    kept: list[Any] = []
    save = Figure.savefig

    def saved(figure, *args, **options):
        kept.append(figure)
        save(figure, *args, **options)

    monkeypatch.setattr(Figure, "savefig", saved)

    def draw(rows, **config):
        names = list(rows[0])
        lines = [",".join(names), *(",".join(str(row[name]) for name in names) for row in rows)]
        (tmp_path / "rounds.csv").write_text("\n".join(lines) + "\n")
        (tmp_path / "config.yaml").write_text(json.dumps(config))
        assert draw_run(tmp_path).stat().st_size > 1000
        figure = kept[-1]
        return figure, {axis.get_ylabel(): axis for axis in figure.axes if axis.get_visible()}

    return draw


BASE = {"accuracy_mean": 1.0, "accuracy_worst": 1.0, "loss_mean": 0.5, "latency_s": 0.025}
OFDMA = {**BASE, "latency_threshold_s": 0.025, "pruning_ratio_mean": 0.0, "participants": 3, "replies": 3}
AIR = {**BASE, "users": "0;1;4", "participants": 3, "replies": 3, "mse_predicted": 1e-5, "mse_realised": 2e-5}


def rows(columns, count=3):
    return [{"round": i, **columns} for i in range(1, count + 1)]


def test_no_line_lies_on_the_frame(drawn):
    """Accuracy 1, latency at its threshold, ratio 0: all at a limit."""
    _, axes = drawn(rows(OFDMA))
    for label, axis in axes.items():
        low, high = axis.get_ylim()
        room = 0.02 * (high - low)
        for line in axis.get_lines():
            assert min(line.get_ydata()) > low + room, label
            assert max(line.get_ydata()) < high - room, label


def test_an_over_the_air_run_shows_its_error_and_its_users(drawn):
    _, axes = drawn(rows(AIR), scheme={"name": "over_the_air", "personalization": False})
    assert "MSE of the average" in axes
    assert "mean pruning ratio" not in axes
    users = next(line for line in axes["devices"].get_lines() if line.get_label() == "scheduled")
    assert list(users.get_ydata()) == [3, 3, 3]


@pytest.mark.parametrize("columns", [OFDMA, AIR, BASE])
def test_every_panel_has_numbers_and_every_entry_a_line(drawn, columns):
    _, axes = drawn(rows(columns))
    for axis in axes.values():
        assert axis.get_lines()
        assert all(len(line.get_ydata()) for line in axis.get_lines())
        if axis.get_legend():
            named = {text.get_text() for text in axis.get_legend().get_texts()}
            assert named == {line.get_label() for line in axis.get_lines()}


@pytest.mark.parametrize(
    ("personalization", "personal", "label"),
    [
        (True, ["conv*"], "personalised test accuracy"),
        (False, ["conv*"], "test accuracy"),
        (True, [], "test accuracy"),
    ],
)
def test_accuracy_is_called_personalised_only_where_something_is(drawn, personalization, personal, label):
    _, axes = drawn(rows(BASE), scheme={"personalization": personalization}, model={"personal": personal})
    assert label in axes


def test_the_title_names_the_run(drawn):
    figure, _ = drawn(rows(BASE), scheme={"name": "proposed"}, dataset={"name": "mnist"}, seed=7)
    title = figure.get_suptitle()
    for words in ("proposed", "mnist", "seed 7"):
        assert words in title


def test_starved_devices_are_drawn_where_there_are_any(drawn):
    _, axes = drawn(rows({**OFDMA, "starved": 2}))
    assert "starved" in {line.get_label() for line in axes["devices"].get_lines()}
    _, axes = drawn(rows({**OFDMA, "starved": 0}))
    assert "devices" not in axes


def test_joules_are_drawn_where_they_are_recorded(drawn):
    _, axes = drawn(rows({**OFDMA, "energy_j": 0.02}))
    assert list(axes["energy of a round (mJ)"].get_lines()[0].get_ydata()) == pytest.approx([20.0] * 3)
    _, axes = drawn(rows(OFDMA))
    assert not [label for label in axes if "energy" in label]


def test_a_run_without_a_single_number_still_has_a_figure(drawn):
    drawn(rows({"accuracy_mean": ""}))


def test_the_figures_and_the_backend_of_a_notebook_stay_as_they_are(drawn):
    before = matplotlib.get_backend()
    try:
        matplotlib.use("svg")
        mine = plt.figure()
        drawn(rows(OFDMA))
        assert matplotlib.get_backend() == "svg"
        assert plt.get_fignums() == [mine.number]
    finally:
        plt.close("all")
        matplotlib.use(before)
