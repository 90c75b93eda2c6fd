"""Figures that leave room for what they show."""

import matplotlib

matplotlib.use("Agg")

import pytest
from matplotlib import pyplot as plt

from experiments.report.figures import _legends
from experiments.report.spec import Panel, Report


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["a", "personalization_only", "a name as long as a whole panel is wide"])
def test_no_legend_is_wider_than_its_panel_unless_one_entry_is(name):
    """Two panels with lines of their own have legends of their own."""
    panels = (Panel(kind="curve", series=("scheme.name",)), Panel(kind="bar", series=("radio.bandwidth_hz",)))
    figure, axes = plt.subplots(2, 2, figsize=(9.2, 7), layout="constrained")
    for axis, prefix in zip(axes[0], ("x", "y"), strict=True):
        for number in range(4):
            axis.plot([0, 1], [0, number], label=f"{prefix}{number}, {name}")
    _legends(figure, list(zip(axes[0], panels, strict=True)), Report("n", "t", ("scheme.name",), panels))
    figure.canvas.draw()
    cell = figure.bbox.width / 2
    for axis in axes[0]:
        assert axis.get_legend().get_window_extent().width < 1.02 * cell
        assert axis.get_window_extent().width > 0.7 * cell
    plt.close(figure)
