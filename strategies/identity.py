"""Who a node is: the key that its operator registered, not what it says of itself.

Keys are shown as OpenSSH shows them (``ssh-keygen -lf node-003.pub``), so that a line of the log can be found
among the files of the fleet. A roster is a text file with one device per line, its index and its public key::

    0 ecdsa-sha2-nistp384 AAAAE2VjZHNhLXNoYTItbmlzdHAzODQ... node-0

Empty lines and lines that start with ``#`` do not count.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
    load_ssh_public_key,
)


def fingerprint(public_key: bytes) -> str:
    """Return the fingerprint of a PEM public key, or "" where there is no such key (a simulated node)."""
    try:
        key = load_pem_public_key(public_key)
    except (ValueError, UnsupportedAlgorithm):
        return ""
    return _fingerprint(key) if isinstance(key, ec.EllipticCurvePublicKey) else ""


def read_roster(path: Path, num_devices: int) -> Mapping[int, str]:
    """Return the fingerprint of the key that owns each index.

    Raises:
        ValueError: naming the line that is wrong.
        OSError: if the file cannot be read.
    """
    owners: dict[int, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        index, _, text = line.strip().partition(" ")
        where = f"{path}, line {number}"
        if not index.isdecimal() or int(index) >= num_devices:
            raise ValueError(f"{where}: {index!r} is no index of a device, 0 to {num_devices - 1}")
        try:
            key = load_ssh_public_key(text.strip().encode())
        except (ValueError, UnsupportedAlgorithm) as error:
            raise ValueError(f"{where}: no public key in OpenSSH's format ({error})") from error
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise ValueError(
                f"{where}: Flower takes keys of elliptic curves only (ssh-keygen -t ecdsa -b 384)"
            )
        owner = _fingerprint(key)
        if int(index) in owners or owner in owners.values():
            raise ValueError(f"{where}: each index and each key may stand there once")
        owners[int(index)] = owner
    if not owners:
        raise ValueError(f"{path} names no device")
    return owners


def _fingerprint(key: ec.EllipticCurvePublicKey) -> str:
    blob = base64.b64decode(key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).split()[1])
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")
