"""The checkpoint that a run goes on from."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from records import checkpoint
from records.ownership import owned, settle
from server_app.settings import Settings, decides_nothing


def continues(settings: Settings, folder: Path) -> bool:
    """Return whether a run goes on in the folder of the one that it continues."""
    return bool(settings.resume) and checkpoint.source_of(str(settings.resume)) == folder.resolve()


def load_checkpoint(settings: Settings, *, quiet: bool = False) -> checkpoint.Checkpoint:
    """Open the newest usable checkpoint that `resume` leads to; `quiet`: say nothing of what is passed over.

    Raises:
        ConfigError: if there is none, or it belongs to a different configuration.
    """
    return checkpoint.load(
        str(settings.resume), settings.to_dict(), decides_nothing=decides_nothing, quiet=quiet
    )


@contextmanager
def open_checkpoint(settings: Settings) -> Iterator[checkpoint.Checkpoint | None]:
    """Open the checkpoint that the run continues, and own the folder that it lies in."""
    if not settings.resume:
        yield None
        return
    source = checkpoint.source_of(settings.resume)
    if not (source / checkpoint.FOLDER).is_dir() or not os.access(source, os.W_OK):
        yield load_checkpoint(settings)
        return
    settle(source)
    with owned(source):
        yield load_checkpoint(settings)
