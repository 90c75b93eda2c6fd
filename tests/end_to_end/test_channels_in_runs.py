"""Every scheme runs over every channel; old and noisy knowledge costs what it does cost."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schema import ConfigError
from server_app.settings import compose_settings
from tests.end_to_end.jobs import final_weights, records, run_small

CHANNELS = {
    "rician": ("channel=rician",),
    "correlated": ("channel=correlated",),
    "pedestrian": ("channel=pedestrian",),
    "mobile": ("channel=mobile",),
    "umi": ("channel=umi",),
    "uma moving": ("channel=uma", "channel.mobility=straight", "channel.mobility_options.speed_kmh=50"),
}
AIR = ("air.num_selected=4", "air.antennas=4", "air.path_loss=true")
SCHEMES = {"proposed": ("scheme=proposed",), "air": ("scheme=over_the_air", *AIR)}


def rows(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / name).open(newline="") as file:
        return list(csv.DictReader(file))


PAIRS = [  # each channel with one of the schemes; all of them are a run of its own
    pytest.param(channel, scheme, marks=() if (i + j) % 2 else pytest.mark.exhaustive)
    for i, channel in enumerate(CHANNELS)
    for j, scheme in enumerate(SCHEMES)
]


@pytest.mark.parametrize(("channel", "scheme"), PAIRS)
def test_a_scheme_runs_over_a_channel_and_repeats(tmp_path: Path, channel: str, scheme: str) -> None:
    chosen = CHANNELS[channel]
    for name in ("a", "b"):
        run_small(tmp_path / name, "rounds=2", *SCHEMES[scheme], *chosen)
    assert records(tmp_path / "a") == records(tmp_path / "b")
    run_small(tmp_path / "plain", "rounds=2", *SCHEMES[scheme])
    found, plain = (
        [row["channel_gain_db"] for row in rows(tmp_path / name, "devices.csv")] for name in ("a", "plain")
    )
    assert found != plain


def test_a_resumed_run_meets_the_channels_of_an_uninterrupted_one(tmp_path: Path) -> None:
    """Channels with memory are those of the round, whichever rounds a process has drawn before."""
    channel = ("channel=pedestrian", "channel.mobility=straight", "channel.mobility_options.speed_kmh=30")
    run_small(tmp_path / "whole", "rounds=4", *channel)
    run_small(tmp_path / "half", "rounds=2", *channel)
    run_small(tmp_path / "half", "rounds=4", f"resume={tmp_path / 'half'}", *channel)
    assert records(tmp_path / "half") == records(tmp_path / "whole")
    np.testing.assert_array_equal(final_weights(tmp_path / "half"), final_weights(tmp_path / "whole"))


def test_what_the_plan_did_not_know_makes_uploads_late_or_lost(tmp_path: Path) -> None:
    old = ("channel=rayleigh_single", "channel.csi_delay_rounds=1", "rounds=3", "radio.bandwidth_hz=5e6")
    run_small(tmp_path / "late", *old)
    run_small(tmp_path / "lost", *old, "channel.on_outage=lost")
    late, lost = (rows(tmp_path / name, "devices.csv") for name in ("late", "lost"))
    shares = {row["round"]: float(row["outage_share"]) for row in rows(tmp_path / "late", "rounds.csv")}
    assert shares["1"] == 0  # the first round is planned with what it is
    assert shares["2"] > 0
    overrun = [
        row
        for row in late
        if row["latency_s"] and float(row["latency_s"]) > float(row["planned_latency_s"]) * (1 + 1e-12)
    ]
    uploads = [row["round"] for row in late if float(row["pruning_ratio"]) < 1]
    assert len(uploads) < len(late)  # of a starved device no upload can be late
    for number, share in shares.items():
        assert [row["round"] for row in overrun].count(number) == round(share * uploads.count(number), 6)
    failed = {(row["round"], row["device"]) for row in lost if row["status"] != "ok"}
    assert failed == {(row["round"], row["device"]) for row in overrun}
    assert all("outage" in row["reason"] for row in lost if row["status"] != "ok")
    assert max(float(row["latency_s"]) for row in rows(tmp_path / "lost", "rounds.csv")) <= 25e-3 * (1 + 1e-9)
    assert max(float(row["latency_s"]) for row in rows(tmp_path / "late", "rounds.csv")) > 25e-3


def test_a_margin_makes_outages_rarer_and_costs_weights(tmp_path: Path) -> None:
    noisy = ("channel.csi_error_variance=0.2", "channel.antennas=4", "rounds=3", "radio.bandwidth_hz=5e6")
    shares, ratios = [], []
    for margin in (0, 3):
        run_small(tmp_path / str(margin), *noisy, f"radio.rate_backoff_db={margin}")
        table = rows(tmp_path / str(margin), "rounds.csv")
        shares.append(np.mean([float(row["outage_share"]) for row in table]))
        ratios.append(np.mean([float(row["pruning_ratio_mean"]) for row in table]))
    assert shares[0] > 0.1
    assert shares[1] < shares[0]
    assert ratios[1] > ratios[0]


def test_a_default_run_has_no_column_of_outages(tmp_path: Path) -> None:
    run_small(tmp_path, "rounds=1")
    assert "outage_share" not in rows(tmp_path, "rounds.csv")[0]


def test_a_trace_is_a_channel(tmp_path: Path) -> None:
    gains = np.random.default_rng(0).gamma(4.0, 1e-11, (2, 10))
    np.savez(tmp_path / "trace.npz", gains=gains)
    trace = ("channel=trace", f"channel.options.file={tmp_path / 'trace.npz'}")
    run_small(tmp_path / "run", "rounds=2", *trace)
    found = [float(row["channel_gain_db"]) for row in rows(tmp_path / "run", "devices.csv")]
    np.testing.assert_allclose(found, 10 * np.log10(gains.ravel()), rtol=1e-12)
    with pytest.raises(ConfigError, match=r"rounds = 3, but the recorded channels .* end after 2 rounds"):
        run_small(tmp_path / "long", "rounds=3", *trace, "channel.options.at_end=stop")


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["channel.model=ricean"], r"channel: channel\.model = 'ricean' is unknown; did you mean rician"),
        (["channel=rician", "channel.options.k_factor=-1"], r"channel: k_factor = -1"),
        (["channel=umi", "channel.path_loss_intercept_db=100"], "path_loss_intercept_db = 100 has no effect"),
        (["channel.on_outage=lost"], "channel.on_outage = lost has no effect"),
        (["channel.coherence_step_ms=5"], "channel.coherence_step_ms = 5 has no effect"),
        (["channel=rician", "channel.options.kfactor=2"], "no option 'kfactor'"),
        (["channel.model=no_such:thing"], "channel.model = 'no_such:thing' cannot be imported"),
        ([f"channel.model={__name__}:broken"], "channel: ZeroDivisionError"),
        ([f"channel.model={__name__}:misshapen"], r"returns an array of shape \(3,\); it must be \(10,\)"),
    ],
)
def test_a_channel_that_cannot_be_is_refused_before_training(
    tmp_path: Path, overrides: list[str], text: str
) -> None:
    with pytest.raises(ConfigError, match=text):
        run_small(tmp_path, *overrides)


def broken(scene: Any) -> Any:
    return 1 / 0


class misshapen:
    def __init__(self, scene: Any) -> None:
        pass

    def gain(self, mean: Any, server_round: int) -> Any:
        return np.ones(3)

    def vectors(self, mean: Any, server_round: int) -> Any:
        return np.ones((3, 64))


def test_every_channel_of_ours_composes() -> None:
    for path in sorted((Path(__file__).parents[2] / "conf" / "channel").glob("*.yaml")):
        options = ["channel.options.file=x.npz"] if path.stem == "trace" else []
        assert compose_settings([f"channel={path.stem}", *options]).channel.model
