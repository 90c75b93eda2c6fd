"""Differential privacy: what leaves a device, what the receiver's noise is worth, and what it all costs."""

import json
import math

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from client_app.privacy import privatised
from records.recorder import read_table
from schema import ConfigError
from server_app import privacy
from server_app.job import device_spec, prepare
from server_app.settings import compose_settings, private
from tests.end_to_end.jobs import final_weights, records, run_small

DENSE = ("scheme=fedavg", "privacy=gaussian", "fleet.num_devices=3", "rounds=2", "partition=iid")
AIR = ("scheme=over_the_air", "privacy=gaussian", "fleet.num_devices=4", "air.num_selected=3", "rounds=2")


@pytest.fixture(autouse=True)
def accountant(monkeypatch):
    """Where the extra is not installed, the closed form stands in for it; one test compares the two."""
    if not private.accountant_installed():
        monkeypatch.setattr(private, "accountant_installed", lambda: True)
        monkeypatch.setattr(privacy, "epsilon", closed_form)


def closed_form(z, delta):
    """Return epsilon of the Gaussian mechanism (Balle and Wang 2018, theorem 8), for sensitivity 1."""

    def excess(epsilon):
        tail = norm.logcdf(-1 / (2 * z) - epsilon * z)
        return norm.cdf(1 / (2 * z) - epsilon * z) - np.exp(epsilon + tail) - delta

    return brentq(excess, 0.0, 2000.0) if excess(0.0) > 0 else 0.0


@pytest.mark.parametrize("z", [0.02, 0.1, 0.7, 3.0, 500.0])
def test_epsilon_is_that_of_the_closed_form(z):
    pytest.importorskip("dp_accounting")
    for delta in (1e-3, 1e-5, 1e-8):
        assert privacy.epsilon(z, delta) == pytest.approx(closed_form(z, delta), rel=1e-6, abs=1e-6)


def test_many_releases_are_one_with_less_noise():
    """n releases of noise sigma are, by their mean, one of noise sigma / sqrt(n)."""
    assert privacy.composed([2.0] * 16) == pytest.approx(0.5)
    assert privacy.composed([3.0, 4.0]) == pytest.approx(12 / 5)
    assert math.isinf(privacy.composed([]))


@pytest.mark.parametrize(
    ("override", "gain"),
    [
        ("scheme.weighting=uniform", 2.0),
        ("scheme.weighting=samples", 1.0),
        ("scheme.aggregation=trimmed_mean", 1.0),
    ],
)
def test_only_in_a_plain_mean_do_the_noises_of_the_contributors_add_up(override, gain):
    settings = compose_settings([*DENSE, override])
    z, delta = settings.privacy.noise_multiplier, settings.privacy.delta
    row = {"round": "1", "device": "0", "status": "uploaded", "min_keepers": "4"}
    spent = privacy.privacy_spent(settings, [row], [row])["privacy"]
    assert spent["epsilon"] == pytest.approx(closed_form(z, delta), rel=1e-3)
    assert spent["epsilon_model"] == pytest.approx(closed_form(gain * z, delta), rel=1e-3)


def test_an_update_is_clipped_and_gets_noise_of_the_stated_deviation():
    rng = np.random.default_rng(3)
    long = rng.normal(size=50_000).astype(np.float32)
    clipped = privatised(long, 0.5, 0.0, None)
    assert np.linalg.norm(clipped) == pytest.approx(0.5, rel=1e-6)
    assert clipped @ long == pytest.approx(0.5 * np.linalg.norm(long), rel=1e-5)
    short = long * np.float32(0.1 / np.linalg.norm(long))
    np.testing.assert_array_equal(privatised(short, 0.5, 0.0, None), short)
    noise = privatised(long, 0.5, 0.7, rng).astype(np.float64) - clipped
    assert noise.std() == pytest.approx(0.7, rel=0.02)
    assert abs(noise.mean()) < 5 * 0.7 / math.sqrt(noise.size)


def _spent(folder):
    return json.loads((folder / "summary.json").read_text())["privacy"]


def test_a_digital_run_repeats_by_its_seed_and_tells_what_it_costs(tmp_path):
    for name in ("a", "b"):
        run_small(tmp_path / name, *DENSE)
    assert records(tmp_path / "a") == records(tmp_path / "b")
    run_small(tmp_path / "plain", *DENSE, "privacy.clip_norm=null")
    rows = read_table(tmp_path / "a" / "devices.csv")
    size = final_weights(tmp_path / "a").size
    for row in rows:  # 0.5 of clipped update, and 0.5 sqrt(N) of noise
        assert float(row["update_norm"]) == pytest.approx(0.5 * math.sqrt(size + 1), rel=0.05)
    cost = _spent(tmp_path / "a")
    z = 1.0 / math.sqrt(2)  # two uploads of each device
    assert cost["noise_multiplier"] == pytest.approx(z)
    assert cost["epsilon"] == pytest.approx(closed_form(z, 1e-5), rel=1e-3)
    assert cost["epsilon_model"] == pytest.approx(closed_form(z * math.sqrt(3), 1e-5), rel=1e-3)
    assert "privacy" not in json.loads((tmp_path / "plain" / "summary.json").read_text())


def test_a_run_that_was_continued_has_cost_as_much(tmp_path):
    run_small(tmp_path / "whole", *DENSE)
    run_small(tmp_path / "half", *DENSE, "rounds=1")
    run_small(tmp_path / "half", *DENSE, f"resume={tmp_path / 'half'}")
    assert records(tmp_path / "half") == records(tmp_path / "whole")
    assert _spent(tmp_path / "half") == _spent(tmp_path / "whole")


def test_over_the_air_the_receivers_noise_counts(tmp_path):
    """Of the mean, a user moves clip_norm / M; the noise of an entry has the predicted MSE as variance."""
    run_small(tmp_path, *AIR)
    z = []
    for row in read_table(tmp_path / "rounds.csv"):
        z.append(math.sqrt(float(row["mse_predicted"])) / (0.5 / 3))
        assert float(row["noise_multiplier"]) == pytest.approx(z[-1])
    devices = read_table(tmp_path / "devices.csv")
    users = [
        {row["device"] for row in devices if row["round"] == number and row["status"]} for number in "12"
    ]
    worst = min(
        privacy.composed([x for x, who in zip(z, users, strict=True) if user in who])
        for user in set.union(*users)
    )
    cost = _spent(tmp_path)
    assert cost["epsilon"] == pytest.approx(closed_form(worst, 1e-5), rel=1e-3)
    assert cost["epsilon"] == cost["epsilon_model"]


def test_over_the_air_nothing_but_the_sum_depends_on_the_updates(tmp_path):
    """The receiver's noise is that of updates of the clipping norm, however small those sent are."""
    for name, rate in (("a", "0.1"), ("b", "0.0001")):
        run_small(tmp_path / name, *AIR, f"training.global_learning_rate={rate}")
    found = [[row["noise_multiplier"] for row in read_table(tmp_path / name / "rounds.csv")] for name in "ab"]
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["scheme=proposed"], "training.importance = update"),
        (["scheme=aircomp_pruned"], "masks"),
        (["scheme=fedavg", "server.mode=deadline"], "server.mode=synchronous"),
        (["scheme=over_the_air", "air.noise=false"], "air.noise=true"),
        (["scheme=over_the_air", "air.payload=model"], "air.payload=delta"),
        (["scheme=over_the_air", "air.channel_error_variance=0.1"], "air.channel_error_variance=0"),
        (["scheme=over_the_air", "scheme.weighting=samples"], "scheme.weighting=uniform"),
        (["scheme=fedavg", "model=resnet8", "model.buffers=shared"], "model.buffers=personal"),
    ],
)
def test_what_would_leak_is_refused_before_training(overrides, named):
    with pytest.raises(ConfigError, match=named):
        compose_settings(["privacy=gaussian", *overrides])


def test_vectors_of_the_algorithm_are_refused_and_so_is_a_missing_accountant(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="another algorithm"):
        run_small(tmp_path, *DENSE, "training=scaffold")
    monkeypatch.setattr(private, "accountant_installed", lambda: False)
    with pytest.raises(ConfigError, match=r"airflower\[privacy\]"):
        compose_settings(["privacy=gaussian", "scheme=fedavg"])


def test_a_device_is_told_the_noise_that_it_adds_and_what_its_model_is():
    """On a digital uplink each entry gets noise of clip_norm x noise_multiplier."""
    values = ("model=mlp", *DENSE, "privacy.clip_norm=0.5", "privacy.noise_multiplier=3")
    spec = prepare(compose_settings(values)).spec
    assert (spec.clip_norm, spec.noise_deviation) == (0.5, 1.5)
    assert spec.num_classes == 10
    assert spec.personal == ()
    own = device_spec(compose_settings(["model=mlp", "model.personal=[fc1*]"]))
    assert own.personal == ("fc1*",)
