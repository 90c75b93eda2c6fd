"""Joules of over-the-air rounds against the signals of every antenna's user; batteries; what is charged."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from radio.channel import ChannelModel
from strategies.air_interface import AirInterface
from strategies.air_receiver import AirUpdate
from strategies.energy import Energy
from strategies.fleet import Fleet
from strategies.over_the_air import OverTheAir, combine_dense
from strategies.plan import AirPlan, RoundPlan
from strategies.pruned_over_the_air import PrunedOverTheAir, combine_pruned

SIZE, USERS = 2001, 5  # odd: the last symbol holds one entry


def interface(**changes: Any) -> AirInterface:
    own: dict[str, Any] = {"power": 0.5, "battery": np.inf} | changes.pop("own", {})
    everyone = {
        "capacitance": 1e-28, "frequency": 2e9, "min_frequency": 2e6, "budget": np.inf, **own,
    }  # fmt: skip
    energy = Energy(**{name: np.broadcast_to(value, USERS).astype(float) for name, value in everyone.items()})
    values: dict[str, Any] = {
        "channel": ChannelModel(num_devices=USERS, antennas=4),
        "path_loss": False, "snr": 100.0, "noise": True, "num_selected": 4, "method": "multistart",
        "beamformer": "fast", "mode": "per_user", "packing": "iq", "payload": "delta",
        "channel_error_variance": 0.0, "csi_delay": 0, "recompute_beam": False, "certificate": False,
        "bandwidth": 1e6, "fixed_time": np.full(USERS, 1e-3), "compute_time": np.full(USERS, 4e-3),
        "latency_threshold": 6e-3, "energy": energy,
    }  # fmt: skip
    return AirInterface(**values | changes)


def strategy_of(kind: type[OverTheAir] = OverTheAir, **changes: Any) -> OverTheAir:
    parts = {"count_mode": changes.pop("count_mode")} if "count_mode" in changes else {}
    return kind(air=interface(**changes), seed=0, num_weights=SIZE, spec="", fleet=Fleet(USERS), **parts)


def air_of(plan: RoundPlan) -> AirPlan:
    assert isinstance(plan.detail, AirPlan)
    return plan.detail


def updates_of(plan: RoundPlan, masks: bool) -> dict[int, AirUpdate]:
    rng = np.random.default_rng(3)
    found = {}
    for place, user in enumerate(air_of(plan).users.tolist()):
        mask = rng.random(SIZE) < 0.5 if masks else np.ones(SIZE, bool)
        values = ((1 + place) * rng.standard_normal(SIZE) + 0.3).astype(np.float32)
        found[user] = AirUpdate(np.where(mask, values, np.float32(0)), mask, 10)
    return found


def symbols_of(entries: np.ndarray, packing: str) -> np.ndarray:
    if packing == "real":
        return entries
    padded = np.append(entries, np.zeros(entries.size % 2))
    return (padded[::2] + 1j * padded[1::2]) / np.sqrt(2)


@pytest.mark.parametrize("packing", ["iq", "real"])
def test_dense_users_spend_what_their_signals_carry(packing: Any) -> None:
    strategy = strategy_of(packing=packing)
    plan = strategy.plan(1, range(USERS))
    air = air_of(plan)
    updates = updates_of(plan, masks=False)
    found = combine_dense(
        strategy.air, "uniform", np.random.default_rng(0), plan, np.zeros(SIZE, np.float32), updates
    )
    # Every user's signal, from the definitions: b_k s_k, for one channel use after the other.
    sent = {user: update.values.astype(float) for user, update in updates.items()}
    seen = {user: air.channels.true[i] @ air.beam.conj() for i, user in enumerate(air.users.tolist())}
    amplitude = {user: values.std() / len(sent) for user, values in sent.items()}
    eta = min(abs(seen[user]) ** 2 / amplitude[user] ** 2 for user in sent)
    assert strategy.purse is not None
    rows = strategy.purse.sent(plan, found.power)
    joules = {}
    for user, values in sent.items():
        b = amplitude[user] * np.sqrt(eta) * seen[user].conj() / abs(seen[user]) ** 2
        signal = b * symbols_of((values - values.mean()) / values.std(), packing)
        joules[user] = 0.5 * float((np.abs(signal) ** 2).sum()) / 1e6  # a channel use lasts 1 / B
        assert rows[user]["transmit_energy_j"] == pytest.approx(joules[user], rel=1e-5)
    assert max(joules.values()) == pytest.approx(0.5 * air.airtime, rel=1e-3)  # the weakest: full power


@pytest.mark.parametrize("packing", ["iq", "real"])
def test_pruned_users_spend_what_their_signals_carry(packing: Any) -> None:
    strategy = strategy_of(PrunedOverTheAir, packing=packing, count_mode="bitmap")
    plan = strategy.plan(1, range(USERS))
    air = air_of(plan)
    assert all(0 < a.num_pruned < SIZE for a in plan.assignments)
    updates = updates_of(plan, masks=True)
    found = combine_pruned(
        strategy.air, np.random.default_rng(0), plan, np.zeros(SIZE, np.float32), updates,
        count_mode="bitmap", shrinkage="off", min_count=1,
    )  # fmt: skip
    sent = {user: update.values.astype(float) for user, update in updates.items()}
    seen = {user: air.channels.true[i] @ air.beam.conj() for i, user in enumerate(air.users.tolist())}
    eta = min(abs(gain) ** 2 for gain in seen.values())
    scale = max(np.sqrt((values**2).mean()) for values in sent.values())
    assert strategy.purse is not None
    rows = strategy.purse.sent(plan, found.power)
    for place, (user, values) in enumerate(sent.items()):
        signal = np.sqrt(eta) / seen[user] * symbols_of(values / scale, packing)
        gain = float(np.linalg.norm(air.channels.true[place]) ** 2)
        mask_s = SIZE / (1e6 * np.log2(1 + 100.0 * gain))
        joules = 0.5 * (float((np.abs(signal) ** 2).sum()) / 1e6 + mask_s)
        assert rows[user]["transmit_energy_j"] == pytest.approx(joules, rel=1e-5)


def test_computing_is_paid_by_cycles_and_clock() -> None:
    plan = strategy_of().plan(1, range(USERS))
    for a in plan.assignments:
        assert a.columns["compute_energy_j"] == pytest.approx(1e-28 * (5e-3 * 2e9) * (2e9) ** 2)
    assert plan.columns["energy_j"] == pytest.approx(4 * 1e-28 * 1e7 * 4e18)


def test_of_a_pruned_model_the_kept_weights_are_computed() -> None:
    """T0 for what is always done, and of G = 4 ms the share that is kept."""
    plan = strategy_of(PrunedOverTheAir, count_mode="bitmap").plan(1, range(USERS))
    pruned = {a.num_pruned for a in plan.assignments}
    assert min(pruned) > 0
    for a in plan.assignments:
        seconds = 1e-3 + (SIZE - a.num_pruned) / SIZE * 4e-3
        assert a.columns["compute_energy_j"] == pytest.approx(1e-28 * (seconds * 2e9) * (2e9) ** 2)


def test_a_battery_that_could_run_dry_on_the_air_sits_the_round_out() -> None:
    need = 1e-28 * 1e7 * 4e18 + 0.5 * 1001e-6  # computing, and all symbols at full power
    strategy = strategy_of(own={"battery": [need * 0.999, need * 1.001, 1.0, 1.0, 1.0]})
    plan = strategy.plan(1, range(USERS))
    assert plan.absent[0]["status"] == "exhausted" or 0 not in {a.device for a in plan.assignments}
    assert 0 not in {a.device for a in plan.assignments}
    everyone = strategy_of(own={"battery": 1e-9}).plan(1, range(USERS))
    assert everyone.assignments == ()
    assert everyone.columns["exhausted"] == USERS


def test_batteries_pay_for_both_and_survive_a_resume() -> None:
    strategy, other = strategy_of(own={"battery": 1.0}), strategy_of(own={"battery": 1.0})
    plan = strategy.plan(1, range(USERS))
    user = plan.assignments[0].device
    assert strategy.purse is not None
    assert other.purse is not None
    row = strategy.purse.sent(plan, {user: 0.25})[user]
    spent = 1e-28 * 1e7 * 4e18 + 0.25 * 0.5 * 1001e-6
    assert row["battery_j"] == pytest.approx(1.0 - spent)
    other.restore({name: np.array(value) for name, value in strategy.state().items()})
    np.testing.assert_array_equal(other.purse.batteries.left, strategy.purse.batteries.left)


def test_a_device_of_more_power_is_heard_as_much_better() -> None:
    alike, unlike = strategy_of(), strategy_of(own={"power": [0.5, 0.5, 0.5, 0.5, 2.0]})
    rows = [
        {a.device: float(a.columns["channel_gain_db"] or 0) for a in s.plan(1, range(USERS)).assignments}
        for s in (alike, unlike)
    ]
    both = rows[0].keys() & rows[1].keys()
    assert 4 in both
    for device in both:
        power = 2.0 if device == 4 else 0.5
        assert rows[1][device] - rows[0][device] == pytest.approx(10 * np.log10(power / 0.8))


@pytest.mark.parametrize("mode", ["dense", "bitmap", "common_mask"])
def test_side_information_takes_its_time_and_no_pruned_round_exceeds_the_threshold(mode: str) -> None:
    kind: Any = {"dense": {}}.get(mode, {"kind": PrunedOverTheAir, "count_mode": mode})
    free = strategy_of(**kind)
    charged = strategy_of(**kind, charge_side_information=True)
    plans = [strategy.plan(1, range(USERS)) for strategy in (free, charged)]
    columns = plans[1].columns
    assert float(columns["side_information_s"] or 0) > 0
    assert "side_information_s" not in free.round_columns
    assert set(columns) <= set(charged.round_columns)
    users = len(air_of(plans[1]).users)
    own = 2 if mode == "dense" else 1  # mean and deviation, or a norm
    common = SIZE if mode == "common_mask" else 0  # who keeps what is broadcast, a bit per weight
    assert columns["side_information_bits"] == users * own * 32 + (1 + 2 * users) * 32 + common
    if mode == "dense":
        longer = float(columns["latency_s"] or 0) - float(plans[0].columns["latency_s"] or 0)
        assert longer == pytest.approx(columns["side_information_s"])
        assert users == 4
    else:
        assert float(columns["latency_s"] or 0) <= 6e-3 * (1 + 1e-9)
        kept = [sum(SIZE - a.num_pruned for a in plan.assignments) for plan in plans]
        assert kept[1] > 0
        if mode == "common_mask":
            assert kept[1] < kept[0]
    assert (air_of(plans[1]).digital > air_of(plans[0]).digital).all() or mode == "bitmap"


def test_without_energy_nothing_is_known_of_joules() -> None:
    strategy = strategy_of()
    strategy.air = dataclasses.replace(strategy.air, energy=None)
    strategy.purse = None
    assert "energy_j" not in strategy.plan(1, range(USERS)).columns
