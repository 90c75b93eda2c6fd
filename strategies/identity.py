"""Who a node is: the key that its operator registered, not what it says of itself.

Keys are shown as OpenSSH shows them (``ssh-keygen -lf node-003.pub``), so that a line of the log can be found
among the files of the fleet. A roster is a text file with one device per line, its index and its public key::

    0 ecdsa-sha2-nistp384 AAAAE2VjZHNhLXNoYTItbmlzdHAzODQ... node-0

What follows the key is for people, and for the operator's commands. A run looks at its roster again when the
file has changed. Empty lines and lines that start with ``#`` do not count.
"""

from __future__ import annotations

import base64
import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
    load_ssh_public_key,
)

log = logging.getLogger(__name__)


def fingerprint(public_key: bytes) -> str:
    """Return the fingerprint of a PEM public key, or "" where there is no such key (a simulated node)."""
    try:
        key = load_pem_public_key(public_key)
    except (ValueError, UnsupportedAlgorithm):
        return ""
    return key_fingerprint(key) if isinstance(key, ec.EllipticCurvePublicKey) else ""


class RosterFile:
    """A roster that is read again when its file has changed: the operator lets nodes in and takes keys away.

    Args:
        path: the file.
        num_devices: K.

    Attributes:
        owners: fingerprint of the key that owns each index.

    Raises:
        ValueError: naming the line that is wrong.
        OSError: if the file cannot be read.
    """

    def __init__(self, path: Path, num_devices: int) -> None:
        self._path, self._num_devices = path, num_devices
        self._seen = self._look()
        self.owners = read_roster(path, num_devices)

    def changed(self) -> bool:
        """Look at the file; return whether `owners` has changed. It stays if the file cannot be used."""
        try:
            seen = self._look()
            if seen == self._seen:
                return False
            self._seen = seen
            owners = read_roster(self._path, self._num_devices)
        except (OSError, ValueError) as error:
            log.warning("the roster has changed, and cannot be used; the former one holds: %s", error)
            return False
        changed, self.owners = owners != self.owners, owners
        return changed

    def _look(self) -> tuple[int, int, int]:
        facts = self._path.stat()
        return facts.st_mtime_ns, facts.st_size, facts.st_ino


def read_roster(path: Path, num_devices: int) -> Mapping[int, str]:
    """Return the fingerprint of the key that owns each index.

    Raises:
        ValueError: naming the line that is wrong.
        OSError: if the file cannot be read.
    """
    entries = read_entries(path)
    for entry in entries:
        if entry.index >= num_devices:
            raise ValueError(
                f"{path}, line {entry.line}: '{entry.index}' is no index of a device, 0 to {num_devices - 1}"
            )
    if not entries:
        raise ValueError(f"{path} names no device")
    return {entry.index: entry.fingerprint for entry in entries}


@dataclass(frozen=True)
class Entry:
    """A line of a roster.

    Attributes:
        line: its number, from 1.
        index: of the device.
        public_key: type and key in OpenSSH's format.
        fingerprint: of the key.
        comment: what follows it.
    """

    line: int
    index: int
    public_key: str
    fingerprint: str
    comment: str


def read_entries(path: Path) -> Sequence[Entry]:
    """Return the entries of a roster, in the order of its lines.

    Raises:
        ValueError: naming the line that is wrong.
        OSError: if the file cannot be read.
    """
    found: list[Entry] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        index, _, text = line.strip().partition(" ")
        where = f"{path}, line {number}"
        if not (index.isascii() and index.isdecimal()):
            raise ValueError(f"{where}: {index!r} is no index of a device")
        try:
            key = load_ssh_public_key(text.strip().encode())
        except (ValueError, UnsupportedAlgorithm) as error:
            raise ValueError(f"{where}: no public key in OpenSSH's format ({error})") from error
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise ValueError(
                f"{where}: Flower takes keys of elliptic curves only (ssh-keygen -t ecdsa -b 384)"
            )
        parts = text.split(None, 2)
        entry = Entry(
            number, int(index), " ".join(parts[:2]), key_fingerprint(key), "".join(parts[2:]).strip()
        )
        if any(entry.index == one.index or entry.fingerprint == one.fingerprint for one in found):
            raise ValueError(f"{where}: each index and each key may stand there once")
        found.append(entry)
    return found


def key_fingerprint(key: ec.EllipticCurvePublicKey) -> str:
    """Return the fingerprint of a public key, as ``ssh-keygen -lf`` shows it."""
    blob = base64.b64decode(key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).split()[1])
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")
