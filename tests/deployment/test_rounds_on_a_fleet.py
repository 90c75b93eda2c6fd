"""Rounds that do not wait, on real nodes: who is slow goes on, others do not wait, and its work is used."""

import pytest

from deploy.local_fleet import LocalFleet
from tests.deployment.fleets import SMALL, rounds, rows, wait
from tests.deployment.processors import processor_group

pytestmark = [pytest.mark.slow, pytest.mark.fleet]

SLOW = 2


def test_a_node_at_a_fraction_of_a_processor_no_longer_sets_the_round_time_and_its_work_is_used(tmp_path):
    group, out = processor_group(), tmp_path / "out"
    overrides = [
        *SMALL, "rounds=1000", "channel=measured", "measured.probe=false", "radio.max_pruning_ratio=0",
        "radio.latency_threshold_ms=1000", "server.mode=deadline", "evaluate_every=1000",
        "training.personal_steps=200", "training.global_steps=200",
    ]  # fmt: skip

    def taken() -> list[dict[str, str]]:
        """Return the rows of uploads of the slow node that others overtook."""
        return [row for row in rows(out, SLOW) if row["status"] == "ok" and int(row["staleness"]) >= 2]

    try:
        with LocalFleet(tmp_path / "fleet", 3, tmp_path / "logs") as fleet:
            fleet.start_node(0)
            fleet.start_node(1)
            node = fleet.start_node(SLOW, inside=("env",))
            group.add(node.pid)
            run = fleet.submit(overrides, out)
            wait(lambda: rounds(out) >= 2, "two rounds at full speed", out)
            group.limit(0.06)
            wait(lambda: len(taken()) >= 2, "two late uploads", out)
            fleet.flwr.stop(run)
    finally:
        group.close()
    for late in taken():
        began, ended = int(late["version"]) + 1, int(late["round"])
        for device in (0, 1):  # meanwhile these had several orders
            had = [row for row in rows(out, device) if row["status"] == "ok"]
            assert len([row for row in had if began <= int(row["round"]) <= ended]) >= 2
        between = [row for row in rows(out, SLOW) if began <= int(row["round"]) < ended]
        assert {row["status"] for row in between} == {"at work"}
