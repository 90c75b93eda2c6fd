"""What is taken of an upload is what the plan says, and a round waits with its uploads only while it must."""

import dataclasses

import numpy as np
import pytest

from protocol.messages import TrainReport
from radio import payload
from server_app.job import prepare
from server_app.settings import compose_settings
from server_app.strategy import build_strategy
from strategies import intake as intake_module
from strategies.air_receiver import air_plan
from strategies.intake import Intake
from strategies.limits import UploadError
from strategies.masked import MaskedReceiver
from strategies.plan import OfdmaPlan, RoundPlan

SMALL = ("model=mlp", "partition.samples_per_device=20", "partition.test_samples_per_device=10")


def _strategy(*overrides):
    return build_strategy(prepare(compose_settings([*SMALL, *overrides])))


def _upload(weights, assignment, step, bits=32):
    mask = np.ones(weights.size, bool)
    mask[: assignment.num_pruned] = False
    encoded = payload.encode(weights + np.float32(step), mask, bits=bits)
    return TrainReport(np.frombuffer(encoded, np.uint8), 20)


@pytest.mark.parametrize("scheme", ["proposed", "over_the_air", "aircomp_pruned"])
@pytest.mark.parametrize("bits", [32, 16, 8])
def test_an_upload_of_other_bits_than_planned_is_refused(scheme, bits):
    """The round was accounted for the plan's; what the air superposes are float32."""
    digital = scheme == "proposed"
    strategy = _strategy(f"scheme={scheme}", *(["radio.bits_per_weight=8"] if digital else []))
    planned = 8 if digital else 32
    weights = np.zeros(strategy.num_weights, np.float32)
    plan = strategy.plan(1, range(10))
    receiver, first = strategy.receive(1, plan, weights), plan.assignments[0]
    report = _upload(weights, first, 0.01, bits)
    if bits == planned:
        assert receiver.open(first, report).num_bytes == report.payload.size
    else:
        with pytest.raises(UploadError, match=f"{bits} bits per weight; the plan says {planned}"):
            receiver.open(first, report)


def _round(strategy, steps, number=1):
    """Let device k send an update that moves every weight by steps[k]; return the next global part."""
    weights = np.zeros(strategy.num_weights, np.float32)
    plan = strategy.plan(number, range(10))
    strategy.log.devices.clear()
    intake = Intake(strategy, strategy.receive(number, plan, weights))
    for assignment, step in zip(plan.assignments, steps, strict=True):
        try:
            intake.take(assignment, _upload(weights, assignment, step))
        except UploadError as error:
            strategy.fail(assignment.device, str(error))
    intake.close()
    strategy.norms.close(intake.norms)
    failed = [device for device, row in sorted(strategy.log.devices.items()) if row["status"] == "failed"]
    return intake.receiver.finish()[0], failed


@pytest.mark.parametrize("hostile", [0, 4, 9])
def test_in_the_first_round_it_does_not_matter_where_the_hostile_device_stands(hostile):
    """Its own round's norms decide, and only when all are there."""
    steps = [0.01] * 10
    steps[hostile] = 1.0
    moved, failed = _round(_strategy("scheme=fedavg"), steps)
    assert failed == [hostile]
    np.testing.assert_allclose(moved, 0.01, rtol=1e-6)


def test_later_rounds_decide_at_once():
    strategy = _strategy("scheme=fedavg")
    for number in (1, 2):
        _round(strategy, [0.01] * 10, number)
    weights = np.zeros(strategy.num_weights, np.float32)
    intake = Intake(strategy, strategy.receive(3, strategy.plan(3, range(10)), weights))
    assert intake._limit is not None
    assert _round(strategy, [1.0, *[0.01] * 9], 3)[1] == [0]


def test_clipping_moves_the_mean_by_no_more_than_the_limit():
    strategy = _strategy("scheme=fedavg", "fleet.upload_norm_action=clip")
    moved, failed = _round(strategy, [100.0, *[0.01] * 9])
    assert failed == []
    np.testing.assert_allclose(moved, (9 * 0.01 + 6 * 0.01) / 10, rtol=1e-5)


def test_what_waits_is_bounded(monkeypatch):
    """Beyond the bound the first uploads decide: the memory of a round does not grow with its devices."""
    monkeypatch.setattr(intake_module, "_HELD_BYTES", 0)
    monkeypatch.setattr(intake_module, "_HELD_UPLOADS", 4)
    strategy = _strategy("scheme=fedavg")
    moved, failed = _round(strategy, [*[0.01] * 5, 1.0, *[0.01] * 4])
    assert failed == [5]
    np.testing.assert_allclose(moved, 0.01, rtol=1e-6)


def test_while_there_is_room_all_wait_however_many_they_are(monkeypatch):
    """The first three would let each other in; among ten they are the odd ones out."""
    monkeypatch.setattr(intake_module, "_HELD_UPLOADS", 3)
    moved, failed = _round(_strategy("scheme=fedavg"), [*[1.0] * 3, *[0.01] * 7])
    assert failed == [0, 1, 2]
    np.testing.assert_allclose(moved, 0.01, rtol=1e-6)


def test_a_resumed_strategy_rejects_what_the_first_would():
    strategy, other = _strategy("scheme=fedavg"), _strategy("scheme=fedavg")
    for number in (1, 2):
        _round(strategy, [0.01] * 10, number)
    other.restore(strategy.state())
    steps = [*[0.3] * 6, *[0.01] * 4]  # a majority now; only who remembers rejects it
    assert _round(strategy, steps, 3)[1] == _round(other, steps, 3)[1] == [0, 1, 2, 3, 4, 5]


def test_a_round_in_which_nothing_is_sent_leaves_the_global_part_and_takes_its_time():
    """Every device infeasible and dropped: each does what it does for itself."""
    strategy = _strategy(
        "radio.latency_threshold_ms=0.01", "radio.when_infeasible=drop", "radio.max_pruning_ratio=0.9"
    )
    plan = strategy.plan(1, range(10))
    assert all(assignment.num_pruned == strategy.num_weights for assignment in plan.assignments)
    receiver = strategy.receive(1, plan, np.ones(strategy.num_weights, np.float32))
    for assignment in plan.assignments:
        report = TrainReport(None, 20)
        assert receiver.open(assignment, report) is None
        receiver.add(assignment, report, None, scale=1.0, num_examples=20)
    weights, columns, covered, *_ = receiver.finish()
    assert columns["latency_s"] == pytest.approx(max(strategy.cell.fixed_time))
    assert columns["latency_s"] > 0
    assert columns["uncovered_share"] == 1.0
    assert not covered.any()
    assert (weights == 1).all()


@pytest.mark.parametrize("detail", [None, OfdmaPlan(32, {})])
def test_what_the_air_adds_needs_a_plan_of_the_air(detail):
    with pytest.raises(TypeError, match="an AirPlan is needed"):
        air_plan(RoundPlan((), detail=detail))


def test_an_average_needs_a_plan_of_a_digital_uplink():
    with pytest.raises(TypeError, match="no digital uplink"):
        MaskedReceiver(RoundPlan(()), np.zeros(3, np.float32))


def test_who_sends_nothing_moves_the_control_variate_by_nothing():
    """SCAFFOLD: c + sum_k (c_k' - c_k) / |S| over all that took part, those without an upload as well."""
    strategy = _strategy("scheme=fixed_ratio", "scheme.pruning_ratio=0", "training=scaffold")
    size = strategy.num_weights
    plan = strategy.plan(1, range(10))
    everything = np.ones(size, bool)
    receiver = strategy.receive(1, plan, np.zeros(size, np.float32))
    (name,) = plan.detail.vectors
    *others, last = plan.assignments
    moved = np.frombuffer(payload.encode(np.full(size, 0.3, np.float32), everything), np.uint8)
    for assignment in (*others, dataclasses.replace(last, num_pruned=size)):
        sends = assignment.num_pruned == 0
        report = TrainReport(moved, 20, arrays={name: moved}) if sends else TrainReport(None, 20)
        upload = receiver.open(assignment, report)
        receiver.add(assignment, report, upload, scale=1.0, num_examples=20)
    found = receiver.finish()
    mean, took_part = found.vectors[name]
    np.testing.assert_allclose(mean, 0.27, rtol=1e-6)
    assert took_part == 10
    np.testing.assert_allclose(found.weights, 0.3, rtol=1e-6)  # weights are averaged over their keepers


def test_an_upload_within_the_limit_is_taken_to_the_last_bit():
    """Not as a sum of the broadcast and a difference, which rounds where the two are far apart."""
    strategy = _strategy("scheme=fedavg")
    weights = np.full(strategy.num_weights, 1e8, np.float32)
    plan = strategy.plan(1, range(10))
    receiver = strategy.receive(1, plan, weights)
    for assignment in plan.assignments:
        report = _upload(np.zeros_like(weights), assignment, 0.7)
        receiver.add(assignment, report, receiver.open(assignment, report), scale=1.0, num_examples=20)
    np.testing.assert_array_equal(receiver.finish().weights, np.float32(0.7))
