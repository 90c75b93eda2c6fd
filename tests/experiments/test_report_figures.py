"""Figures that leave room for what they show."""

import matplotlib

matplotlib.use("Agg")

import pytest
from matplotlib import pyplot as plt

from experiments.report.figures import look_of
from experiments.report.legends import draw_legends
from experiments.report.metrics import key_label, setting


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["a", "personalization_only", "a name as long as a whole panel is wide"])
def test_no_legend_is_wider_than_its_panel_unless_one_entry_is(name):
    """Two panels with lines of their own have legends of their own."""
    keys = (("scheme.name",), ("radio.bandwidth_hz",))
    figure, axes = plt.subplots(2, 2, figsize=(9.2, 7), layout="constrained")
    for axis, prefix in zip(axes[0], ("x", "y"), strict=True):
        for number in range(4):
            axis.plot([0, 1], [0, number], label=f"{prefix}{number}, {name}")
    draw_legends(figure, list(zip(axes[0], keys, strict=True)))
    figure.canvas.draw()
    cell = figure.bbox.width / 2
    for axis in axes[0]:
        assert axis.get_legend().get_window_extent().width < 1.02 * cell
        assert axis.get_window_extent().width > 0.7 * cell
    plt.close(figure)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("words", [1, 3, 12])
def test_a_legend_of_many_long_entries_stays_within_the_figure(words):
    """Runs of mixed schemes: eleven entries that name several settings each."""
    figure, axes = plt.subplots(1, 2, figsize=(9.2, 3.5), layout="constrained")
    for axis in axes:
        for number in range(11):
            axis.plot([0, 1], [0, number], label=", ".join(["personalization_only"] * words) + str(number))
    keys = ("radio.bandwidth_hz", "scheme.name", "air.snr_db")
    draw_legends(figure, [(axis, keys) for axis in axes])
    figure.canvas.draw()
    (legend,) = figure.legends
    extent = legend.get_window_extent()
    assert extent.x0 >= 0
    assert extent.x1 <= figure.bbox.width
    assert axes[0].get_window_extent().height > 0.4 * 3.5 * figure.dpi
    plt.close(figure)


def test_more_lines_than_colours_still_look_different():
    looks = [look_of(number) for number in range(20)]
    assert len({(look["color"], str(look["linestyle"]), look["marker"]) for look in looks}) == 20


@pytest.mark.parametrize(
    ("key", "value", "label", "shown"),
    [
        ("radio.bandwidth_hz", 2e7, "bandwidth (MHz)", "bandwidth 20 MHz"),
        ("radio.transmit_power_dbm", 28, "radio transmit power (dBm)", "radio transmit power 28 dBm"),
        ("server.learning_rate", 0.5, "server learning rate", "server learning rate 0.5"),
        ("scheme.name", "proposed", "scheme", "proposed"),
    ],
)
def test_keys_are_shown_as_words_with_units(key, value, label, shown):
    assert key_label(key) == label
    assert setting(key, value) == shown
