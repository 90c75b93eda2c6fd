"""Whatever arrives, the server goes on, and nothing but finite values of the right number is averaged."""

import zlib
from contextlib import suppress
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from engines.inprocess import InProcessGrid
from protocol.arrays import weights_record
from protocol.messages import METRICS, UPLOAD
from radio import payload
from records.recorder import Recorder
from strategies.base import DivergedError
from strategies.fleet import Fleet
from strategies.limits import NormLimit
from strategies.measured import MeasuredLink, MeasuredStrategy

N, DEVICES, ROUNDS = 257, 10, 1_050  # 10 500 replies of either kind; about a tenth are left whole
HUGE = 2**62


@pytest.fixture(scope="module")
def grid():
    with InProcessGrid("client_app.app:app", DEVICES) as grid:
        yield grid


def _strategy(grid, **options):
    strategy = MeasuredStrategy(
        link=MeasuredLink(threshold=1.0, initial_pruning_ratio=0.25),
        seed=1, num_weights=N, spec="", fleet=Fleet(DEVICES), **options,
    )  # fmt: skip
    strategy.fleet.wait(grid, 10.0)
    return strategy


def _upload(rng, kept):
    mask = np.zeros(N, bool)
    mask[rng.choice(N, kept, replace=False)] = True
    values = rng.standard_normal(N).astype(np.float32)
    return np.frombuffer(
        payload.encode(values, mask, bits=int(rng.choice([32, 32, 32, 16, 8]))), np.uint8
    ).copy()


def _mutate_bytes(rng, data):
    kind = rng.integers(5)
    if kind == 0:
        data[rng.integers(data.size)] ^= rng.integers(1, 256)
    elif kind == 1:
        data = data[: rng.integers(data.size)]
    elif kind == 2:
        data = np.concatenate([data, rng.integers(0, 256, rng.integers(1, 50), dtype=np.uint8)])
    elif kind == 3:
        start = rng.integers(data.size)
        data[start : start + 8] = rng.integers(0, 256, data[start : start + 8].size)
    else:
        values = data[-40 + data.size % 4 if data.size > 40 else 0 :]
        values = values[: values.size // 4 * 4].view(np.float32)
        if values.size:
            values[rng.integers(values.size)] = rng.choice([np.nan, np.inf, -np.inf, 3e38])
    return _sign(data) if rng.random() < 0.5 else data


def _sign(data):
    """Give damaged bytes the checksum that they need to be looked at more closely."""
    if data.size >= 28:
        checksum = zlib.crc32(data[28:].tobytes(), zlib.crc32(data[:24].tobytes()))
        data[24:28] = np.frombuffer(checksum.to_bytes(4, "little"), np.uint8)
    return data


def _odd_array(rng, data):
    kind = rng.integers(6)
    if kind == 0:
        return Array(data.astype(np.float64))
    if kind == 1:
        return Array(data.reshape(1, -1))
    if kind == 2:
        return Array(np.array(1, np.uint8))
    if kind == 3:
        return Array(dtype="uint8", shape=(data.size,), stype="numpy.ndarray", data=b"not an array")
    if kind == 4:
        broken = bytearray(Array(data).data)
        broken[rng.integers(min(len(broken), 90))] ^= int(rng.integers(1, 256))
        return Array(dtype="uint8", shape=(data.size,), stype="numpy.ndarray", data=bytes(broken))
    return Array(np.zeros(0, np.uint8))


_ODD_METRICS: tuple[dict[str, Any], ...] = (
    {}, {"num-examples": 0}, {"num-examples": -3}, {"num-examples": 1.5}, {"num-examples": HUGE},
    {"num-examples": [1, 2]}, {"num-examples": 5, "personal-loss": float("nan")},
    {"num-examples": 5, "global-loss": float("inf")}, {"num-examples": 5, "no-such-column": 1.0},
    {"num-examples": 5, "measured-compute-seconds": -1.0},
    {"num-examples": 5, "measured-compute-seconds": HUGE},
    {"num-examples": 5, "stated-uplink-bps": -5.0}, {"num-examples": 5, "stated-uplink-bps": 1e-300},
    {"num-examples": 5, "measured-compute-seconds": [1.0]}, {"num-examples": 5, "state-set-aside": 1.0},
    {"num-examples": 5, "status": 1.0}, {"num-examples": 5, "test-accuracy": 7.0},
    {"num-examples": 10**400}, {"num-examples": 5, "personal-loss": -(10**400)},
    {"num-examples": 5, "measured-train-seconds": 10**400}, {"num-examples": 5, "stated-uplink-bps": 1e308},
)  # fmt: skip


def _content(rng, kept):
    data = _upload(rng, kept)
    metrics = {"num-examples": 5, "measured-compute-seconds": 0.1, "stated-uplink-bps": 1e6}
    kind = rng.integers(10)
    if kind in (1, 2, 3, 4):
        data = _mutate_bytes(rng, data)
    elif kind == 5:
        data = _upload(rng, int(rng.integers(0, N + 1)))
    elif kind == 6:
        metrics = _ODD_METRICS[rng.integers(len(_ODD_METRICS))]
    content = RecordDict({METRICS: MetricRecord(dict(metrics))})
    content[UPLOAD] = ArrayRecord({"payload": _odd_array(rng, data) if kind == 7 else Array(data)})
    if kind == 8:
        del content[UPLOAD if rng.random() < 0.5 else METRICS]
    elif kind == 9:
        content[METRICS if rng.random() < 0.5 else UPLOAD] = ConfigRecord({"num-examples": 5})
    return content


_ODD_EVALUATIONS: tuple[dict[str, Any], ...] = (
    {}, {"accuracy": 0.5}, {"accuracy": float("nan"), "loss": 1.0}, {"accuracy": 0.5, "loss": float("inf")},
    {"accuracy": [0.5], "loss": 1.0}, {"accuracy": HUGE, "loss": 1.0}, {"accuracy": -0.1, "loss": 1.0},
    {"accuracy": 0.5, "loss": [1.0, 2.0]}, {"accuracy": 1, "loss": 0}, {"accuracy": 0.25, "loss": 2.0},
    {"accuracy": 10**400, "loss": 1.0}, {"accuracy": 0.5, "loss": 10**400},
    {"accuracy": 0.5, "loss": 1.0, "num-examples": 10**400}, {"accuracy": 0.5, "loss": -1e300},
    {"accuracy": 0.5, "loss": 1.0, "num-examples": 0}, {"accuracy": 0.5, "loss": 1.0, "num-examples": 2.5},
)  # fmt: skip


def _evaluation(rng):
    odd = _ODD_EVALUATIONS[rng.integers(len(_ODD_EVALUATIONS))]
    kind = rng.integers(10)
    if kind == 0:
        return RecordDict()
    if kind == 1:
        return RecordDict({METRICS: ConfigRecord({"accuracy": 0.5, "loss": 1.0})})
    return RecordDict({METRICS: MetricRecord({"num-examples": 3, **odd})})


def _replies(orders, contents, rng):
    replies = []
    for order, content in zip(orders, contents, strict=True):
        order.metadata.__dict__["_message_id"] = str(uuid4())
        reply = Message(content, reply_to=order)
        if rng.random() < 0.02:
            reply.metadata.__dict__["_src_node_id"] = int(rng.integers(0, HUGE))
        replies.append(reply)
        if rng.random() < 0.05:
            replies.append(reply)  # twice
    rng.shuffle(replies)
    return replies


@pytest.mark.parametrize("weighting", ["uniform", "samples"])
def test_ten_thousand_mutated_replies(grid, tmp_path, weighting):
    rng = np.random.default_rng(5)
    strategy = _strategy(grid, weighting=weighting, norm_limit=NormLimit(100.0, "reject"))
    recorder = Recorder(
        tmp_path,
        round_columns=strategy.round_columns,
        device_columns=strategy.device_columns,
        device_timing_columns=strategy.device_timing_columns,
    )
    weights = np.zeros(N, np.float32)
    used = 0
    for number in range(1, (ROUNDS if weighting == "uniform" else ROUNDS // 10) + 1):
        orders = list(strategy.configure_train(number, weights_record(weights), ConfigRecord(), grid))
        kept = [N - assignment.num_pruned for assignment in strategy._plan.assignments]
        contents = [_content(rng, number_kept) for number_kept in kept]
        updated, _ = strategy.aggregate_train(number, _replies(orders, contents, rng))
        used += int(strategy.log.columns["replies"])
        if updated is not None:
            weights = updated["weights"].numpy()
        assert weights.shape == (N,)
        assert weights.dtype == np.float32
        assert np.isfinite(weights).all()
        assert np.abs(weights).max() < 200
        orders = list(strategy.configure_evaluate(number, weights_record(weights), ConfigRecord(), grid))
        with suppress(DivergedError):  # more than half of what could be read was infinite: rightly seen
            strategy.aggregate_evaluate(number, _replies(orders, [_evaluation(rng) for _ in orders], rng))
        assert 0 <= strategy.log.columns.get("accuracy_worst", 0.0) <= 1
        assert np.isfinite(strategy.log.columns.get("loss_mean") or 0.0)
        if number % 25 == 1:
            recorder.record(strategy.log, {})
    assert used > number  # whole ones get through


def _report(values, mask):
    upload = np.frombuffer(payload.encode(values, mask, bits=32), np.uint8)
    return RecordDict(
        {
            METRICS: MetricRecord({"num-examples": 5}),
            UPLOAD: ArrayRecord({"payload": Array(upload)}),
        }
    )


@pytest.mark.parametrize("action", ["reject", "clip"])
def test_one_device_cannot_carry_the_model_away(grid, action):
    """Nine devices stay where they are, one jumps far: rejected, or moved by limit / 10 in its direction."""
    strategy = _strategy(grid, norm_limit=NormLimit(10.0, action))
    strategy.link = MeasuredLink(threshold=1.0)
    orders = list(strategy.configure_train(1, weights_record(np.zeros(N, np.float32)), ConfigRecord(), grid))
    mask, jump = np.ones(N, bool), np.full(N, 1e6, np.float32)
    contents = [_report(jump if i == 3 else 0 * jump, mask) for i in range(DEVICES)]
    updated, _ = strategy.aggregate_train(1, _replies(orders, contents, np.random.default_rng(1)))
    moved = np.linalg.norm(updated["weights"].numpy())
    if action == "reject":
        assert moved == 0
        assert "norm" in strategy.log.devices[3]["reason"]
    else:
        assert moved == pytest.approx(10.0 / DEVICES, rel=1e-4)
