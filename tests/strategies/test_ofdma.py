"""What a planned OFDMA round costs, against the bytes of real uploads and against the threshold."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radio import payload
from radio.channel import ChannelModel
from radio.payload.sizes import position_bytes
from strategies.fleet import Fleet
from strategies.ofdma import OfdmaCell, OfdmaStrategy
from strategies.plan import OfdmaPlan, RoundPlan

PROMISING = ["joint", "joint_physical_noise", "equal_bandwidth", "printed_formula"]


def cell_of(devices: int, **changes: Any) -> OfdmaCell:
    values: dict[str, Any] = {
        "channel": ChannelModel(num_devices=devices, antennas=8),
        "fixed_time": np.full(devices, 1e-3),
        "compute_time": np.full(devices, 4e-3),
        "bandwidth": 2e6,
        "transmit_power": 0.63,
        "noise_power": 1e-14,
        "latency_threshold": 25e-3,
    }
    return OfdmaCell(**(values | changes))


def _ofdma(plan: RoundPlan) -> OfdmaPlan:
    assert isinstance(plan.detail, OfdmaPlan)
    return plan.detail


def strategy_of(cell: OfdmaCell, policy: str, num_weights: int, seed: int = 0) -> OfdmaStrategy:
    return OfdmaStrategy(
        cell=cell,
        policy=policy,
        seed=seed,
        num_weights=num_weights,
        spec="",
        fleet=Fleet(cell.channel.num_devices),
    )


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_planned_bits_are_the_bytes_of_the_upload_and_no_round_exceeds_its_threshold(data: Any) -> None:
    """Every policy that promises the threshold, over noise models, fadings, widths, sizes and mask forms."""
    devices = data.draw(st.integers(1, 6))
    width = data.draw(st.sampled_from([8, 16, 32]))
    size = data.draw(st.one_of(st.integers(1, 300), st.sampled_from([2047, 2048, 2049, 20_000, 70_001])))
    charged = data.draw(st.booleans())
    channel = ChannelModel(
        num_devices=devices,
        antennas=data.draw(st.sampled_from([1, 64])),
        fading=data.draw(st.sampled_from(["rayleigh", "none"])),
        placement=data.draw(st.sampled_from(["rings", "random"])),
        shadowing_std_db=data.draw(st.sampled_from([0.0, 8.0])),
    )
    cell = cell_of(
        devices,
        channel=channel,
        bandwidth=size * 10 ** data.draw(st.floats(0, 4)),
        noise_model=data.draw(st.sampled_from(["fixed", "proportional"])),
        bits_per_weight=width,
        charge_mask_bits=charged,
        max_pruning_ratio=data.draw(st.sampled_from([1.0, 0.9])),
        when_infeasible="drop",
    )
    strategy = strategy_of(
        cell, data.draw(st.sampled_from(PROMISING)), size, seed=data.draw(st.integers(0, 99))
    )
    plan = strategy.plan(1, range(devices))
    assert _ofdma(plan).latency({}) <= cell.latency_threshold * (1 + 1e-9)
    rng = np.random.default_rng(0)
    for assignment in plan.assignments:
        mask = np.zeros(size, dtype=bool)
        mask[rng.choice(size, size - assignment.num_pruned, replace=False)] = True
        kept = int(mask.sum())
        sent = (
            8 * len(payload.encode(rng.standard_normal(size).astype(np.float32), mask, bits=width))
            if kept
            else 0
        )
        columns = _ofdma(plan).account(assignment.device, kept)
        positions = 8 * position_bytes(size, kept)[1] + payload.header_bits() if kept else 0
        assert columns["uplink_bits"] == (sent if charged else sent - positions)


@pytest.mark.parametrize("noise_model", ["fixed", "proportional"])
@pytest.mark.parametrize("policy", ["joint", "joint_physical_noise", "equal_bandwidth"])
def test_latencies_follow_from_shares_gains_and_bits(policy: str, noise_model: Any) -> None:
    """T = T0 + kept share G + bits / rate, R = b B log2(1 + h p / sigma^2); noise times b if proportional."""
    strategy = strategy_of(cell_of(5, noise_model=noise_model), policy, 20_000)
    plan = strategy.plan(3, range(5))
    pruned = [a.num_pruned for a in plan.assignments]
    assert 0 < sum(pruned) < 5 * 20_000
    for assignment in plan.assignments:
        row = assignment.columns
        b, h = float(row["bandwidth_fraction"] or 0), 10 ** (float(row["channel_gain_db"] or 0) / 10)
        kept = 20_000 - assignment.num_pruned
        expected = 1e-3
        if kept:
            noise = 1e-14 * (b if noise_model == "proportional" else 1)
            speed = b * 2e6 * np.log2(1 + h * 0.63 / noise)
            expected += kept / 20_000 * 4e-3 + payload.payload_bits(20_000, kept) / speed
        assert row["planned_latency_s"] == pytest.approx(expected, rel=1e-9)


def test_a_round_in_which_nobody_is_feasible_takes_the_time_of_the_personal_steps() -> None:
    cell = cell_of(3, fixed_time=np.array([30e-3, 28e-3, 26e-3]))
    strategy = strategy_of(cell, "joint", 1000)
    plan = strategy.plan(1, range(3))
    assert all(a.columns["allocation"] == "infeasible" for a in plan.assignments)
    assert _ofdma(plan).latency({}) == 30e-3
    # With one that is, nobody waits for the others.
    mixed = strategy_of(cell_of(3, fixed_time=np.array([30e-3, 28e-3, 1e-3])), "joint", 1000)
    assert _ofdma(mixed.plan(1, range(3))).latency({}) < 25e-3


def test_a_device_that_failed_holds_its_planned_slot_and_one_that_answered_its_own() -> None:
    strategy = strategy_of(cell_of(2), "equal_bandwidth", 1000)
    plan = strategy.plan(1, range(2))
    planned = [float(a.columns["planned_latency_s"] or 0) for a in plan.assignments]
    assert _ofdma(plan).latency({}) == max(planned)
    assert _ofdma(plan).latency({0: 1.0}) == 1.0
    assert _ofdma(plan).latency({0: 0.0, 1: 0.0}) == 0.0


def broken(problem: Any, *, pruning_ratio: Any = None) -> Any:
    return dict[str, Any]()["nothing"]


def too_short(problem: Any, *, pruning_ratio: Any = None) -> Any:
    from radio.allocation import Allocation

    return Allocation.of_shares([1.0], [0.0])


@pytest.mark.parametrize(
    ("policy", "text"),
    [
        (f"{__name__}:broken", "KeyError"),
        (f"{__name__}:too_short", "shapes"),
        ("printed_formula", "compute_time = 0.0 must be > 0"),
        ("fixed_ratio", "pruning_ratio = None"),
    ],
)
def test_a_policy_that_cannot_work_is_found_before_the_first_round(policy: str, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        strategy_of(cell_of(2, compute_time=np.zeros(2)), policy, 100)
