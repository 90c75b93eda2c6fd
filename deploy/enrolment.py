"""How a node joins a fleet: it makes its own key, and only a request with the public half travels.

The request is a PKCS #10 certificate signing request (RFC 2986; ``openssl req -in node.csr -text`` shows it):
its subject says the node's name and, as its serial number, which device it is, and its signature proves that
whoever made it has the private key. The operator compares the fingerprint with the one that the node showed,
and approves: the public key is registered with the SuperLink and written into the roster. Nothing on the
operator's side ever opens a private key of a node.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from deploy.credentials import make_node_key
from schema import ConfigError
from strategies.identity import key_fingerprint

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_LARGEST = 1 << 16  # bytes of a request; one has about 600
_CURVES = ("secp256r1", "secp384r1", "secp521r1")  # what Flower takes


@dataclass(frozen=True)
class Request:
    """What a node asks for.

    Attributes:
        device: index of the device that it is.
        name: for people.
        public_key: in OpenSSH's format, ``ecdsa-sha2-nistp384 AAAA...``.
        fingerprint: of the key, as ``ssh-keygen -lf`` shows it.
    """

    device: int
    name: str
    public_key: str
    fingerprint: str


def enrol(key: Path, device: int, name: str = "") -> Request:
    """Make a node's key pair, `key` and `key`.pub, and its request, `key`.csr.

    Args:
        key: file of the private key, readable by its owner only.
        device: index of the device.
        name: of the node; default: ``device-<index>``.

    Raises:
        ConfigError: if one of the files is there, or cannot be written, or a value is of no use.
    """
    name = name or f"device-{device}"
    if device < 0:
        raise ConfigError(f"--device {device}: an index of a device is at least 0")
    if not _NAME.fullmatch(name):
        raise ConfigError(f"--name {name!r}: 1 to 64 letters, digits, dots, hyphens and underscores")
    request = Path(f"{key}.csr")
    for path in (key, Path(f"{key}.pub"), request):
        if path.exists():
            raise ConfigError(
                f"{path} is there already, and no key is overwritten; a new key gets a new name"
            )
    try:
        key.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        make_node_key(key)
        private = serialization.load_ssh_private_key(key.read_bytes(), password=None)
        assert isinstance(private, ec.EllipticCurvePrivateKey)
        subject = x509.Name(
            [
                x509.NameAttribute(NameOID.COMMON_NAME, name),
                x509.NameAttribute(NameOID.SERIAL_NUMBER, str(device)),
            ]
        )
        signed = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(private, hashes.SHA384())
        with open(os.open(request, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644), "wb") as file:
            file.write(signed.public_bytes(serialization.Encoding.PEM))
    except OSError as error:
        raise ConfigError(f"{error.filename or key}: {error.strerror or error}") from error
    return read_request(request)


def read_request(path: Path) -> Request:
    """Read a request, and see that whoever signed it has the key that it names.

    Raises:
        ConfigError: if it is none, or is not to be trusted.
    """
    try:
        with path.open("rb") as file:
            signed = x509.load_pem_x509_csr(file.read(_LARGEST))
        public, valid = signed.public_key(), signed.is_signature_valid
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    except Exception as error:  # parsers of what comes from outside fail in many ways
        raise ConfigError(f"{path} is no request of `airflower-supernode enrol`: {error}") from error
    if not valid:
        raise ConfigError(f"{path}: its signature is not that of the key in it; ask the node for a new one")
    if not isinstance(public, ec.EllipticCurvePublicKey) or public.curve.name not in _CURVES:
        raise ConfigError(f"{path}: Flower takes keys on the curves P-256, P-384 and P-521 only")
    name, device = _only(signed, NameOID.COMMON_NAME), _only(signed, NameOID.SERIAL_NUMBER)
    if not _NAME.fullmatch(name) or not re.fullmatch(r"[0-9]{1,9}", device):
        raise ConfigError(f"{path}: its subject does not say which device it is, and under which name")
    text = public.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()
    return Request(int(device), name, text, key_fingerprint(public))


def _only(signed: x509.CertificateSigningRequest, kind: x509.ObjectIdentifier) -> str:
    found = signed.subject.get_attributes_for_oid(kind)
    return str(found[0].value) if len(found) == 1 else ""
