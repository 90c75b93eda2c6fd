"""What is composed from kept files is what Hydra composes, or is left to Hydra."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from protocol.own_files import VARIABLE
from schema.composing import HYDRA, composed
from server_app.settings import compose_config
from server_app.settings.overrides import as_meant

CHOICES = ["model=mlp", "scheme=over_the_air", "experiment=p1_fig5", "training=fedavg", "tracker=none"]
VALUES = [
    "rounds=3", "rounds=7", "seed=2", "air.snr_db=-14", "model.personal=[f*,'b,c']", "model.options.width=4",
    "model.name=a:b", "dataset.root='/a b=c'", "radio.devices={cycles: [1,2]}", "task.metrics=[x]",
    "stop.metric=null", "report.title=x", "radio.latency_threshold_ms=${rounds}", "radio.bandwidth_hz=2e7",
]  # fmt: skip


def by_hydra(overrides):
    with initialize_config_module(version_base=HYDRA, config_module="conf"):
        return compose("config", overrides=overrides)


def same(found, expected):
    assert OmegaConf.to_yaml(found) == OmegaConf.to_yaml(expected)  # in its order, interpolations as they are
    assert OmegaConf.is_struct(found) == OmegaConf.is_struct(expected)


@given(
    st.permutations(CHOICES).map(lambda some: some[:2]),
    st.lists(st.sampled_from(VALUES), max_size=5),
    st.data(),
)
@settings(max_examples=4)
def test_it_is_what_hydra_composes_in_any_order(choices, values, data):
    overrides = as_meant(data.draw(st.permutations([*choices, *values])))
    for _ in range(2):  # the second time from what was kept
        found = composed("conf", overrides)
        assert found is not None
        same(found, by_hydra(overrides))


def test_who_changes_what_was_composed_changes_nobody_elses():
    first = composed("conf", ["rounds=3"])
    first.rounds = 5
    first.model.personal.append("x")
    same(composed("conf", ["rounds=3"]), by_hydra(["rounds=3"]))
    same(composed("conf", []), by_hydra([]))


@pytest.mark.parametrize(
    "overrides",
    [
        ["nosuch=3"],
        ["model.nosuch=3"],
        ["model=nosuch"],
        ["rounds=1,2"],
        ["rounds=range(1,3)"],
        ["hydra.mode=RUN"],
        ["hydra/job_logging=stdout"],
        ["~tracker"],
        ["+rounds=1"],
        ["rounds=[1"],
        ["x" * 300 + "=1"],
        ["model@other=mlp"],
    ],
)
def test_what_is_no_choice_and_no_value_is_left_to_hydra(overrides):
    assert composed("conf", overrides) is None


def test_configurations_of_the_same_files_are_composed_once_unless_there_are_files_of_ones_own(
    tmp_path, monkeypatch
):
    """The ``conf`` of a clone is the app's, also where a command is called there."""
    asked = []
    monkeypatch.setattr("server_app.settings.compose.compose", lambda *_, overrides: asked.append(overrides))
    monkeypatch.setenv(VARIABLE, str(Path(__file__).parents[2]))
    assert compose_config(["rounds=3"]).rounds == 3
    assert asked == []
    (tmp_path / "conf").mkdir()
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    compose_config(["rounds=3"])
    assert asked == [["rounds=3"]]
