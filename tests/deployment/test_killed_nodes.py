"""SIGKILL of a SuperNode while it trains, and its personal part goes on from the last finished round.

With these step sizes the loss of a device's personal steps tells a fresh head (2.3, guessing among ten
classes) from one that has trained for some rounds (below 0.6). One node keeps nothing on its disk: killed
like the others, it shows that a lost part would be noticed.
"""

import random
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from client_app.state import load_file
from deploy.local_fleet import LocalFleet
from tests.deployment.fleets import SMALL, rows, wait

pytestmark = [pytest.mark.slow, pytest.mark.fleet]

REPETITIONS, VICTIMS, FORGETFUL, WITNESS = 10, (0, 1, 2, 3, 4), 5, 6
FRESH, TRAINED = 1.5, 0.6


@dataclass
class Node:
    """A node that is killed when it has trained some rounds since it was killed last.

    Attributes:
        back: per kill, rows before it and the first row in which the node took part again.
    """

    fleet: LocalFleet
    out: Path
    index: int
    kills: int
    orders: int = 0
    kill_at: float | None = None
    before: list[dict[str, str]] | None = None
    back: list[tuple[list[dict[str, str]], dict[str, str]]] = field(default_factory=list)

    def look(self, rng: random.Random) -> None:
        """Kill the node, or see that it is back."""
        mine = rows(self.out, self.index)
        if self.before is not None:
            if again := [row for row in mine[len(self.before) :] if row["status"] == "ok"]:
                self.back.append((self.before, again[0]))
                self.before = None
        elif self.kill_at is not None:
            if time.monotonic() >= self.kill_at:
                self.fleet.kill_node(self.index)
                self.before, self.kill_at = rows(self.out, self.index), None
                self._see_that_the_file_is_whole()
                self.fleet.start_node(self.index, self.config, kept_running=True)
        elif len(self.back) < self.kills:
            trained = [row["status"] == "ok" and float(row["personal_loss"]) < TRAINED for row in mine[-1:]]
            orders = (self.fleet.logs / f"node-{self.index:03d}.log").read_text().count("Receiving: train")
            if any(trained) and orders > self.orders:  # somewhere in fetching, training, storing, answering
                self.kill_at = time.monotonic() + rng.uniform(0.0, 1.5)
            self.orders = orders

    @property
    def config(self) -> dict[str, str]:
        return {"state-dir": ""} if self.index == FORGETFUL else {}

    def _see_that_the_file_is_whole(self) -> None:
        for path in (self.fleet.state_dir / f"node-{self.index:03d}").rglob("device-*-round-*.npz"):
            assert load_file(path, self.index) is not None


def test_ten_killed_nodes_go_on_from_their_last_finished_round(tmp_path):
    overrides = [
        *SMALL, "rounds=1000", "fleet.round_timeout_s=120", f"fleet.min_replies={len(VICTIMS)}",
        "training.personal_learning_rate=0.05", "fleet.max_failed_rounds=1000",
    ]  # fmt: skip
    out, rng = tmp_path / "out", random.Random(5)
    with LocalFleet(tmp_path / "fleet", 7, tmp_path / "logs") as fleet:
        nodes = [Node(fleet, out, index, REPETITIONS // len(VICTIMS)) for index in VICTIMS]
        nodes.append(Node(fleet, out, FORGETFUL, 1))
        for node in nodes:
            fleet.start_node(node.index, node.config, kept_running=True)
        fleet.start_node(WITNESS)
        run = fleet.submit(overrides, out)

        def done() -> bool:
            for node in nodes:
                node.look(rng)
            return all(len(node.back) == node.kills for node in nodes)

        wait(done, "every killed node is back", out, 900)
        fleet.flwr.stop(run)
    log = (out / "run.log").read_text()
    assert "set aside" not in log
    for node in nodes:
        for before, after in node.back:
            lost = float(after["personal_loss"])
            said = f"device {node.index}, killed after {len(before)} rounds, in {after['round']}: loss {lost}"
            print(said)
            if node.index == FORGETFUL:
                assert lost > FRESH, said
                continue
            assert float(before[0]["personal_loss"]) > FRESH
            assert lost < TRAINED, said
            accuracies = [float(row["test_accuracy"]) for row in before if row["test_accuracy"]]
            assert float(after["test_accuracy"]) >= accuracies[-1] - 0.15, said
    assert all(row["status"] == "ok" for row in rows(out, WITNESS))
