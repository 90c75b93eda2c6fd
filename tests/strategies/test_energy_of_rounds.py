"""Joules of planned rounds, and batteries that run out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from radio.channel import ChannelModel
from strategies.energy import Batteries, Energy
from strategies.fleet import Fleet
from strategies.ofdma import OfdmaCell, OfdmaStrategy
from strategies.plan import RoundPlan

SIZE = 20_000


def energy_of(devices: int, **changes: Any) -> Energy:
    values: dict[str, Any] = {
        "capacitance": 1e-28,
        "frequency": 3e9,
        "min_frequency": 3e8,
        "power": 0.63,
        "budget": np.inf,
        "battery": np.inf,
    }
    return Energy(
        **{
            name: np.broadcast_to(np.asarray(v, float), devices).copy()
            for name, v in (values | changes).items()
        }
    )


def strategy_of(
    devices: int, policy: str = "joint", cell: dict[str, Any] | None = None, **energy: Any
) -> OfdmaStrategy:
    values: dict[str, Any] = {
        "channel": ChannelModel(num_devices=devices, antennas=8),
        "fixed_time": np.full(devices, 1e-3),
        "compute_time": np.full(devices, 4e-3),
        "bandwidth": 2e6,
        "transmit_power": 0.63,
        "noise_power": 1e-14,
        "latency_threshold": 25e-3,
        "charge_mask_bits": False,
        "energy": energy_of(devices, **energy),
    }
    return OfdmaStrategy(
        cell=OfdmaCell(**(values | (cell or {}))),
        policy=policy,
        seed=0,
        num_weights=SIZE,
        spec="",
        fleet=Fleet(devices),
    )


def spent(plan: RoundPlan) -> list[float]:
    return [
        float(a.columns["compute_energy_j"] or 0) + float(a.columns["transmit_energy_j"] or 0)
        for a in plan.assignments
    ]


@pytest.mark.parametrize("policy", ["joint", "equal_bandwidth", "energy_aware"])
def test_joules_follow_from_cycles_clock_power_and_airtime(policy: str) -> None:
    strategy = strategy_of(5, policy, budget=0.02)
    plan = strategy.plan(1, range(5))
    for a in plan.assignments:
        row = {name: float(value or 0) for name, value in a.columns.items() if name != "allocation"}
        kept = (SIZE - a.num_pruned) / SIZE
        cycles = 3e9 * (1e-3 + kept * 4e-3)
        assert row["compute_energy_j"] == pytest.approx(1e-28 * cycles * row["cpu_frequency_hz"] ** 2)
        airtime = row["planned_latency_s"] - cycles / row["cpu_frequency_hz"]
        assert row["transmit_energy_j"] == pytest.approx(
            row["transmit_power_w"] * airtime, rel=1e-6, abs=1e-9
        )
    assert float(plan.columns["energy_j"] or 0) == pytest.approx(sum(spent(plan)))


def test_the_energy_aware_policy_keeps_to_time_and_budget_where_the_joint_one_overspends() -> None:
    joint = strategy_of(5, "joint").plan(1, range(5))
    aware = strategy_of(5, "energy_aware", budget=0.004).plan(1, range(5))
    assert max(spent(joint)) > 0.004
    assert max(spent(aware)) <= 0.004 * (1 + 1e-9)
    assert all(float(a.columns["planned_latency_s"] or 0) <= 25e-3 * (1 + 1e-9) for a in aware.assignments)
    assert {a.columns["allocation"] for a in aware.assignments} <= {
        "energy_bound",
        "time_bound",
        "starved",
        "saturated",
    }


def test_without_limits_the_energy_aware_policy_keeps_what_the_joint_one_keeps() -> None:
    joint, aware = strategy_of(5, "joint").plan(1, range(5)), strategy_of(5, "energy_aware").plan(1, range(5))
    assert [a.num_pruned for a in aware.assignments] == [a.num_pruned for a in joint.assignments]


def test_a_battery_is_never_overdrawn_and_an_empty_one_sits_the_round_out() -> None:
    strategy = strategy_of(4, "joint", battery=[0.05, 10.0, 10.0, 0.0])
    left, out_at = 0.05, None
    for server_round in range(1, 12):
        plan = strategy.plan(server_round, range(4))
        here = {a.device: a for a in plan.assignments}
        assert 3 not in here
        assert plan.absent[3]["status"] == "exhausted"
        assert plan.columns["exhausted"] == 4 - len(here)
        if 0 in here:
            assert out_at is None
            left -= spent(plan)[0]
            assert left >= -1e-12
            assert float(here[0].columns["battery_j"] or 0) == pytest.approx(left, abs=1e-12)
        else:
            out_at = out_at or server_round
            # The others share the band that it leaves.
            share = sum(float(a.columns["bandwidth_fraction"] or 0) for a in plan.assignments)
            assert share == pytest.approx(1.0)
    assert out_at is not None


def test_an_energy_aware_device_spends_what_its_battery_has_left() -> None:
    strategy = strategy_of(2, "energy_aware", battery=[0.003, 1.0])
    plan = strategy.plan(1, range(2))
    assert spent(plan)[0] == pytest.approx(0.003, rel=1e-3)  # whole weights
    assert 0 in strategy.plan(2, range(2)).absent


def test_batteries_survive_a_resume() -> None:
    first, second = strategy_of(3, battery=0.2), strategy_of(3, battery=0.2)
    first.plan(1, range(3))
    state = {name: np.array(value) for name, value in first.state().items()}
    second.restore(state)
    assert second.plan(2, range(3)).assignments == first.plan(2, range(3)).assignments


def test_nobody_can_pay() -> None:
    plan = strategy_of(2, battery=0.0).plan(1, range(2))
    assert plan.assignments == ()
    assert plan.columns["energy_j"] == 0.0


@pytest.mark.parametrize("policy", ["joint", "energy_aware"])
def test_a_device_of_more_weight_keeps_more(policy: str) -> None:
    cells = [{}, {"weights": np.array([1.0, 1.0, 1.0, 1.0, 5.0])}, {"weights": np.full(5, 5.0)}]
    pruned = [
        [a.num_pruned for a in strategy_of(5, policy, cell=cell).plan(1, range(5)).assignments]
        for cell in cells
    ]
    assert pruned[1][4] < pruned[0][4]
    assert sum(pruned[1][:4]) > sum(pruned[0][:4])
    np.testing.assert_allclose(pruned[2], pruned[0], atol=1)  # all alike: nothing changes


def test_a_battery_that_is_spent_to_rounding_is_empty_and_one_without_an_end_stays_so():
    batteries = Batteries(energy_of(3, battery=np.array([1.0, np.inf, 2.0])))
    spent = np.array([0.6, 5.0])
    assert batteries.take(np.array([0, 1]), spent, np.array([0.4 * (1 + 1e-9), 1.0])) == [0.0, None]
    np.testing.assert_array_equal(batteries.left, [0.0, np.inf, 2.0])


def test_who_uploads_nothing_sends_with_no_power():
    plan = strategy_of(30).plan(1, range(30))
    silent = {a.num_pruned == SIZE: a.columns for a in plan.assignments}
    assert silent[True]["transmit_power_w"] == silent[True]["transmit_energy_j"] == 0.0
    assert silent[False]["transmit_power_w"] == 0.63
