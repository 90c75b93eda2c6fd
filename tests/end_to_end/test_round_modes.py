"""Whole runs whose rounds do not wait: equal to those that do where they must be, resumable, any worker."""

import numpy as np
import pytest

from records.recorder import read_table
from schema import ConfigError
from tests.end_to_end.jobs import final_weights, records, run_small

# Device 3 computes so slowly that it needs several windows; the others are in time.
SLOW = (
    "scheme=personalization_only", "fleet.num_devices=5", "radio.latency_threshold_ms=8",
    "radio.cpu_hz=[3.0e+9,3.0e+9,3.0e+9,6.0e+8,3.0e+9]", "radio.cycles_per_weight=400",
)  # fmt: skip
DEADLINE = (*SLOW, "server.mode=deadline")
BUFFERED = (*SLOW, "server.mode=buffered", "server.buffer=2", "server.concurrency=4")


def _tables(folder):
    return [read_table(folder / name) for name in ("rounds.csv", "devices.csv")]


def _same_but_for_new_columns(one, other):
    for mine, theirs in zip(_tables(one), _tables(other), strict=True):
        assert [{name: row[name] for name in mine[0]} for row in theirs] == mine


@pytest.mark.parametrize(
    "overrides",
    [
        (
            "server.mode=deadline",
            "fleet.devices_per_round=4",
            "training=scaffold",
            "radio.bandwidth_hz=1.2e7",
        ),
        ("server.mode=buffered", "server.buffer=10", "radio.cpu_hz={uniform: [1.0e+9, 3.0e+9]}"),
    ],
    ids=["deadline", "unlike-buffer-of-all"],
)
def test_where_nobody_is_late_a_run_equals_one_that_waits_bit_for_bit(tmp_path, overrides):
    run_small(tmp_path / "waits", *overrides[1:][("buffered" in overrides[0]) :])
    run_small(tmp_path / "does-not", *overrides)
    _same_but_for_new_columns(tmp_path / "waits", tmp_path / "does-not")
    assert np.array_equal(final_weights(tmp_path / "waits"), final_weights(tmp_path / "does-not"))
    rows = read_table(tmp_path / "does-not" / "rounds.csv")
    assert {row["staleness"] for row in rows} == {"0.0"}
    assert [row["version"] for row in rows] == ["1", "2", "3"]
    assert float(rows[-1]["time_s"]) == pytest.approx(sum(float(row["latency_s"]) for row in rows))


def test_a_slow_device_no_longer_sets_the_round_time_and_its_work_is_used(tmp_path):
    waits = run_small(tmp_path / "waits", *SLOW, "rounds=2")
    goes = run_small(tmp_path / "goes", *DEADLINE, "rounds=8")
    assert goes["total_latency_s"] / 8 < waits["total_latency_s"] / 2 / 3
    rounds, devices = _tables(tmp_path / "goes")
    late = [row for row in devices if row["device"] == "3" and row["status"] == "ok"]
    assert late
    for row in late:
        assert int(row["staleness"]) >= 1
        begun, ended = int(row["version"]), int(row["round"])
        assert float(row["latency_s"]) <= sum(float(one["latency_s"]) for one in rounds[begun:ended]) + 1e-9
    assert all(float(row["latency_s"]) <= 8e-3 * (1 + 1e-9) for row in rounds)
    for row in rounds:
        number = sum(one["round"] == row["round"] and one["status"] == "ok" for one in devices)
        assert int(row["replies"]) == int(row["participants"]) == number
    spent = sum(float(row["compute_energy_j"] or 0) + float(row["transmit_energy_j"] or 0) for row in devices)
    assert goes["total_energy_j"] == pytest.approx(spent)  # each joule in the round in which its work ends


def test_a_buffered_round_has_its_uploads_whoever_they_are_of(tmp_path):
    run_small(tmp_path, *BUFFERED, "rounds=8")
    rounds, devices = _tables(tmp_path)
    assert {row["replies"] for row in rounds} == {"2"}
    assert {row["at_work"] for row in rounds} <= {
        "2",
        "3",
    }  # of four, without the two whose uploads were taken
    assert {row["device"] for row in devices if row["status"] == "ok"} >= {"0", "1", "2", "4"}
    assert any(int(row["staleness"] or 0) > 0 for row in devices)


@pytest.mark.parametrize("mode", [DEADLINE, BUFFERED], ids=["deadline", "buffered"])
def test_a_run_resumed_in_the_middle_of_a_late_devices_work_ends_like_an_uninterrupted_one(tmp_path, mode):
    """And two workers do what one does; what SCAFFOLD sends beside a version is of that version, too."""
    mode = (*mode, "training=scaffold")
    run_small(tmp_path / "whole", *mode, "rounds=9")
    run_small(tmp_path / "half", *mode, "rounds=5")
    assert int(read_table(tmp_path / "half" / "rounds.csv")[-1]["at_work"]) > 0
    run_small(tmp_path / "rest", *mode, "rounds=9", f"resume={tmp_path / 'half'}", workers=2)
    assert records(tmp_path / "rest") == records(tmp_path / "whole")
    assert np.array_equal(final_weights(tmp_path / "rest"), final_weights(tmp_path / "whole"))


def test_devices_of_several_versions_are_trained_together(tmp_path):
    run_small(tmp_path / "alone", *DEADLINE, "rounds=4")
    run_small(tmp_path / "together", *DEADLINE, "rounds=4", "engine.batch_devices=5")
    assert (
        read_table(tmp_path / "together" / "rounds.csv")[-1]["staleness"] == "0.6"
    )  # 3 versions, of one in 5
    np.testing.assert_allclose(
        final_weights(tmp_path / "alone"), final_weights(tmp_path / "together"), rtol=1e-4, atol=1e-6
    )


def test_a_fault_costs_a_late_device_its_work_and_nobody_else_anything(tmp_path, monkeypatch):
    monkeypatch.setenv("AIRFLOWER_TEST_FAULTS", "3:raise")
    run_small(tmp_path, *DEADLINE, "rounds=8", app="tests.end_to_end.faulty_app:app")
    rounds, devices = _tables(tmp_path)
    failed = [row["round"] for row in devices if row["status"] == "failed"]
    assert failed == ["4", "8"]
    assert {row["replies"] for row in rounds} == {"4"}


def test_a_policy_goes_by_what_it_knew_also_after_a_resume(tmp_path):
    chosen = ("fleet.devices_per_round=3", "selection=oort")
    run_small(tmp_path / "whole", *chosen, "rounds=6")
    run_small(tmp_path / "half", *chosen, "rounds=3")
    run_small(tmp_path / "rest", *chosen, "rounds=6", f"resume={tmp_path / 'half'}")
    assert records(tmp_path / "rest") == records(tmp_path / "whole")


def test_a_run_stops_early_says_why_and_goes_on_if_it_is_to(tmp_path):
    stop = ("stop.metric=elapsed_s", "stop.threshold=0.06", "rounds=9")  # 24.25 ms a round
    summary = run_small(tmp_path / "stopped", *stop)
    assert (summary["status"], summary["rounds"]) == ("completed", 3)
    assert summary["stopped"]["round"] == summary["checkpoint_round"] == 3
    assert "stop.threshold = 0.06" in summary["stopped"]["reason"]
    # Interrupted before: it stops where it would have.
    run_small(tmp_path / "half", *stop[:2], "rounds=2")
    run_small(tmp_path / "rest", *stop, f"resume={tmp_path / 'half'}")
    assert records(tmp_path / "rest") == records(tmp_path / "stopped")
    # Continued as it was it has nothing to do; with more patience it goes on.
    again = run_small(tmp_path / "again", *stop, f"resume={tmp_path / 'stopped'}")
    assert (again["rounds"], again["stopped"]["round"]) == (3, 3)
    more = run_small(tmp_path / "more", "rounds=4", f"resume={tmp_path / 'stopped'}")
    assert more["rounds"] == 4
    assert "stopped" not in more


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["scheme=over_the_air", "server.mode=deadline"], "over the air all send at once"),
        (["server.mode=buffered", "server.buffer=11"], r"server.buffer = 11 is above fleet.num_devices = 10"),
        (["server.mode=buffered", "server.concurrency=11"], r"server.concurrency = 11 is above"),
        (
            ["server.mode=buffered", "fleet.min_replies=4"],
            r"fleet.min_replies = 4 is above server.buffer = 3",
        ),
        (["server.mode=buffered", "fleet.devices_per_round=4"], "fleet.devices_per_round = 4 has no effect"),
        (["server.mode=deadline", "server.buffer=4"], "server.buffer = 4 has no effect here: .*buffered"),
        (["server.staleness_exponent=1"], "server.staleness_exponent = 1 has no effect here: .*do not wait"),
        (["selection=oort", "selection.options.penalty=1"], "selection.options.penalty = 1 has no effect"),
        (["stop.min_delta=0.1"], "stop.min_delta = 0.1 has no effect here: it is used only .*stop.patience"),
        (["stop.patience=2", "stop.metric=acuracy"], "stop.metric = acuracy is unknown; "),
        (
            ["selection.policy=roulette", "fleet.devices_per_round=4"],
            "selection.policy = 'roulette' is unknown",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_trained(tmp_path, overrides, text):
    with pytest.raises(ConfigError, match=text):
        run_small(tmp_path, *overrides)
    assert not (tmp_path / "devices.csv").exists() or not read_table(tmp_path / "devices.csv")
