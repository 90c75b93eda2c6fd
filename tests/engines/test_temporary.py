"""Folders with sockets have short paths, whatever TMPDIR is."""

import socket
import tempfile
from pathlib import Path

import pytest

from engines import temporary
from engines.temporary import RAY, SOCKET, short_folder
from schema import ConfigError


@pytest.mark.parametrize("longest", [RAY, SOCKET])
@pytest.mark.parametrize("name", ["x" * 120, "ä" * 60])
def test_a_long_tmpdir_is_passed_over(tmp_path, monkeypatch, longest, name):
    long = tmp_path / name
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with short_folder("airflower-", longest) as folder, socket.socket(socket.AF_UNIX) as listener:
        assert len(folder) <= longest
        listener.bind(str(Path(folder) / "socket"))
    assert not Path(folder).exists()


def test_a_short_tmpdir_is_used(monkeypatch):
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        monkeypatch.setattr(tempfile, "tempdir", short)
        with short_folder("a-", RAY) as folder:
            assert Path(folder).parent == Path(short)


def test_no_short_place_is_said_with_the_remedy(tmp_path, monkeypatch):
    long = tmp_path / ("x" * 120)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    monkeypatch.setattr(temporary, "_OTHERS", (str(tmp_path / "absent"),))
    with pytest.raises(ConfigError, match=r"TMPDIR = .*x is too long.*set TMPDIR to a folder"):
        short_folder("airflower-", RAY)
