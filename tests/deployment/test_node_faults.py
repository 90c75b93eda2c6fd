"""What goes wrong on real nodes, with real processes: one fleet, one fault per node, then the SuperLink.

Node 0 has no fault: nothing delays it. Node 1 joins late. Node 2 has a bad link to the SuperLink:
replies are announced twice, answers get lost, an upload breaks off, then it is down for a while. The disk of
node 3 is full for some rounds. Node 4 stands still until its round is over and answers then. In the end the
SuperLink is killed and the run is continued from its checkpoint.
"""

import contextlib
import os
import re
import signal
import subprocess
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from deploy.local_fleet import LocalFleet
from engines.process_table import descendants
from records.recorder import read_table
from tests.deployment.faulty_way import FaultyWay
from tests.deployment.fleets import SMALL, rounds, rows, wait

pytestmark = [pytest.mark.slow, pytest.mark.fleet]

WITNESS, LATE, BAD_WAY, FULL_DISK, STILL = range(5)
DEADLINE = 30  # shorter than what a node that stands still stays listed: 60 s after its last heartbeat
FRESH, TRAINED = 1.5, 1.2  # loss of the personal steps in the first round, and after two or more
SETTINGS = (
    *SMALL, f"fleet.round_timeout_s={DEADLINE}", "training.personal_learning_rate=0.05",
    "fleet.start_timeout_s=30", "fleet.min_devices=4", "fleet.min_replies=2",
    "evaluate_every=1000",
)  # fmt: skip


@dataclass
class Story:
    """What happened. Rounds are numbers of rounds that were complete when something was done."""

    out: Path
    resumed: Path
    joined: int
    pushed: tuple[int, int]
    lost: int
    down: tuple[int, int]
    full: tuple[int, int] | None
    stopped: tuple[int, int]
    before_restart: int
    same_nodes: bool


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    """A folder on a disk of one megabyte, or on the usual one where none can be mounted."""
    folder = tmp_path_factory.mktemp("disk")
    small = not subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, check=False
    ).returncode
    yield folder
    if small:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _orders(fleet: LocalFleet, index: int) -> int:
    return (fleet.logs / f"node-{index:03d}.log").read_text().count("Receiving: train")


def _sent(fleet: LocalFleet, index: int) -> int:
    text = (fleet.logs / f"node-{index:03d}.log").read_text()
    return len(re.findall(r"Sending: train.*\n.*Sent successfully", text))


def _signal(pids: list[int], sign: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):  # the process of a message that is done
            os.kill(pid, sign)


@pytest.fixture(scope="module")
def story(tmp_path_factory, disk):
    folder = tmp_path_factory.mktemp("faults")
    out, resumed = folder / "out", folder / "resumed"
    with LocalFleet(folder / "fleet", 5, folder / "logs") as fleet:
        way = FaultyWay(fleet.credentials, fleet.port)
        fleet.start_node(WITNESS)
        fleet.start_node(BAD_WAY, superlink_port=way.port, kept_running=True)
        fleet.start_node(FULL_DISK, {"state-dir": str(disk)})
        fleet.start_node(STILL)
        fleet.submit([*SETTINGS, "rounds=1000", "checkpoint_every=3"], out)

        def after(number: int, what: str) -> int:
            """Wait until that many more rounds are complete, and return how many are then."""
            goal = rounds(out) + number
            wait(lambda: rounds(out) >= goal, what, out)
            return rounds(out)

        def ok(index: int, since: int) -> bool:
            return any(row["status"] == "ok" for row in rows(out, index)[since:])

        joined = after(2, "two rounds without the late node")
        fleet.start_node(LATE)
        way.twice = True
        fill, small = disk / "filling", os.path.ismount(disk)
        with fill.open("wb") as file, contextlib.suppress(OSError):
            file.write(bytes(2 << 20 if small else 0))
        began, passed = rounds(out), way.passed["/v1/fleet/push-messages"]
        orders = _orders(fleet, BAD_WAY)
        twice_until = after(2, "a whole round with replies announced twice")
        pushed = way.passed["/v1/fleet/push-messages"] - passed, _orders(fleet, BAD_WAY) - orders
        way.twice = False
        fill.unlink()
        full = (began, rounds(out)) if small else None

        way.lose = 2
        wait(lambda: way.lose == 0, "answers to the replies are lost", out)
        lost = rounds(out)
        wait(lambda: ok(BAD_WAY, lost), "the node whose answers were lost is used again", out)

        orders = _orders(fleet, STILL)
        wait(
            lambda: _orders(fleet, STILL) > orders, "an order for the node that is going to stand still", out
        )
        still = [fleet.nodes[STILL].pid, *descendants(fleet.nodes[STILL].pid)]
        _signal(still, signal.SIGSTOP)
        stopped = rounds(out)
        way.stuck = True
        sent = _sent(fleet, STILL)
        after(1, "the round in which a node stands still")
        _signal(still, signal.SIGCONT)
        wait(lambda: _sent(fleet, STILL) > sent, "the late reply", out)
        continued = rounds(out)
        way.stuck, way.down, down = False, True, rounds(out)
        node_log = fleet.logs / f"node-{BAD_WAY:03d}.log"
        wait(lambda: "starting it again" in node_log.read_text(), "its SuperNode ends", out)
        way.down = False
        wait(lambda: ok(STILL, continued), "the node that stood still is back", out)
        up = rounds(out)
        for index, since in ((BAD_WAY, down + 1), (LATE, joined), (FULL_DISK, twice_until)):
            wait(partial(ok, index, since), f"node {index} is back", out)
        wait(lambda: rounds(out) % 3 == 1, "a round after a checkpoint", out)

        before_restart = rounds(out)
        nodes = dict(fleet.nodes)
        fleet.kill_superlink()
        fleet.start_superlink()
        summary = fleet.run(
            [*SETTINGS, f"rounds={before_restart + 2}", f"resume={out}", "fleet.start_timeout_s=200",
             "fleet.min_devices=5"],
            resumed,
        )  # fmt: skip
        assert summary["status"] == "completed"
        same = all(fleet.nodes[i] is process and process.poll() is None for i, process in nodes.items())
        way.close()
    return Story(
        out, resumed, joined, pushed, lost, (down, up), full,
        (stopped, continued), before_restart, same,
    )  # fmt: skip


def _statuses(story, index):
    return [row["status"] for row in rows(story.out, index)]


def test_a_node_without_a_fault_is_never_held_up(story):
    assert set(_statuses(story, WITNESS)) == {"ok"}
    for row in read_table(story.out / "timing.csv"):
        assert float(row["measured_train_seconds"]) < DEADLINE + 5


def test_a_node_that_joins_late_takes_part(story):
    mine = rows(story.out, LATE)
    assert [row["reason"] for row in mine[: story.joined]] == ["not connected"] * story.joined
    assert "ok" in _statuses(story, LATE)[story.joined :]


def test_a_reply_that_is_announced_twice_counts_at_most_once(story):
    """Flower refuses the second if the ServerApp was told of the first; the reply is then lost."""
    pushes, orders = story.pushed
    assert pushes > orders > 0
    for row in read_table(story.out / "rounds.csv"):
        assert int(row["replies"]) <= int(row["participants"])
        assert len(row["failed"].split(";")) >= int(row["participants"]) - int(row["replies"])
    mine = rows(story.out, BAD_WAY)
    assert {row["reason"] for row in mine if row["status"] == "failed"} <= {
        "no reply before the round closed", "not connected",
        "Error: Node Unavailable — The destination node failed to report a heartbeat within 2 × its "
        "expected interval.",
    }  # fmt: skip


def test_a_node_whose_answers_get_lost_is_used_again(story):
    assert "ok" in _statuses(story, BAD_WAY)[story.lost : story.stopped[0] + 1]


def test_an_upload_that_breaks_off_costs_its_node_the_round_and_nobody_else(story):
    """Flower's ServerApp would wait for its contents for three minutes."""
    row = rows(story.out, BAD_WAY)[story.stopped[0]]
    assert row["status"] == "failed"
    assert rows(story.out, WITNESS)[story.stopped[0]]["status"] == "ok"


def test_a_node_whose_way_was_down_is_used_again(story):
    during = _statuses(story, BAD_WAY)[story.down[0] :]
    assert "ok" in during


def test_a_full_disk_costs_its_node_the_round_and_not_its_personal_part(story):
    if story.full is None:
        pytest.skip("no small disk can be mounted here")
    first, last = story.full
    failed = [row for row in rows(story.out, FULL_DISK)[first : last + 1] if row["status"] == "failed"]
    assert failed
    assert all("No space left" in row["reason"] for row in failed)
    again = [row for row in rows(story.out, FULL_DISK)[last:] if row["status"] == "ok"]
    assert float(again[0]["personal_loss"]) < TRAINED


def test_a_late_reply_is_never_looked_at(story):
    round_of_it = rows(story.out, STILL)[story.stopped[0]]
    assert round_of_it["reason"] == "no reply before the round closed"
    assert _statuses(story, STILL).count("failed") <= 2  # that round, and one whose order it fetched too late


def test_a_killed_superlink_costs_the_rounds_since_the_checkpoint(story):
    """The nodes come back by themselves, with their personal parts of the checkpoint."""
    assert story.same_nodes
    kept = story.before_restart // 3 * 3
    before, after = read_table(story.out / "rounds.csv"), read_table(story.resumed / "rounds.csv")
    assert after[:kept] == before[:kept]
    assert [int(row["round"]) for row in after] == list(range(1, story.before_restart + 3))
    for index in range(5):
        mine = rows(story.resumed, index)[kept:]
        assert [row["status"] for row in mine] == ["ok"] * len(mine)
        assert float(mine[0]["personal_loss"]) < TRAINED < FRESH
    assert "set aside" not in (story.out / "run.log").read_text() + (story.resumed / "run.log").read_text()
