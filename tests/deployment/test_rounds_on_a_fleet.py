"""Rounds that do not wait, on real nodes: who is slow goes on, others do not wait, and its work is used."""

from pathlib import Path

import pytest

from deploy.local_fleet import LocalFleet
from tests.deployment.fleets import SMALL, rounds, rows, wait
from tests.deployment.processors import processor_group

pytestmark = [pytest.mark.slow, pytest.mark.fleet]

SLOW, OTHERS = 2, (0, 1)


def overtaken(folder: Path) -> list[tuple[list[int], dict[str, str]]]:
    """Return the uploads of the slow node during whose work each of the others had two or more taken.

    A round may close with the upload of one node, so that the others' need not be in the same ones.

    Returns:
        Of each the rounds that it was at work in before, and its row.
    """
    used = {
        device: {int(row["round"]) for row in rows(folder, device) if row["status"] == "ok"}
        for device in OTHERS
    }
    slow = rows(folder, SLOW)
    found = []
    for late in slow:
        before = [
            int(row["round"])
            for row in slow
            if row["status"] == "at work" and row["version"] == late["version"]
        ]
        meanwhile = {*before, int(late["round"])}
        if late["status"] == "ok" and all(len(used[device] & meanwhile) >= 2 for device in OTHERS):
            found.append((before, late))
    return found


def test_a_node_at_a_fraction_of_a_processor_no_longer_sets_the_round_time_and_its_work_is_used(tmp_path):
    group, out = processor_group(), tmp_path / "out"
    overrides = [
        *SMALL, "rounds=1000", "channel=measured", "measured.probe=false", "radio.max_pruning_ratio=0.001",
        "radio.latency_threshold_ms=1000", "server.mode=deadline", "evaluate_every=1000",
        "training.personal_steps=200", "training.global_steps=200",
    ]  # fmt: skip
    try:
        with LocalFleet(tmp_path / "fleet", 3, tmp_path / "logs") as fleet:
            for device in OTHERS:
                fleet.start_node(device)
            node = fleet.start_node(SLOW, inside=("env",))
            group.add(node.pid)
            run = fleet.submit(overrides, out)
            wait(lambda: rounds(out) >= 2, "two rounds at full speed", out)
            group.limit(0.15)
            wait(lambda: len(overtaken(out)) >= 2, "two late uploads", out)
            group.limit(None)  # it ends sooner
            fleet.flwr.stop(run)
    finally:
        group.close()
    for before, late in overtaken(out):
        assert before == [*range(before[0], int(late["round"]))]
        assert int(late["staleness"]) >= 1
