"""A stale upload of weights is an update of what it started from, damped, on the weights of now."""

import numpy as np
import pytest

from protocol.messages import TrainReport
from radio import payload
from strategies.buffers import SharedBuffers
from strategies.masked import MaskedReceiver
from strategies.plan import Assignment, OfdmaPlan, RoundPlan, Slot
from strategies.versions import Start, Version

N = 6
OLD = np.arange(N, dtype=np.float32)
NOW = OLD * 2 + 1
KEPT = np.array([True, True, True, False, False, True])


def _received(*uploads, scale=1.0):
    """Aggregate (values, mask, start) of devices 0, 1, ...; return the outcome and the updates' norms."""
    assignments = tuple(
        Assignment(device, int(N - mask.sum()), start=start)
        for device, (_, mask, start) in enumerate(uploads)
    )
    slots = {assignment.device: Slot(8, 1.0, counts=True) for assignment in assignments}
    receiver = MaskedReceiver(RoundPlan(assignments, detail=OfdmaPlan(32, slots, seconds=2.5)), NOW)
    norms = []
    for assignment, (values, mask, _) in zip(assignments, uploads, strict=True):
        report = TrainReport(np.frombuffer(payload.encode(values, mask), np.uint8), 5)
        upload = receiver.open(assignment, report)
        norms.append(upload.norm)
        receiver.add(assignment, report, upload, scale=scale, num_examples=5)
    return receiver.finish(), norms


def test_alone_it_moves_what_it_kept_by_its_own_update_times_its_weight():
    change = np.array([1, -2, 3, 9, 9, 4], np.float32)
    outcome, norms = _received((OLD + change, KEPT, Start(Version(0, OLD), 3, 0.5)))
    np.testing.assert_array_equal(outcome.weights, np.where(KEPT, NOW + np.float32(0.5) * change, NOW))
    assert norms == [pytest.approx(np.sqrt(1 + 4 + 9 + 16))]  # of its own update: what is limited
    assert outcome.columns["latency_s"] == 2.5  # the window's, not the device's


def test_beside_fresh_ones_the_mean_is_of_what_they_ask_for():
    everything = np.ones(N, bool)
    fresh, stale = NOW + np.float32(1), OLD - np.float32(2)
    outcome, _ = _received(
        (fresh, everything, Start(Version(4, NOW), 0, 1.0)),
        (stale, KEPT, Start(Version(0, OLD), 4, 0.25)),
    )
    np.testing.assert_allclose(outcome.weights, NOW + np.where(KEPT, (1 - 0.5) / 2, 1), rtol=1e-6)


def test_a_fresh_one_is_taken_bit_for_bit_as_ever():
    rng = np.random.default_rng(1)
    values = [rng.standard_normal(N).astype(np.float32) for _ in range(3)]
    masks = [rng.random(N) < 0.7 for _ in range(3)]
    ever, _ = _received(*((value, mask, None) for value, mask in zip(values, masks, strict=True)))
    start = Start(Version(7, NOW.copy()), 0, 1.0)
    fresh, _ = _received(*((value, mask, start) for value, mask in zip(values, masks, strict=True)))
    assert ever.weights.tobytes() == fresh.weights.tobytes()


def test_a_clipped_stale_one_is_clipped_and_damped():
    change = np.full(N, 8, np.float32)
    outcome, _ = _received((OLD + change, np.ones(N, bool), Start(Version(0, OLD), 3, 0.5)), scale=0.25)
    np.testing.assert_array_equal(outcome.weights, NOW + 1)


def test_stale_running_statistics_count_less():
    buffers = SharedBuffers({"mean": np.zeros(2, np.float32)})
    buffers.add({"mean": np.array([1, 1], np.float32)}, 10 * 1.0)
    buffers.add({"mean": np.array([4, 7], np.float32)}, 10 * 0.5)
    buffers.finish()
    np.testing.assert_allclose(buffers.values["mean"], [2, 3])
