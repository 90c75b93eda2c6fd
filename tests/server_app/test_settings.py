"""Configuration mistakes stop before anything is trained, and the message names the way out."""

import pytest

from experiments.command_line import sweep_of
from schema import ConfigError
from server_app.job import prepare
from server_app.settings import compose_settings
from server_app.strategy import build_strategy


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "radio.latency_treshold_ms=20",
            "unknown key radio.latency_treshold_ms; did you mean latency_threshold_ms",
        ),
        ("sede=3", "unknown key sede; did you mean seed"),
        ("scheme=propsed", r"(?s)Could not find 'scheme/propsed'.*proposed"),
        ("radio.latency_threshold_ms=-5", "radio.latency_threshold_ms = -5.0 must be above 0"),
        ("radio.latency_threshold_ms=soon", "radio.latency_threshold_ms = 'soon' is not a number"),
        ("radio.latency_threshold_ms=nan", "not a finite number"),
        ("radio.bits_per_weight=12", "radio.bits_per_weight = 12 is not one of: 8, 16, 32"),
        ("rounds=2.5", "rounds = 2.5 is not a whole number"),
        ("seed=-1", "seed = -1 is below its least value 0"),
        ("seed=true", "seed = True is not a whole number"),
        ("training.optimizer=lion", "training.optimizer = 'lion'; valid: sgd, adam, adamw"),
        ("training.batch_size=0", "training.batch_size = 0 is below its least value 1"),
        ("training.momentum=0.9", "training.momentum = 0.9 with optimizer = 'adam'"),
        ("model.personal=conv", r"model.personal = 'conv' is not a list"),
        ("fleet.devices_per_round=11", "fleet.devices_per_round = 11 is above fleet.num_devices = 10"),
        ("fleet.min_replies=11", "fleet.min_replies = 11 is above the 10 devices"),
        ("channel.min_distance_m=600", "channel.min_distance_m = 600 must be below channel.cell_radius_m"),
        ("+radio.colour=red", "unknown key radio.colour"),
        ("~radio.cpu_hz", "radio.cpu_hz is not set"),
        ("radio.cpu_hz=[", "radio.cpu_hz"),
        ("radio.cpu_hz=(1", "a text with such characters is quoted"),
        ("sede=1", "unknown key sede; did you mean seed"),
    ],
)
def test_a_wrong_key_or_value_is_named(override, message):
    with pytest.raises(ConfigError, match=message):
        compose_settings([override])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["scheme.allocation=jiont"], "scheme.allocation = jiont.*valid: .*joint"),
        (["scheme.allocation=fixed_ratio"], "scheme.pruning_ratio is null"),
        (["scheme.allocation=nowhere.at_all:policy"], "cannot be imported"),
        (["model.name=resnet"], r"model.name = .*resnet.*cnn"),
        (["+model.options.depth=3"], r"model.name = .*depth"),
        (["model.personal=[cnov*]"], "model.personal: .*cnov"),
        (["model.personal=['*']"], "model.personal: .*nothing is left to share"),
        (["dataset.name=minst"], "dataset: .*minst.*mnist"),
        (
            ["dataset=mnist", "dataset.root=/nowhere", "dataset.download=false"],
            "dataset.name = mnist: .*dataset.root",
        ),
        (["fleet.num_devices=100000"], "partition: .*fleet.num_devices = 100000"),
        (["partition.options={labels_per_device: 11}"], "partition: "),
    ],
)
def test_what_only_the_parts_can_know_is_found_before_training(overrides, message):
    with pytest.raises(ConfigError, match=message):
        build_strategy(prepare(compose_settings(overrides)))


def test_pruning_only_has_its_own_budget_and_the_command_line_wins():
    assert compose_settings(["scheme=pruning_only"]).radio.latency_threshold_ms == 45
    assert (
        compose_settings(["scheme=pruning_only", "radio.latency_threshold_ms=20"]).radio.latency_threshold_ms
        == 20
    )


def test_a_sweep_is_expanded_into_all_its_jobs():
    jobs, swept = sweep_of(["scheme=proposed,fedavg", "radio.latency_threshold_ms=15,20", "seed=1"])
    assert len(jobs) == 4
    assert swept == ["scheme", "radio.latency_threshold_ms"]
    assert ["scheme=fedavg", "radio.latency_threshold_ms=15", "seed=1"] in jobs
