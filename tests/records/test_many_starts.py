"""A run that is started many times loses no device's part, and leaves nothing that no checkpoint needs."""

import shutil
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from client_app import state
from records import checkpoint
from records.checkpoint import writer
from records.checkpoint.manifest import DevicePart
from strategies.base import NOT_CONNECTED
from strategies.continuation import Continuation

SIZE = 4
FINISHED: Any = SimpleNamespace(weights=np.zeros(3, np.float32), state={}, tables={})


class Fleet:
    """Devices with disks of their own, and a server that is started again and again in one folder."""

    def __init__(self, folder):
        self.folder = folder / "run"
        self.disks = [folder / f"disk-{device}" for device in range(2)]
        self.truth = dict.fromkeys(range(2), 0)  # last round of each device's training
        self.start, self.round, self.number = None, 0, 0
        self.again()

    def again(self):
        """Start the server, from its newest checkpoint."""
        found = checkpoint.checkpoints(self.folder)
        self.start = checkpoint.open_checkpoint(found[0][1]) if found else None
        if self.start:
            self.round = self.start.round
        self.run = f"r{self.number}"
        self.number += 1
        self.continued = self.start.continuation if self.start else Continuation()
        recorder: Any = SimpleNamespace(flush=lambda: None)
        replaced = checkpoint.note_start(self.folder, self.run)
        self.writer = writer.Writer(self.folder, {}, recorder, self.start, replaced=replaced)
        self.contexts = [
            Context(1, 1, {"state-dir": str(disk)}, RecordDict(), {}) for disk in self.disks
        ]  # every node was started again too: nothing is left in its memory

    def store(self, device):
        told: dict[str, Any] = dict(self.continued.for_device(device))
        resume = state.Resume(told.pop("resume_round"), told.pop("resume_part"))
        return state.open_store(
            self.contexts[device], device, run_key="k", run=self.run, resume=resume, **told
        )

    def train(self, present):
        """Do a round with some devices, and a checkpoint of it."""
        self.round += 1
        for device in present:
            found = self.store(device).recover(SIZE)
            assert found.lost is None
            assert (0 if found.part is None else found.part.round) == self.truth[device]
            self.store(device).keep(np.full(SIZE, self.round, np.float32), self.round)
            self.truth[device] = self.round
            self.writer._asked[device] = self.round
        self.present = present
        FINISHED.round = self.round
        strategy: Any = SimpleNamespace(run=self.run)
        assert self.writer.save(FINISHED, None, strategy, 1.0)

    def collect(self, folder, server_round, keep, discard, *_):
        parts = {}
        for device in range(2):
            if device not in self.present:
                parts[device] = DevicePart(-1, stored=False, reason=NOT_CONNECTED, run=self.run)
                continue
            store = self.store(device)
            part = store.recover(SIZE, server_round).part
            written = store.save_for_checkpoint(part, str(folder), server_round, keep)
            state.remove_runs(self.disks[device], "k", discard.get(device, ()), device)
            parts[device] = DevicePart(part.round, True, True, written.sha256, written.size, run=self.run)
        return parts

    def folders(self, device):
        return sorted(path.name for path in self.disks[device].iterdir())


@pytest.fixture
def collected(monkeypatch):
    def use(fleet):
        monkeypatch.setattr(writer, "collect", fleet.collect)
        return fleet

    return use


def test_a_device_that_was_away_in_a_whole_start_goes_on_from_its_own_part(tmp_path, collected):
    fleet = collected(Fleet(tmp_path))
    fleet.train([0, 1])
    fleet.again()
    fleet.train([0])  # device 1 has not come back yet
    fleet.again()
    fleet.train([0])
    fleet.again()
    fleet.train([0, 1])  # `Fleet.train` says that it finds its part of round 1


def test_what_earlier_starts_left_does_not_grow(tmp_path, collected):
    fleet = collected(Fleet(tmp_path))
    for _ in range(6):
        for _ in range(4):
            fleet.train([0, 1])
        fleet.again()
    fleet.train([0, 1])
    fleet.train([0, 1])  # the first checkpoint of a start still finds those of the start before
    for device in range(2):
        assert fleet.folders(device) == ["k-r5", "k-r6"]  # where it started from, and its own
        assert sum(path.is_file() for path in fleet.disks[device].rglob("*")) < 12


@settings(max_examples=60, deadline=None)
@given(story=st.lists(st.sampled_from(["again", "0", "1", "01"]), max_size=14))
def test_any_story_of_starts_and_absences(tmp_path_factory, story):
    """At every moment each device that comes finds the part of its own last round."""
    fleet = Fleet(tmp_path_factory.mktemp("story"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "collect", fleet.collect)
        for what in story:
            if what == "again":
                fleet.again()
            else:
                fleet.train([int(device) for device in what])
        fleet.again()
        fleet.train([0, 1])


def test_starts_that_were_killed_before_their_first_checkpoint_leave_nothing(tmp_path, collected):
    fleet = collected(Fleet(tmp_path))
    fleet.train([0, 1])
    for _ in range(4):
        fleet.again()
        fleet.store(0).keep(np.zeros(SIZE, np.float32), fleet.round + 1)
    fleet.again()
    fleet.train([0, 1])
    fleet.train([0, 1])
    assert fleet.folders(0) == ["k-r0", "k-r5"]


def test_a_copy_of_a_folder_takes_nothing_from_the_original(tmp_path):
    for number in range(3):
        assert checkpoint.note_start(tmp_path / "a", f"r{number}") == tuple(f"r{n}" for n in range(number))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert checkpoint.note_start(tmp_path / "b", "r3") == ()
    assert checkpoint.note_start(tmp_path / "b", "r4") == ("r3",)
    assert checkpoint.note_start(tmp_path / "a", "r5") == ("r0", "r1", "r2")


def test_a_run_in_another_folder_takes_nothing_from_the_one_that_it_continues(tmp_path, collected):
    fleet = collected(Fleet(tmp_path))
    for _ in range(2):
        fleet.train([0, 1])
        fleet.again()
    fleet.writer.run_folder = tmp_path / "another"
    fleet.writer.replaced = checkpoint.note_start(fleet.writer.run_folder, fleet.run)
    for _ in range(4):
        fleet.train([0, 1])
    assert fleet.folders(0) == ["k-r0", "k-r1", "k-r2"]


def test_only_the_devices_own_files_of_the_named_runs_go(tmp_path):
    for run in ("old", "other"):
        for device in (1, 2):
            for folder in (tmp_path / f"k-{run}", tmp_path / f"k-{run}" / "checkpoint" / "round-000001"):
                folder.mkdir(parents=True, exist_ok=True)
                state.state_file(folder, device, 1).write_bytes(b"part")
    damaged = tmp_path / "k-old" / "device-000001-round-000001.damaged-1"
    damaged.write_bytes(b"damaged")
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    state.remove_runs(tmp_path, "k", ["old/../k-other", "old", "../k-other", "never"], 1)
    left = {path for path in tmp_path.rglob("*") if path.is_file()}
    gone = before - left
    assert {path.name for path in gone} == {"device-000001-round-000001.npz"}
    assert len(gone) == 2
    assert all("k-old" in path.parts for path in gone)
    state.remove_runs(tmp_path, "k", ["other"], 1)
    state.remove_runs(tmp_path, "k", ["other"], 2)
    assert not (tmp_path / "k-other").exists()
