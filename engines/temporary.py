"""Temporary folders that hold sockets: their paths must be short, however long the machine's TMPDIR is."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from schema import ConfigError

# A socket's path has at most 107 bytes on Linux and 103 on macOS. Ray adds up to 70 to its folder.
RAY, SOCKET = 36, 90
_RANDOM = 8  # characters that `tempfile` adds
_OTHERS = ("/tmp", "/var/tmp")  # only where a folder with a random name is made


def short_folder(prefix: str, longest: int) -> tempfile.TemporaryDirectory[str]:
    """Make a temporary folder, in TMPDIR if its path leaves room for the names of sockets.

    Args:
        prefix: of its name.
        longest: bytes that its path may have: `RAY` or `SOCKET`.

    Raises:
        ConfigError: if there is no place with a short path that can be written.
    """
    usual = tempfile.gettempdir()
    for place in (usual, *_OTHERS):
        size = len(os.fsencode(Path(place, prefix))) + _RANDOM
        if size <= longest and os.access(place, os.W_OK | os.X_OK):
            return tempfile.TemporaryDirectory(prefix=prefix, dir=place, ignore_cleanup_errors=True)
    raise ConfigError(
        f"TMPDIR = {usual} is too long for the path of a socket, and {' and '.join(_OTHERS)} cannot be "
        f"written; set TMPDIR to a folder whose path has at most {longest - len(prefix) - _RANDOM - 1} bytes"
    )
