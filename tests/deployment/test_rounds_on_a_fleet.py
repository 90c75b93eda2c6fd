"""Rounds that do not wait, on real nodes: who is slow goes on, others do not wait, and its work is used."""

from pathlib import Path

import pytest

from deploy.local_fleet import LocalFleet
from tests.deployment.fleets import SMALL, rounds, rows, wait
from tests.deployment.processors import processor_group

pytestmark = [pytest.mark.slow, pytest.mark.fleet]

SLOW, OTHERS = 2, (0, 1)


def overtaken(folder: Path) -> list[dict[str, str]]:
    """Return the rows of uploads of the slow node during whose work each of the others had two or more taken.

    A round may close with the upload of one node, so that the others' need not be in the same ones.
    """
    used = {device: [row for row in rows(folder, device) if row["status"] == "ok"] for device in OTHERS}
    return [
        late
        for late in rows(folder, SLOW)
        if late["status"] == "ok"
        and all(
            sum(int(late["version"]) < int(row["round"]) <= int(late["round"]) for row in used[device]) >= 2
            for device in OTHERS
        )
    ]


def test_a_node_at_a_fraction_of_a_processor_no_longer_sets_the_round_time_and_its_work_is_used(tmp_path):
    group, out = processor_group(), tmp_path / "out"
    overrides = [
        *SMALL, "rounds=1000", "channel=measured", "measured.probe=false", "radio.max_pruning_ratio=0",
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
            group.limit(0.06)
            wait(lambda: len(overtaken(out)) >= 2, "two late uploads", out)
            group.limit(None)  # it ends sooner
            fleet.flwr.stop(run)
    finally:
        group.close()
    for late in overtaken(out):
        assert int(late["staleness"]) == int(late["round"]) - 1 - int(late["version"]) > 0
        between = [
            row for row in rows(out, SLOW) if int(late["version"]) < int(row["round"]) < int(late["round"])
        ]
        assert {row["status"] for row in between} == {"at work"}
