"""A key that the job does not use is an error before training; keys that decide nothing stand in one list."""

import dataclasses

import pytest

from benchmarks.records import JOBS
from schema import ConfigError, declarations
from server_app.settings import Settings, compose_settings, decides_nothing


@pytest.mark.parametrize(
    "overrides",
    [
        ["scheme=aircomp_pruned", "air.payload=model"],
        ["scheme=aircomp_pruned", "air.normalization=common"],
        ["scheme=aircomp_pruned", "air.recompute_beam=true"],
        ["scheme=aircomp_pruned", "scheme.weighting=samples"],
        ["scheme.pruning_ratio=0.3"],
        ["scheme=fedavg", "scheme.pruning_ratio=0.3"],
        ["scheme=fedavg", "radio.max_pruning_ratio=0.5"],
        ["scheme=fedavg", "training.importance=random"],
        ["scheme=fedavg", "model.personal=[conv*]"],
        ["scheme=over_the_air", "air.count_mode=bitmap"],
        ["scheme=over_the_air", "scheme.allocation=joint"],
        ["scheme=over_the_air", "radio.noise_power_dbm=-100"],
        ["radio.distance_m=300", "channel.placement=random"],
        ["scheme=equal_bandwidth", "radio.weight=2"],
        ["scheme=over_the_air", "channel.antennas=4"],
        ["measured.margin=0.5"],
        ["channel=measured", "measured.probe=false", "measured.probe_bytes=100000"],
        ["channel=measured", "radio.noise_model=proportional"],
        ["scheduler.method=policy"],
        ["+scheduler.options.candidates=3"],
        ["air.antennas=4"],
        ["radio.when_infeasible=drop"],
        ["scheme=equal_bandwidth", "radio.max_pruning_ratio=0.5", "radio.when_infeasible=drop"],
        ["scheme=over_the_air", "radio.latency_threshold_ms=10"],
        ["scheme=error_free", "air.snr_db=10"],
        ["scheme=aircomp_pruned", "air.noise=false", "air.shrinkage=off"],
        ["scheme=aircomp_pruned", "air.count_mode=count_free", "air.min_count=2"],
        ["scheme=aircomp_pruned", "training.importance=magnitude"],
        ["scheme=aircomp_pruned", "training.prune_bias=false"],
        ["scheme=fedavg", "training.importance_steps=2"],
        ["training.importance=magnitude", "training.importance_steps=2"],
        ["training.importance=random", "radio.include_importance_cost=true"],
        ["scheme=personalization_only", "radio.include_importance_cost=true"],
        ["scheme=over_the_air", "scheduler=random_beamforming", "scheduler.beamformer=sca"],
        ["training.algorithm=simultaneous", "training.personal_steps=3"],
        ["training.global_epochs=1", "training.global_steps=3"],
        ["fleet.upload_norm_limit=null", "fleet.upload_norm_action=clip"],
        ["study.draws=5"],
        ["study.name=planning", "rounds=3"],
        ["tracker.database=x.db"],
    ],
)
def test_a_key_without_effect_is_refused(overrides):
    name, _, value = overrides[-1].lstrip("+").partition("=")
    with pytest.raises(ConfigError) as caught:
        compose_settings(overrides)
    assert str(caught.value).startswith(f"{name} = {value} has no effect here: it is used only ")


@pytest.mark.parametrize(
    "overrides",
    [
        ["scheme=over_the_air", "air.payload=model", "air.recompute_beam=true", "scheme.weighting=samples"],
        ["scheme=fixed_ratio", "scheme.pruning_ratio=0.3"],
        ["scheme.pruning_ratio=null"],
        ["scheme=error_free", "air.payload=model"],  # other joules
        ["scheme=error_free", "air.channel_error_variance=0.1", "air.payload=model"],
        ["scheme=aircomp_pruned", "air.count_mode=bitmap", "air.noise=false", "air.snr_db=10"],
        ["scheme=aircomp_pruned", "air.count_mode=bitmap", "training.importance=magnitude"],
        ["radio.max_pruning_ratio=0.5", "radio.when_infeasible=drop"],
        ["channel=measured", "measured.margin=0.5", "radio.max_pruning_ratio=0.5"],
        ["scheme.allocation=my_package.my_module:my_policy", "scheme.pruning_ratio=0.3"],
        ["study.name=scheduling", "study.draws=5", "scheme=over_the_air", "air.antennas=4"],
        ["tracker=mlflow", "tracker.database=x.db"],
        *map(list, JOBS.values()),
    ],
)
def test_a_key_that_is_used_is_taken(overrides):
    compose_settings(overrides)


def test_a_scheme_that_is_chosen_by_a_group_may_hold_keys_that_it_does_not_use():
    """They are the scheme's file's, not the user's."""
    compose_settings(["scheme=aircomp_pruned"])
    compose_settings(["scheme=fedavg"])


def test_every_key_is_declared_once_and_with_what_a_list_of_keys_asks():
    declared = declarations(Settings)
    flat = {}

    def walk(tree, path=""):
        for field in dataclasses.fields(tree):
            value = getattr(tree, field.name)
            full = f"{path}{field.name}"
            if dataclasses.is_dataclass(value):
                walk(value, f"{full}.")
            else:
                flat[full] = value

    walk(compose_settings([]))
    assert set(declared) == set(flat)


@pytest.mark.parametrize(
    ("name", "nothing"),
    [
        ("engine", True), ("engine.name", True), ("tracker", True), ("dataset.root", True),
        ("dataset", False), ("report", True), ("report.claims", True), ("resume", True),
        ("checkpoint_every", True), ("seed", False), ("rounds", False),
        ("fleet.round_timeout_s", True), ("fleet", False), ("scheme", False),
        ("scheduler.options.candidates", False), ("unknown.key", False), ("resume_twice", False),
    ],
)  # fmt: skip
def test_what_decides_nothing_is_known_by_key_and_by_group(name, nothing):
    assert decides_nothing(name) is nothing


def test_the_names_of_jobs_leave_out_what_decides_nothing():
    """Hydra's list of them is the declarations'."""
    from hydra import compose, initialize_config_module

    with initialize_config_module(version_base="1.3", config_module="conf"):
        config = compose("config", overrides=["engine.workers=3", "seed=2"], return_hydra_config=True)
    excluded = set(config.hydra.job.config.override_dirname.exclude_keys)
    assert {name for name in declarations(Settings) if decides_nothing(name)} < excluded
    assert not {name for name in declarations(Settings) if not decides_nothing(name)} & excluded
    assert config.hydra.job.override_dirname == "seed=2"
