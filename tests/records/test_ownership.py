"""One process at a time owns a folder, and one that died is known to have died."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from records import ownership
from records.ownership import FolderInUseError, holder_of, new_folder, owned, status_of

HOLD = """
import sys, time
from pathlib import Path
from records.ownership import owned
with owned(Path(sys.argv[1])):
    print("mine", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def other(tmp_path):
    """Another process that owns the folder."""
    folder = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "mine\n"
    yield process, folder
    process.kill()
    process.communicate()


def test_an_owned_folder_is_refused_and_its_holder_named(other):
    process, folder = other
    with pytest.raises(FolderInUseError, match=rf"process {process.pid} on \S+ since 20"), owned(folder):
        pass
    assert holder_of(folder).pid == process.pid


def test_a_killed_owner_is_followed_at_once_and_its_run_is_known_to_be_killed(other):
    process, folder = other
    (folder / "summary.json").write_text(json.dumps({"status": "running"}))
    assert status_of(folder)[0] == "running"
    process.send_signal(signal.SIGKILL)
    process.wait()
    status, reason = status_of(folder)
    assert status == "killed"
    assert f"process {process.pid}" in reason
    ownership.settle(folder)
    assert json.loads((folder / "summary.json").read_text())["status"] == "killed"
    with owned(folder):
        assert holder_of(folder).pid == os.getpid()


def test_who_waits_gets_the_folder_when_its_owner_has_gone(other):
    process, folder = other

    def claim():
        with owned(folder, wait=True):
            return time.monotonic()

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(claim)
        time.sleep(0.5)
        assert not waiting.done()
        ended = time.monotonic()
        process.kill()
        assert waiting.result(60) >= ended


def test_a_fork_does_not_keep_the_lock_of_its_parent(tmp_path):
    context = multiprocessing.get_context("fork")
    with owned(tmp_path):
        child = context.Process(target=time.sleep, args=(600,))
        child.start()
    try:
        assert holder_of(tmp_path) is None
        with owned(tmp_path):
            pass
    finally:
        child.kill()
        child.join()


def test_nothing_is_left_of_a_lock_in_the_end(tmp_path):
    with owned(tmp_path), owned(tmp_path):
        assert (tmp_path / "run.lock").is_file()
    assert not list(tmp_path.iterdir())


def test_an_owner_on_another_machine_is_taken_to_be_alive(tmp_path):
    values = {"pid": 1, "host": "elsewhere", "since": "2026-01-01 00:00:00", "token": "t"}
    (tmp_path / "run.lock").write_text(json.dumps(values))
    (tmp_path / "summary.json").write_text(json.dumps({"status": "running"}))
    assert status_of(tmp_path)[0] == "running"


def test_new_folders_are_never_shared(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: new_folder(tmp_path / "a" / "12-00-00"), range(40)))
    assert len(set(made)) == 40
    assert all(path.is_dir() for path in made)
    assert tmp_path / "a" / "12-00-00" in made
