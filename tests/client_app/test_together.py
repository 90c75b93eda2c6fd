"""Which devices are trained together where nobody says: a rule of run and round, not of the machine."""

import pytest

from client_app.together import devices_at_once
from engines.inprocess import InProcessGrid
from server_app.job import device_spec
from server_app.settings import compose_settings
from tests.end_to_end.jobs import final_weights, run_job

TINY = ("model=mlp", "partition=iid", "partition.samples_per_device=8", "rounds=1")
MANY = (*TINY, "fleet.num_devices=40")


def _at_once(devices: int, *overrides: str) -> int:
    settings = compose_settings(["partition=iid", "fleet.num_devices=40", *overrides])
    return devices_at_once(device_spec(settings).to_json(), devices)


@pytest.mark.parametrize(
    ("devices", "overrides", "together"),
    [
        (40, ("model=mlp",), True),
        (31, ("model=mlp",), False),  # a few
        (40, ("model=mlp", "model.options.hidden=400"), False),  # their weights leave the cache
        (40, ("model=lenet5", "partition.samples_per_device=40"), False),  # arithmetic takes the time
        (40, ("model=cnn",), False),
    ],
)
def test_tiny_models_of_many_devices_are_trained_together(devices, overrides, together):
    assert (_at_once(devices, *overrides) > 1) == together


def test_the_default_run_is_as_it_was():
    settings = compose_settings([])
    assert settings.engine.batch_devices is None
    assert devices_at_once(device_spec(settings).to_json(), settings.fleet.num_devices) == 1


def test_what_is_chosen_is_said_and_depends_neither_on_workers_nor_on_chance(tmp_path):
    summaries = [run_job(tmp_path / str(workers), *MANY, workers=workers) for workers in (1, 2)]
    assert {summary["batch_devices"] for summary in summaries} == {_at_once(40, *MANY)} != {1}
    assert len({final_weights(tmp_path / name).tobytes() for name in "12"}) == 1


def test_an_app_without_the_rule_is_served_one_device_after_the_other():
    with InProcessGrid("client_app.device:nothing", 40, batch_devices=None) as grid:
        assert grid.most_at_once == 1
