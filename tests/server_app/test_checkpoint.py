"""A checkpoint is there as a whole or not at all; what does not match is refused or said."""

import json
import logging
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, RecordDict

from client_app import state
from protocol.messages import SAVED
from records import checkpoint
from records.checkpoint import writer
from records.checkpoint.collect import _stored
from schema import ConfigError
from tests.end_to_end.jobs import final_weights, records, run_small

FEW = ("fleet.num_devices=4", "fleet.devices_per_round=2", "rounds=6")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    run_small(folder, *FEW)
    return folder


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A run of four rounds with checkpoints of rounds 3 and 4."""
    folder = tmp_path_factory.mktemp("stored")
    run_small(folder, *FEW, "rounds=4", "checkpoint_every=1")
    return folder


@pytest.fixture
def copy(stored, tmp_path):
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(stored, tmp_path / "copy"))


def _resumes_like(whole, copy, out, *overrides):
    run_small(out, *FEW, f"resume={copy}", *overrides)
    assert records(out) == records(whole)
    assert np.array_equal(final_weights(out), final_weights(whole))


def test_the_last_two_are_kept_and_nothing_else(stored):
    assert [number for number, _ in checkpoint.checkpoints(stored)] == [4, 3]
    assert not list(stored.rglob("*.partial"))
    assert not list(stored.rglob("*.tmp"))


def test_a_run_goes_on_in_its_own_folder(whole, copy):
    _resumes_like(whole, copy, copy)


def test_an_earlier_one_can_be_chosen(whole, copy, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    _resumes_like(whole, copy / "checkpoint" / "round-000003", tmp_path / "out")
    assert "continuing after round 3" in caplog.text


def _newest_personal(folder):
    return sorted((folder / "checkpoint" / "round-000004" / "personal").iterdir())[0]


def _remove_personal(folder):
    _newest_personal(folder).unlink()


def _other_round(folder):
    """A valid file of another round, under the name of the right one."""
    path = _newest_personal(folder)
    device = int(path.name.split("-")[1])
    part = state.load_file(path, device)
    state.save_file(path, device, state.Part(part.weights, part.round + 1))


def _rewrite_server(folder):
    path = folder / "checkpoint" / "round-000004" / "server.npz"
    with np.load(path) as archive:
        arrays = dict(archive)
    np.savez(path, **{**arrays, "weights": arrays["weights"] * 1.5})


def _flip_encrypted(folder):
    path = folder / "checkpoint" / "round-000004" / "server.npz"
    content = bytearray(path.read_bytes())
    content[6] ^= 1
    path.write_bytes(content)


def _older_server(folder):
    source = folder / "checkpoint" / "round-000003" / "server.npz"
    shutil.copy(source, folder / "checkpoint" / "round-000004" / "server.npz")


def _older_folder(folder):
    """The checkpoint of round 3 with its manifest, under the name of round 4."""
    shutil.rmtree(folder / "checkpoint" / "round-000004")
    shutil.copytree(folder / "checkpoint" / "round-000003", folder / "checkpoint" / "round-000004")


def _no_manifest(folder):
    (folder / "checkpoint" / "round-000004" / "manifest.json").unlink()


def _cut_manifest(folder):
    path = folder / "checkpoint" / "round-000004" / "manifest.json"
    path.write_bytes(path.read_bytes()[:-40])


def _forget_device(folder):
    """Rewrite the manifest so that a device's file is in it and the device is not."""
    path = folder / "checkpoint" / "round-000004" / "manifest.json"
    manifest = json.loads(path.read_text())
    device = str(int(_newest_personal(folder).name.split("-")[1]))
    del manifest["devices"][device]
    path.write_text(json.dumps(manifest))


def _cut_rounds(folder):
    lines = (folder / "rounds.csv").read_text().splitlines(keepends=True)
    (folder / "rounds.csv").write_text("".join(lines[:-1]))


def _change_devices(folder):
    text = (folder / "devices.csv").read_text()
    (folder / "devices.csv").write_text(text[:-4] + "7" + text[-3:])


@pytest.mark.parametrize(
    "damage",
    [
        _remove_personal,
        _other_round,
        _rewrite_server,
        _flip_encrypted,
        _older_server,
        _older_folder,
        _no_manifest,
        _cut_manifest,
        _forget_device,
        _cut_rounds,
        _change_devices,
    ],
)
def test_what_does_not_match_is_passed_over_with_a_word(whole, copy, tmp_path, caplog, damage):
    damage(copy)
    _resumes_like(whole, copy, tmp_path / "out")
    assert "not used: round-000004: " in caplog.text


def test_nothing_usable_is_an_error_that_says_why(copy, tmp_path):
    for name in ("round-000003", "round-000004"):
        (copy / "checkpoint" / name / "server.npz").write_bytes(b"")
    with pytest.raises(
        ConfigError, match=r"round-000004: server\.npz is not the file .* round-000003: server"
    ):
        run_small(tmp_path / "out", *FEW, f"resume={copy}")


@pytest.mark.parametrize("damage", [_cut_rounds, _rewrite_server, _remove_personal])
def test_a_chosen_one_that_does_not_match_is_refused(copy, tmp_path, damage):
    damage(copy)
    with pytest.raises(ConfigError, match="no usable checkpoint"):
        run_small(tmp_path / "out", *FEW, f"resume={copy / 'checkpoint' / 'round-000004'}")


def test_rows_after_the_checkpoint_are_done_again(whole, copy):
    """As a kill leaves them: a round recorded in one table, half a row in the next."""
    for table, more in (("rounds.csv", "5,0.1,0.1\n"), ("devices.csv", "5,0,o")):
        with (copy / table).open("a") as file:
            file.write(more)
    _resumes_like(whole, copy, copy)


def test_half_a_checkpoint_is_nothing(whole, copy):
    folder = copy / "checkpoint"
    shutil.copytree(folder / "round-000003", folder / "round-000005.partial")
    _resumes_like(whole, copy, copy)
    assert not list(copy.rglob("*.partial"))


@pytest.mark.parametrize("broken", [True, False])
def test_a_device_that_cannot_store_does_not_replace_a_complete_checkpoint(
    tmp_path, whole, monkeypatch, caplog, broken
):
    """Its disk is full from round 3 on; what is resumed is the last complete one, and that is said."""
    real = state.save_file

    def full(path, device, part):
        if device == 1 and broken and "round-000002" not in str(path) and "round-000001" not in str(path):
            raise state.StateError("the personal part cannot be stored: No space left on device")
        return real(path, device, part)

    monkeypatch.setattr(state, "save_file", full)
    run_small(tmp_path / "a", *FEW, "rounds=5", "checkpoint_every=1")
    monkeypatch.undo()
    found = [number for number, _ in checkpoint.checkpoints(tmp_path / "a")]
    assert found == ([5, 4, 2] if broken else [5, 4])
    if broken:
        assert "device 1 did not store its personal part (client_app.state.StateError: " in caplog.text
    _resumes_like(whole, tmp_path / "a", tmp_path / "b")
    assert ("round-000005 is incomplete: device 1 did not store" in caplog.text) == broken
    chosen = f"resume={tmp_path / 'a' / 'checkpoint' / 'round-000005'}"
    caplog.clear()
    run_small(tmp_path / "c", *FEW, chosen)
    assert ("the results may differ from those of an uninterrupted run" in caplog.text) == broken


def test_a_disk_that_takes_no_checkpoint_does_not_end_the_run(tmp_path, whole, monkeypatch, caplog):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer, "write_archive", full)
    summary = run_small(tmp_path, *FEW, "checkpoint_every=2")
    assert records(tmp_path) == records(whole)
    assert "cannot be stored: [Errno 28] No space left on device" in caplog.text
    assert summary["checkpoint_round"] is None
    assert not list(tmp_path.rglob("*.partial"))


def test_everything_is_on_the_disk_before_the_switch(tmp_path, monkeypatch):
    """Each file is flushed under its last name, then its folder, before the folder gets its name."""
    events = []
    flushed, renamed = os.fsync, Path.replace

    def fsync(descriptor):
        events.append(("fsync", os.readlink(f"/proc/self/fd/{descriptor}")))
        flushed(descriptor)

    def replace(path, target):
        events.append(("replace", str(target)))
        return renamed(path, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    run_small(tmp_path, *FEW, "rounds=1")
    place = tmp_path / "checkpoint" / "round-000001"
    switch = events.index(("replace", str(place)))
    before = [path for what, path in events[:switch] if what == "fsync"]
    for name in ("manifest.json", "server.npz", "config.json"):
        assert any(path.startswith(f"{place}.partial/{name}") for path in before), name
    assert f"{place}.partial" in before
    assert f"{place}.partial/personal" in before
    assert str(tmp_path / "rounds.csv") in before
    assert ("fsync", str(place.parent)) in events[switch:]


def test_a_used_folder_is_refused(stored):
    before = records(stored)
    with pytest.raises(ConfigError, match=r"holds the records of another run \(completed\).*resume="):
        run_small(stored, *FEW)
    assert records(stored) == before


@pytest.mark.parametrize("finished", [0, 1, 3])
def test_a_run_that_is_told_to_stop_leaves_its_last_finished_round(tmp_path, whole, monkeypatch, finished):
    """Some devices have trained the next round already; the checkpoint is of the round before."""
    from engines import inprocess

    real, calls = inprocess.InProcessGrid._keep, 0

    def keep(self, message, new):
        nonlocal calls
        real(self, message, new)
        if message.metadata.message_type == "train":
            calls += 1
            if calls == 2 * finished + 1:
                raise KeyboardInterrupt

    monkeypatch.setattr(inprocess.InProcessGrid, "_keep", keep)
    with pytest.raises(KeyboardInterrupt):
        run_small(tmp_path, *FEW)
    monkeypatch.undo()
    assert json.loads((tmp_path / "summary.json").read_text())["status"] == "interrupted"
    assert [number for number, _ in checkpoint.checkpoints(tmp_path)] == ([finished] if finished else [])
    if finished:
        _resumes_like(whole, tmp_path, tmp_path)
    else:
        with pytest.raises(ConfigError, match="no round of a run was stored"):
            run_small(tmp_path / "other", *FEW, f"resume={tmp_path}")


def test_a_run_killed_behind_its_last_round_has_only_its_summary_left_to_do(copy, stored):
    summary = json.loads((copy / "summary.json").read_text())
    (copy / "summary.json").write_text(json.dumps({**summary, "status": "running"}))
    assert not (copy / "figure.png").exists()
    again = run_small(copy, *FEW, "rounds=4", f"resume={copy}", "checkpoint_every=1", figure=True)
    assert again == summary
    assert records(copy) == records(stored)
    assert (copy / "figure.png").is_file()


def test_a_wrong_configuration_leaves_the_records_of_the_run_that_it_would_continue(copy):
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    for wrong in ("radio.latency_threshold_ms=20", "rounds=2"):
        with pytest.raises(ConfigError, match="resume = "):
            run_small(copy, *FEW, f"resume={copy}", wrong)
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


def test_the_words_of_a_device_that_stored_nothing_of_use_are_safe_to_show(tmp_path):
    said = ConfigRecord({"round": "\x1b]0;=cmd\u202e\n" + 10_000 * "x", "sha256": "", "size": 0, "own": 0})
    reply: Any = SimpleNamespace(has_error=lambda: False, content=RecordDict({SAVED: said}))
    part = _stored(3, reply, 5, tmp_path)
    assert not part.stored
    assert part.reason.isprintable()
    assert len(part.reason) <= 500
