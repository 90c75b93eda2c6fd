"""From settings to the parts of a run."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from server_app.job import device_spec, prepare
from server_app.links import device_times
from server_app.settings import compose_settings


def _run_key(*overrides):
    return device_spec(compose_settings(["model=mlp", *overrides])).run_key


def test_a_run_is_the_same_in_whatever_order_its_options_are_written():
    options = ("+model.options.hidden=20", "+model.options.depth=2")
    one, other = _run_key(*options), _run_key(*reversed(options))
    assert one == other


@pytest.mark.parametrize(
    "override",
    ["seed=2", "model.options.hidden=20", "scheme=fedavg", "training.batch_size=8", "dataset=mnist"],
)
def test_what_a_device_keeps_belongs_to_one_kind_of_run(override):

    assert _run_key(override) != _run_key()


def test_whether_files_may_be_fetched_makes_no_other_run():
    assert _run_key("dataset=mnist", "dataset.download=true") == _run_key(
        "dataset=mnist", "dataset.download=false"
    )


def test_one_thread_trains_and_nodes_alone_have_data_of_their_own():
    """Products of matrices depend on the number of threads in their last bits."""
    settings = compose_settings(["model=mlp"])
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert not prepare(settings).spec.own_data_root
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)
    assert prepare(settings, on_nodes=True).spec.own_data_root


class Tempered(torch.nn.Module):
    """One number of its own: what its outputs are divided by."""

    def __init__(self, num_classes):
        super().__init__()
        self.linear = torch.nn.Linear(784, num_classes)
        self.temperature = torch.nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.linear(x.flatten(1)) / self.temperature


def test_a_personal_part_of_a_single_number_takes_its_time():
    """T0 = tau_v C N_v / f with N_v = 1, Liu et al. 2024, eq. (24)."""
    own = ["model.name=tests.server_app.test_job:Tempered", "model.personal=[temperature]"]
    own += ["training.personal_steps=3", "radio.cycles_per_weight=20", "radio.cpu_hz=3e9"]
    fixed, _ = device_times(prepare(compose_settings(own)))
    np.testing.assert_allclose(fixed, 3 * 20 / 3e9, rtol=1e-9)


@pytest.mark.parametrize(
    ("overrides", "charged"),
    [
        ((), 1),
        (("training.importance=first_order", "training.importance_steps=3"), 3),
        (("scheme=aircomp_pruned", "air.count_mode=bitmap"), 1),
        # No trial step is taken there, so none is charged.
        (("training.importance=magnitude",), 0),
        (("training.importance=random",), 0),
        (("scheme=personalization_only",), 0),
        (("scheme=fedavg",), 0),
        (("scheme=over_the_air",), 0),
        (("scheme=aircomp_pruned",), 0),
    ],
)
def test_ranking_is_charged_where_there_is_any(overrides, charged):
    """T0 = (tau_v C N_v + charged C N_u) / f, Liu et al. 2024, eq. (24)."""
    settings = compose_settings(["model=mlp", *overrides])
    radio = settings.radio
    fixed, _ = device_times(prepare(replace(settings, radio=replace(radio, include_importance_cost=True))))
    without, _ = device_times(prepare(settings))
    size = 19885 if not settings.personal_patterns else 19625
    expected = charged * size * radio.cycles_per_weight / radio.cpu_hz
    np.testing.assert_allclose(fixed - without, expected, rtol=1e-9, atol=1e-15)
