"""A personal part is the old one or the new one, never a damaged one, and never another's."""

import os
import stat

import numpy as np
import pytest
from flwr.app import Context, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from client_app import state

NOTHING = state.Resume()


def _context(folder=None, **config):
    node = {
        "partition-id": 3,
        "num-partitions": 5,
        **({"state-dir": str(folder)} if folder else {}),
        **config,
    }
    return Context(1, 1, node, RecordDict(), {})


def _store(context, run="a", resume_run="", resume_dir="", device=3, resume=NOTHING):
    return state.open_store(
        context,
        device,
        run_key="k",
        run=run,
        resume_run=resume_run,
        resume_dir=str(resume_dir),
        resume=resume,
    )


def _own(folder, server_round=1, run="a"):
    return state.state_file(folder / f"k-{run}", 3, server_round)


PART = np.arange(7, dtype=np.float32)


def test_a_restart_finds_the_part_of_the_last_round(tmp_path):
    _store(_context(tmp_path)).keep(PART, 1)
    found = _store(_context(tmp_path)).recover(7)  # a new Context, as after a restart
    assert np.array_equal(found.part.weights, PART)
    assert (found.part.round, found.set_aside, found.lost) == (1, 0, None)


def test_a_later_part_takes_the_place_of_an_earlier_one():
    context = _context()
    first = None
    for server_round, part in enumerate((PART, 2 * PART, PART[:3], 3 * PART), start=4):
        _store(context).keep(part, server_round)
        found = _store(context).recover(7).part
        assert np.array_equal(found.weights, part)
        assert found.round == server_round
        first = found.weights if first is None else first
    assert np.array_equal(first, PART)  # what was handed out does not change


@pytest.mark.parametrize("on_disk", [False, True])
def test_the_part_of_the_round_before_is_still_there(tmp_path, on_disk):
    """A checkpoint of the last finished round, made while the device has trained the next one already."""
    context = _context(tmp_path if on_disk else None)
    for server_round in (2, 5, 6, 9):
        _store(context).keep(server_round * PART, server_round)
    if on_disk:
        context = _context(tmp_path)
    for until, expected in ((10, 9), (9, 9), (8, 6), (6, 6)):
        found = _store(context).recover(7, until).part
        assert found.round == expected
        assert np.array_equal(found.weights, expected * PART)
    with pytest.raises(state.StateError, match="of round 5 is asked for"):
        _store(context).recover(7, 5)


def test_a_device_that_first_trained_after_the_finished_round_had_no_part_then():
    context = _context()
    _store(context).keep(PART, 6)
    assert _store(context).recover(7, 5).part is None


def test_neither_another_run_nor_another_device_finds_it(tmp_path):
    _store(_context(tmp_path)).keep(PART, 1)
    assert _store(_context(tmp_path), run="b").recover(7).part is None
    assert _store(_context(tmp_path), device=4).recover(7).part is None


def test_without_a_folder_of_its_own_nothing_is_written(tmp_path):
    _store(_context()).keep(PART, 1)
    assert not list(tmp_path.iterdir())


def test_where_nothing_is_personal_nothing_is_kept_unless_something_was():
    nothing, context = np.empty(0, np.float32), _context()
    _store(context).keep(nothing, 1)
    assert not context.state
    assert _store(context).recover(0).part is None
    _store(context).keep(nothing, 2, {"algorithm.control": PART})
    _store(context).keep(nothing, 3)
    found = _store(context).recover(0).part
    assert (found.round, dict(found.arrays)) == (3, {})


def test_a_run_that_is_continued_does_not_look_for_nothing_in_every_round(tmp_path):
    nothing, context = np.empty(0, np.float32), _context()
    state.save_file(state.state_file(tmp_path, 3, 2), 3, state.Part(nothing, 2))
    store = _store(context, resume_dir=tmp_path, resume=state.Resume(2, 2))
    assert store.recover(0).part.round == 2
    store.keep(nothing, 3)
    for path in tmp_path.iterdir():
        path.unlink()
    assert store.recover(0).part.round == 3
    assert store.recover(0).lost is None


def _story(folder):
    """Leave what a device has after rounds 1..7, with checkpoints of rounds 3 and 6."""
    context = _context(folder)
    for server_round in range(1, 8):
        _store(context).keep(server_round * PART, server_round)
        if server_round in (3, 6):
            _store(context).save_for_checkpoint(state.recall(context), "", server_round, keep=(3,))


@pytest.mark.parametrize("expected", [3, 6, 7])
def test_a_continued_run_starts_from_the_part_that_the_checkpoint_expects(tmp_path, expected):
    """The server was killed inside its checkpoint of round 6, so that its last one is that of round 3."""
    _story(tmp_path)
    resume = state.Resume(expected, expected)
    found = _store(_context(tmp_path), run="b", resume_run="a", resume=resume).recover(7)
    assert found.part.round == expected
    assert np.array_equal(found.part.weights, expected * PART)


def test_a_device_that_holds_another_round_says_so(tmp_path):
    _story(tmp_path)
    store = _store(_context(tmp_path), run="b", resume_run="a", resume=state.Resume(4, 4))
    with pytest.raises(state.StateError, match=r"expects .* of round 4; the device holds .* 3, 6, 7"):
        store.recover(7)


def test_a_device_of_which_nothing_is_left_says_so(tmp_path):
    store = _store(_context(tmp_path), run="b", resume_run="a", resume=state.Resume(4, 4))
    assert store.recover(7) == state.Recovered(None, 0, lost=4)


def test_a_device_that_had_no_part_at_the_checkpoint_starts_afresh(tmp_path):
    _story(tmp_path)
    store = _store(_context(tmp_path), run="b", resume_run="a", resume=state.Resume(4, 0))
    assert store.recover(7) == state.Recovered(None)


def test_where_the_checkpoint_does_not_know_the_newest_part_up_to_it_is_right(tmp_path):
    _story(tmp_path)
    store = _store(_context(tmp_path), run="b", resume_run="a", resume=state.Resume(5))
    assert store.recover(7).part.round == 3


def test_copies_for_checkpoints_that_the_server_no_longer_has_are_removed(tmp_path):
    _story(tmp_path)
    store = _store(_context(tmp_path))
    store.save_for_checkpoint(state.Part(PART, 7), "", 9, keep=(6,))
    assert sorted(path.name for path in (tmp_path / "k-a" / "checkpoint").iterdir()) == [
        "round-000006",
        "round-000009",
    ]


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_damaged_file_is_set_aside_and_never_loaded(tmp_path_factory, data):
    """Any change of the file is noticed, or changes nothing of what is read."""
    folder = tmp_path_factory.mktemp("state")
    _store(_context(folder)).keep(PART, 1)
    content = bytearray(_own(folder).read_bytes())
    kind = data.draw(st.sampled_from(["flip", "cut", "garbage"]))
    position = data.draw(st.integers(0, len(content) - 1))
    if kind == "flip":
        content[position] ^= data.draw(st.integers(1, 255))
    elif kind == "cut":
        content = content[:position]
    else:
        content[position:] = os.urandom(len(content) - position)
    _check_damaged(folder, bytes(content))


def _check_damaged(folder, content):
    _own(folder).write_bytes(content)
    found = _store(_context(folder)).recover(7)
    if found.part is None:
        assert found.set_aside == 1
        assert not _own(folder).exists()
        assert [path.read_bytes() for path in folder.rglob("*.damaged-1")] == [content]
    else:
        assert np.array_equal(found.part.weights, PART)
        assert found.part.round == 1


@pytest.mark.parametrize("bits", [1, pytest.param(8, marks=pytest.mark.exhaustive)])
def test_no_flipped_bit_raises_anything_but_a_word_of_damage(tmp_path, bits):
    """Among them the flag that calls a member encrypted, a RuntimeError of zipfile: bit 0 of its byte."""
    _store(_context(tmp_path)).keep(PART, 1)
    content = _own(tmp_path).read_bytes()
    path = state.state_file(tmp_path, 3, 1)
    refused = 0
    for position in range(len(content)):
        for bit in range(bits):
            path.write_bytes(
                content[:position] + bytes([content[position] ^ 1 << bit]) + content[position + 1 :]
            )
            try:
                part = state.load_file(path, 3)
                assert np.array_equal(part.weights, PART)
                assert part.round == 1
            except state.StateError:
                refused += 1
    assert refused > len(content) * bits / 2


def test_values_changed_with_a_matching_archive_checksum_are_noticed(tmp_path):
    """Someone rewrote the archive: its CRC-32 is right, the SHA-256 is not."""
    _store(_context(tmp_path)).keep(PART, 1)
    with np.load(_own(tmp_path)) as archive:
        arrays = dict(archive)
    for changed in ({"personal": PART + 1}, {"round": np.array(2)}):
        np.savez(_own(tmp_path), **{**arrays, **changed})
        assert _store(_context(tmp_path)).recover(7) == state.Recovered(None, 1)


def test_a_damaged_newest_file_leaves_the_one_before(tmp_path):
    for server_round in (1, 2):
        _store(_context(tmp_path)).keep(server_round * PART, server_round)
    _own(tmp_path, 2).write_bytes(b"")
    found = _store(_context(tmp_path)).recover(7)
    assert (found.part.round, found.set_aside) == (1, 1)


def test_a_part_of_another_size_is_set_aside(tmp_path):
    _store(_context(tmp_path)).keep(PART, 1)
    assert _store(_context(tmp_path)).recover(8) == state.Recovered(None, 1)


def test_a_full_disk_keeps_the_old_part_in_both_places(tmp_path, monkeypatch):
    context = _context(tmp_path)
    _store(context).keep(PART, 1)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("protocol.archives.os.fsync", full)
    with pytest.raises(state.StateError, match="No space left"):
        _store(context).keep(2 * PART, 2)
    monkeypatch.undo()
    assert np.array_equal(state.recall(context).weights, PART)
    assert np.array_equal(_store(_context(tmp_path)).recover(7).part.weights, PART)
    assert not list(tmp_path.rglob("*.tmp"))


def test_only_the_owner_can_read_it(tmp_path):
    folder = tmp_path / "new"
    _store(_context(folder)).keep(PART, 1)
    assert stat.S_IMODE(_own(folder).stat().st_mode) == 0o600
    assert stat.S_IMODE(_own(folder).parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("run", ["../../etc", "a/b", "", "a" * 200, ".."])
def test_a_run_name_cannot_lead_out_of_the_folder(tmp_path, run):
    with pytest.raises(state.StateError, match="the run is called"):
        state.open_store(_context(tmp_path), 3, run_key=run, run="", resume_run="", resume_dir="")


def test_a_relative_folder_is_refused():
    with pytest.raises(state.StateError, match="absolute"):
        _store(_context("state"))
