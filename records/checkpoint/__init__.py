"""Checkpoints: all that a resumed run needs to end like an uninterrupted one.

A checkpoint is a folder ``checkpoint/round-000010``: ``server.npz`` (the global part, the strategy's own
state), ``config.json``, ``personal/`` with one file per device, written by the device itself, and
``manifest.json``, which names the round, the run, every file with its SHA-256 and size, how far the tables of
the run folder were written, and the round of every device's personal part. Random streams are keyed by round
and device, so there is no generator to store.

It is written beside its place, flushed to the disk and renamed: it is there as a whole or not at all. The
last two are kept, and beyond them the last one that has every connected device's part. A device that cannot
store its part makes a checkpoint incomplete; the earlier one then stands. What is loaded is the newest
complete one of which nothing has changed; what is passed over, and why, is said.
"""

from records.checkpoint.folders import FOLDER, checkpoints, discard_after, latest, source_of
from records.checkpoint.load import load, open_checkpoint, refuse_other
from records.checkpoint.manifest import Checkpoint, CheckpointError, DevicePart, Manifest
from records.checkpoint.starts import note_start
from records.checkpoint.writer import FinishedRound, Writer

__all__ = [
    "FOLDER",
    "Checkpoint",
    "CheckpointError",
    "DevicePart",
    "FinishedRound",
    "Manifest",
    "Writer",
    "checkpoints",
    "discard_after",
    "latest",
    "load",
    "note_start",
    "open_checkpoint",
    "refuse_other",
    "source_of",
]
