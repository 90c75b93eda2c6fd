"""Stored arrays that survive a crash: written whole or not at all, and read only if nothing of them changed.

The format is NumPy's zip archive without pickle. A file is written to a temporary name, flushed to the disk
and renamed, and then its folder is flushed: a crash or a full disk leaves the old file or the new one.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


class ArchiveError(RuntimeError):
    """A stored archive is damaged or cannot be read."""


@dataclass(frozen=True)
class Written:
    """What a file holds.

    Attributes:
        sha256: hexadecimal digest of its bytes.
        size: number of its bytes.
    """

    sha256: str
    size: int


def write_archive(path: Path, arrays: Mapping[str, npt.NDArray[Any]], *, mode: int = 0o666) -> Written:
    """Write arrays to a file; an older file stands until the new one is complete.

    Raises:
        OSError: if the disk does not take it.
    """
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **dict(arrays))
    return write_file(path, buffer.getvalue(), mode=mode)


def write_file(path: Path, content: bytes, *, mode: int = 0o666) -> Written:
    """Write a file; an older one stands until the new one is complete.

    Raises:
        OSError: if the disk does not take it.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        flush_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)
    return Written(hashlib.sha256(content).hexdigest(), len(content))


def flush_file(path: Path) -> None:
    """Make what was written to a file survive a power cut."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_archive(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of a file, all of them.

    Raises:
        ArchiveError: if the file is absent or damaged, in whatever way.
    """
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except Exception as error:
        # Anything: a changed byte is met by zipfile, zlib, NumPy's parser of headers or Python's tokenizer,
        # and each has exceptions of its own (an "encrypted" flag is a RuntimeError).
        raise ArchiveError(f"{path} is damaged: {error or type(error).__name__}") from error


def digest_of(path: Path) -> Written:
    """Return what a file holds.

    Raises:
        OSError: if it cannot be read.
    """
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            size += len(block)
    return Written(digest.hexdigest(), size)
