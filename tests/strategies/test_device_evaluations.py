"""What one device reports of its test moves a mean by its share and decides nothing alone."""

import math

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from engines.inprocess import InProcessGrid
from protocol.arrays import weights_record
from protocol.fields import MessageError
from protocol.messages import METRICS
from strategies.base import DivergedError
from strategies.evaluation import Evaluation, summarise
from strategies.fleet import Fleet
from strategies.measured import MeasuredLink, MeasuredStrategy
from strategies.sample_counts import SampleCounts

REPORTS = st.lists(
    st.tuples(st.floats(0, 1), st.floats(0, 10), st.integers(1, 1000)), min_size=1, max_size=20
)


@pytest.fixture(scope="module")
def grid():
    with InProcessGrid("client_app.app:app", 10) as grid:
        yield grid


def _evaluate(grid, reports, **options):
    """Let the first devices report; return the strategy."""
    strategy = MeasuredStrategy(
        link=MeasuredLink(threshold=1.0), seed=1, num_weights=4, spec="", fleet=Fleet(10),
        divergence_loss=1000.0, **options,
    )  # fmt: skip
    strategy.fleet.wait(grid, 10.0)
    strategy._weights = np.zeros(4, np.float32)
    orders = list(strategy.configure_evaluate(1, weights_record(strategy._weights), ConfigRecord(), grid))
    replies = []
    for order, report in zip(orders, reports, strict=False):
        order.metadata.__dict__["_message_id"] = str(order.metadata.dst_node_id)
        replies.append(Message(RecordDict({METRICS: MetricRecord(report)}), reply_to=order))
    strategy.aggregate_evaluate(1, replies)
    return strategy


def _report(accuracy=0.9, loss=0.5, number=20):
    return {"accuracy": accuracy, "loss": loss, "num-examples": number}


@pytest.mark.parametrize("loss", [1e5, 1e308, math.inf, math.nan, 10**400, 1000.1])
def test_one_diverged_loss_neither_ends_the_run_nor_leaves_silently(grid, loss):
    """Its accuracy stays in the means, its loss has no part, and the row says so."""
    strategy = _evaluate(grid, [*[_report()] * 9, _report(0.1, loss)])
    columns = strategy.log.columns
    assert columns["accuracy_mean"] == pytest.approx((9 * 0.9 + 0.1) / 10)
    assert columns["accuracy_worst"] == 0.1
    assert columns["loss_mean"] == columns["loss_median"] == 0.5
    assert (columns["evaluated"], columns["diverged"]) == (10, 1)
    assert [row["evaluation"] for _, row in sorted(strategy.log.devices.items())] == ["ok"] * 9 + ["diverged"]
    assert strategy.log.devices[9]["test_loss"] > 1000


@pytest.mark.parametrize("loss", [math.inf, math.nan, 2000.0])
def test_more_than_half_diverged_end_the_run(grid, loss):
    with pytest.raises(DivergedError, match="6 of 10 devices"):
        _evaluate(grid, [*[_report()] * 4, *[_report(0.1, loss)] * 6])
    strategy = _evaluate(grid, [*[_report()] * 5, *[_report(0.1, loss)] * 5])
    assert strategy.log.columns["diverged"] == 5


def test_all_infinite_is_diverged_and_not_an_empty_row(grid):
    with pytest.raises(DivergedError, match="10 of 10 devices"):
        _evaluate(grid, [_report(0.1, math.inf)] * 10)


@pytest.mark.parametrize(
    "report",
    [
        _report(loss=-1e9),
        _report(accuracy=1.1),
        _report(accuracy=math.nan),
        _report(number=0),
        _report(number=-5),
        {"accuracy": 0.5, "loss": 0.5},
        {"accuracy": [0.5], "loss": 0.5, "num-examples": 5},
        {"accuracy": 10**400, "loss": 0.5, "num-examples": 5},
    ],
)
def test_what_cannot_be_of_a_test_is_left_out_by_name(grid, report):
    strategy = _evaluate(grid, [*[_report()] * 9, report])
    assert strategy.log.columns["evaluated"] == 9
    assert strategy.log.columns["accuracy_mean"] == pytest.approx(0.9)
    assert strategy.log.devices[9]["evaluation"] == "unusable"


def test_a_device_cannot_claim_more_test_images_than_it_has(grid):
    """Nine devices with 20 images each and accuracy 0.9, one that claims 10^18 with accuracy 0."""
    dealt = SampleCounts([20] * 10, what="test images")
    strategy = _evaluate(grid, [*[_report()] * 9, _report(0.0, 0.5, 10**18)], test_counts=dealt)
    assert strategy.log.columns["accuracy_samples"] == pytest.approx(0.81)
    assert strategy.log.devices[9]["num_test"] == 20


@given(REPORTS)
def test_the_columns_are_the_means_of_the_rows(reports):
    evaluations = {
        k: Evaluation(report[1], report[2], {"accuracy": report[0]}) for k, report in enumerate(reports)
    }
    counts = {k: report[2] for k, report in enumerate(reports)}
    columns = summarise(evaluations, counts, 1000.0)
    images = sum(counts.values())
    right = sum(accuracy * number for accuracy, _, number in reports)
    assert columns["accuracy_samples"] == pytest.approx(right / images)
    assert columns["accuracy_mean"] == pytest.approx(sum(r[0] for r in reports) / len(reports))
    assert columns["loss_mean"] == pytest.approx(sum(r[1] for r in reports) / len(reports))
    assert min(r[0] for r in reports) - 1e-12 <= float(columns["accuracy_samples"]) <= 1


@given(st.lists(st.floats(0, 1e6) | st.just(math.inf), min_size=1, max_size=15))
def test_the_median_loss_is_above_the_limit_exactly_where_more_than_half_have_diverged(losses):
    evaluations = {k: Evaluation(loss, 1, {"accuracy": 0.5}) for k, loss in enumerate(losses)}
    columns = summarise(evaluations, dict.fromkeys(evaluations, 1), 1000.0)
    assert (float(columns["loss_median"]) > 1000.0) == (2 * float(columns["diverged"]) > len(losses))


def test_a_reply_without_metrics():
    message = Message(RecordDict(), dst_node_id=1, message_type="evaluate")
    with pytest.raises(MessageError, match="lacks"):
        Evaluation.from_message(message)
