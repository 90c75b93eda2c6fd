"""Joules of a board, from files as Linux has them."""

import math
import time

import pytest

from client_app.board import Meter


def put(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{value}\n")


def test_packages_are_counted_and_their_parts_are_not_counted_twice(tmp_path):
    for name, value in (("intel-rapl:0", 1_000_000), ("intel-rapl:1", 500), ("intel-rapl:0:0", 77)):
        put(tmp_path / "powercap" / name / "energy_uj", value)
    meter = Meter.start(tmp_path)
    put(tmp_path / "powercap" / "intel-rapl:0" / "energy_uj", 3_500_000)
    put(tmp_path / "powercap" / "intel-rapl:1" / "energy_uj", 1_500_500)
    put(tmp_path / "powercap" / "intel-rapl:0:0" / "energy_uj", 9_000_000)
    assert meter.joules() == pytest.approx(4.0)


def test_a_counter_that_wraps_around_goes_on(tmp_path):
    put(tmp_path / "powercap" / "intel-rapl:0" / "energy_uj", 9_000_000)
    put(tmp_path / "powercap" / "intel-rapl:0" / "max_energy_range_uj", 10_000_000)
    meter = Meter.start(tmp_path)
    put(tmp_path / "powercap" / "intel-rapl:0" / "energy_uj", 2_000_000)
    assert meter.joules() == pytest.approx(3.0)


def test_a_battery_tells_its_power(tmp_path, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    put(
        tmp_path / "power_supply" / "BAT0" / "power_now", -4_000_000
    )  # some drivers count discharge below zero
    meter = Meter.start(tmp_path)
    clock[0] += 3
    put(tmp_path / "power_supply" / "BAT0" / "power_now", 6_000_000)
    assert meter.joules() == pytest.approx(15.0)


def test_a_board_that_does_not_tell_has_no_joules(tmp_path):
    assert math.isnan(Meter.start(tmp_path).joules())
    put(tmp_path / "powercap" / "intel-rapl:0" / "energy_uj", "secret")
    assert math.isnan(Meter.start(tmp_path).joules())
