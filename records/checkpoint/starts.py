"""The names under which a run was started in one folder.

A run that goes on where it is has a new name at each start, and devices with folders of their own keep
their parts under it. A start that was killed before its first checkpoint is in no manifest; so that what it
left can be removed, its name is written down before any device hears it.
"""

from __future__ import annotations

import logging
from pathlib import Path

from protocol.archives import write_file
from records.checkpoint.folders import FOLDER

log = logging.getLogger(__name__)

_FILE = "starts.txt"
_REMEMBERED = 64  # for a device that was away for long; what an even older start left on it stays there


def note_start(run_folder: Path, run: str) -> tuple[str, ...]:
    """Write down that a run was started in a folder; return the names of its starts before, the oldest first.

    Only those count that were made where the folder is now: of a copy, the other one may still be in use.
    A disk that does not take the name is logged.
    """
    path = run_folder / FOLDER / _FILE
    here = str(run_folder.resolve())
    found: list[tuple[str, str]] = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, where = line.partition(" ")
            found.append((name, where))
    found = [one for one in found if one[1] == here][-_REMEMBERED:]
    text = "".join(f"{name} {where}\n" for name, where in [*found, (run, here)])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, text.encode())
    except OSError as error:
        log.warning(
            "%s cannot be written: %s; what this start leaves on devices will stay there", path, error
        )
    return tuple(name for name, _ in found)
