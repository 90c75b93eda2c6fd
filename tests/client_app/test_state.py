"""A personal part is the old one or the new one, never a damaged one, and never another's."""

import os
import stat

import numpy as np
import pytest
from flwr.app import Context, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from client_app import state


def _context(folder=None, **config):
    node = {
        "partition-id": 3,
        "num-partitions": 5,
        **({"state-dir": str(folder)} if folder else {}),
        **config,
    }
    return Context(1, 1, node, RecordDict(), {})


def _places(context, run="a", resume_run="", resume_dir="", device=3):
    return state.places(
        context, device, run_key="k", run=run, resume_run=resume_run, resume_dir=str(resume_dir)
    )


PART = np.arange(7, dtype=np.float32)


def test_a_restart_finds_the_part_of_the_last_round(tmp_path):
    _places(_context(tmp_path)).keep(PART)
    found = _places(_context(tmp_path)).recover(7)  # a new Context, as after a restart
    assert np.array_equal(found.personal, PART)
    assert found.set_aside == 0


def test_a_later_part_takes_the_place_of_an_earlier_one():
    context = _context()
    first = None
    for part in (PART, 2 * PART, PART[:3]):
        _places(context).keep(part)
        found = _places(context).recover(7).personal
        assert np.array_equal(found, part)
        first = found if first is None else first
    assert np.array_equal(first, PART)  # what was handed out does not change


def test_neither_another_run_nor_another_device_finds_it(tmp_path):
    _places(_context(tmp_path)).keep(PART)
    assert _places(_context(tmp_path), run="b").recover(7).personal is None
    assert _places(_context(tmp_path), device=4).recover(7).personal is None


def test_without_a_folder_of_its_own_nothing_is_written(tmp_path):
    _places(_context()).keep(PART)
    assert not list(tmp_path.iterdir())


def test_a_continued_run_starts_from_the_checkpoint_not_from_later_rounds(tmp_path):
    places = _places(_context(tmp_path))
    state.save_file(places.checkpoint, 3, PART)
    places.keep(2 * PART)
    assert np.array_equal(_places(_context(tmp_path), run="b", resume_run="a").recover(7).personal, PART)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_damaged_file_is_set_aside_and_never_loaded(tmp_path_factory, data):
    """Any change of the file is noticed, or changes nothing of what is read."""
    folder = tmp_path_factory.mktemp("state")
    places = _places(_context(folder))
    places.keep(PART)
    content = bytearray(places.own.read_bytes())
    kind = data.draw(st.sampled_from(["flip", "cut", "garbage"]))
    position = data.draw(st.integers(0, len(content) - 1))
    if kind == "flip":
        content[position] ^= data.draw(st.integers(1, 255))
    elif kind == "cut":
        content = content[:position]
    else:
        content[position:] = os.urandom(len(content) - position)
    places.own.write_bytes(content)
    found = _places(_context(folder)).recover(7)
    if found.personal is None:
        assert found.set_aside == 1
        assert not places.own.exists()
        assert [path.read_bytes() for path in folder.rglob("*.damaged-1")] == [bytes(content)]
    else:
        assert np.array_equal(found.personal, PART)


def test_values_changed_with_a_matching_archive_checksum_are_noticed(tmp_path):
    """Someone rewrote the archive: its CRC-32 is right, the SHA-256 is not."""
    places = _places(_context(tmp_path))
    places.keep(PART)
    with np.load(places.own) as archive:
        arrays = dict(archive)
    np.savez(places.own, **{**arrays, "personal": PART + 1})
    assert _places(_context(tmp_path)).recover(7) == state.Recovered(None, 1)


def test_a_part_of_another_size_is_set_aside(tmp_path):
    _places(_context(tmp_path)).keep(PART)
    assert _places(_context(tmp_path)).recover(8) == state.Recovered(None, 1)


def test_a_full_disk_keeps_the_old_part_in_both_places(tmp_path, monkeypatch):
    context = _context(tmp_path)
    _places(context).keep(PART)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(state.np, "savez", full)
    with pytest.raises(state.StateError, match="No space left"):
        _places(context).keep(2 * PART)
    monkeypatch.undo()
    assert np.array_equal(state.recall(context), PART)
    assert np.array_equal(_places(_context(tmp_path)).recover(7).personal, PART)
    assert not list(tmp_path.rglob("*.tmp"))


def test_only_the_owner_can_read_it(tmp_path):
    places = _places(_context(tmp_path / "new"))
    places.keep(PART)
    assert stat.S_IMODE(places.own.stat().st_mode) == 0o600
    assert stat.S_IMODE(places.own.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("run", ["../../etc", "a/b", "", "a" * 200, ".."])
def test_a_run_name_cannot_lead_out_of_the_folder(tmp_path, run):
    with pytest.raises(state.StateError, match="the run is called"):
        state.places(_context(tmp_path), 3, run_key=run, run="", resume_run="", resume_dir="")


def test_a_relative_folder_is_refused():
    with pytest.raises(state.StateError, match="absolute"):
        _places(_context("state"))
