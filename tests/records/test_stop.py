"""When a run ends before its last round, with the words of Keras and Lightning."""

from dataclasses import replace

import pytest

from records.stop import EarlyStop, StopSettings, rises
from schema import ConfigError

NEVER = StopSettings(
    metric="accuracy_mean", mode="auto", patience=None, min_delta=0.0, threshold=None, from_round=1
)
COLUMNS = ("accuracy_mean", "loss_mean", "latency_s", "energy_j")


def _end(values, *, metric="accuracy_mean", **settings):
    """Return the round with which a run ends that has these values, and what is said of it."""
    stop = EarlyStop(replace(NEVER, metric=metric, **settings), COLUMNS)
    for server_round, value in enumerate(values, 1):
        if stop.see(server_round, {} if value is None else {metric: value}):
            return server_round, stop.summary()["stopped"]
    assert stop.summary() == {}
    return None, {}


def test_a_run_goes_to_its_last_round_unless_told_otherwise():
    assert _end([0.9, 0.1, 0.1, 0.1]) == (None, {})


@pytest.mark.parametrize(
    ("settings", "end", "best"),
    [
        ({"patience": 2}, 5, 3),
        ({"patience": 3}, 6, 3),
        ({"patience": 2, "min_delta": 0.15}, 3, 1),  # 0.6 is no more than 0.15 better than 0.5
        ({"patience": 2, "mode": "min"}, 3, 1),
        ({"patience": 2, "from_round": 4}, 6, 4),
        ({"threshold": 0.6}, 2, 2),
        ({"threshold": 0.5, "mode": "min", "from_round": 2}, 5, 5),
    ],
)
def test_when_it_ends(settings, end, best):
    found, said = _end([0.5, 0.6, 0.64, 0.64, 0.4, 0.3, 0.9], **settings)
    assert (found, said["round"], said["best_round"]) == (end, end, best)


def test_equal_is_no_better_and_rounds_without_a_value_do_not_count():
    assert _end([0.5, None, None, 0.5, None, 0.5], patience=2)[0] == 6


def test_losses_fall_and_budgets_are_sums():
    assert _end([1.0, 0.5, 0.6, 0.7], metric="loss_mean", patience=2)[0] == 4
    stop = EarlyStop(replace(NEVER, metric="elapsed_s", threshold=0.25), COLUMNS)
    assert [stop.see(number, {"latency_s": 0.1}) for number in (1, 2, 3)] == [False, False, True]
    assert stop.reason == "elapsed_s = 0.3 has reached stop.threshold = 0.25"


@pytest.mark.parametrize(
    ("metric", "up"),
    [
        ("accuracy_mean", True), ("accuracy_worst", True), ("global_accuracy", True),
        ("balanced_accuracy_mean", True),
        ("loss_median", False), ("global_loss", False), ("rmse_mean", False), ("global_rmse", False),
        ("perplexity_worst", False), ("latency_s", False), ("energy_j", False), ("elapsed_s", True),
        ("min_keepers", True),
    ],
)  # fmt: skip
def test_which_way_a_metric_is_to_go(metric, up):
    assert rises(metric, "auto") is up
    assert rises(metric, "max")
    assert not rises(metric, "min")


def test_rows_that_are_done_are_looked_at_again():
    values = [0.5, 0.6, 0.6, 0.6, 0.6]
    rows = [{"round": str(number), "accuracy_mean": repr(v)} for number, v in enumerate(values, 1)]
    settings = replace(NEVER, patience=3)
    for done in range(5):
        stop = EarlyStop(settings, COLUMNS)
        stop.replay(rows[:done])
        ends = [
            stop.see(number, {"accuracy_mean": values[number - 1]}) for number in range(done + 1, 6)
        ].index(True)
        assert done + 1 + ends == 5
    stop = EarlyStop(settings, COLUMNS)
    stop.replay(rows)
    assert stop.reason


def test_an_unknown_column_is_named_with_those_that_there_are():
    with pytest.raises(
        ConfigError, match=r"stop.metric = acuracy_mean is unknown; did you mean accuracy_mean"
    ):
        EarlyStop(replace(NEVER, metric="acuracy_mean", patience=1), COLUMNS)
    EarlyStop(replace(NEVER, metric="acuracy_mean"), COLUMNS)  # nobody asked
