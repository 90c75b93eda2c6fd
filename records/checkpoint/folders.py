"""Where checkpoints lie in a run folder, and how they are removed."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

log = logging.getLogger(__name__)

FOLDER = "checkpoint"
NAME = re.compile(r"round-(\d{6,})")


def remove(folders: Iterable[Path]) -> None:
    """Remove folders; each is renamed first, so that no half of it is ever taken for a checkpoint."""
    for folder in folders:
        target = folder.with_name(f"{folder.name.removesuffix('.partial')}.partial")
        if target != folder:
            shutil.rmtree(target, ignore_errors=True)
            folder.replace(target)
        shutil.rmtree(target, ignore_errors=True)


def checkpoints(run_folder: Path) -> list[tuple[int, Path]]:
    """Return the checkpoints of a run folder, whatever their state, the newest first."""
    folder = run_folder / FOLDER
    found = [
        (int(name[1]), path)
        for path in (folder.iterdir() if folder.is_dir() else ())
        if (name := NAME.fullmatch(path.name)) and path.is_dir()
    ]
    return sorted(found, reverse=True)


def discard_after(run_folder: Path, server_round: int) -> None:
    """Remove checkpoints of later rounds, which a run that goes on does again, and halves of them."""
    remove((run_folder / FOLDER).glob("*.partial"))
    for number, folder in checkpoints(run_folder):
        if number > server_round:
            log.warning("removed: %s, of a round that is done again", folder)
            remove([folder])


def latest(run_folder: Path) -> Path:
    """Return the newest checkpoint of a run folder.

    Raises:
        FileNotFoundError: if there is none.
    """
    if found := checkpoints(run_folder):
        return found[0][1]
    raise FileNotFoundError(f"no checkpoint in {run_folder}")


def source_of(path: str) -> Path:
    """Return the run folder that a value of `resume` leads to."""
    folder = Path(path).expanduser().resolve()
    if NAME.fullmatch(folder.name):
        folder = folder.parent
    return folder.parent if folder.name == FOLDER else folder
