"""The figure of a run: loss, accuracy, round latency and pruning ratio against the global round."""

from __future__ import annotations

from pathlib import Path

from server_app.recorder import ROUNDS, read_table

FIGURE = "figure.png"

# Okabe-Ito colours: told apart by colour-blind readers, and of different lightness in greyscale.
_BLUE, _ORANGE, _GREY = "#0072B2", "#E69F00", "#666666"


def draw_run(folder: Path) -> Path:
    """Draw ``figure.png`` from the records in a run folder and return its path."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = read_table(folder / ROUNDS)

    def series(name: str, scale: float = 1.0) -> tuple[list[int], list[float]]:
        points = [(int(row["round"]), scale * float(row[name])) for row in rows if row.get(name)]
        return [x for x, _ in points], [y for _, y in points]

    figure, axes = plt.subplots(2, 2, figsize=(9, 6), sharex=True, layout="constrained")
    loss, accuracy, latency, ratio = axes.flat
    loss.plot(*series("loss_mean"), color=_BLUE)
    loss.set_ylabel("test loss (nats)")
    accuracy.plot(*series("accuracy_mean"), color=_BLUE, label="mean of devices")
    accuracy.plot(*series("accuracy_worst"), color=_ORANGE, linestyle="--", label="worst device")
    accuracy.set_ylabel("personalised test accuracy")
    accuracy.set_ylim(0, 1.02)
    accuracy.legend(loc="lower right")
    latency.plot(*series("latency_s", 1e3), color=_BLUE, label="round")
    latency.plot(*series("latency_threshold_s", 1e3), color=_GREY, linestyle=":", label="threshold")
    latency.set_ylabel("emulated latency (ms)")
    latency.set_ylim(bottom=0)
    latency.legend(loc="lower right")
    ratio.plot(*series("pruning_ratio_mean"), color=_BLUE)
    ratio.set_ylabel("mean pruning ratio")
    ratio.set_ylim(0, 1)
    for axis in (latency, ratio):
        axis.set_xlabel("global round")
    for axis in axes.flat:
        axis.grid(alpha=0.3)
    path = folder / FIGURE
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path
