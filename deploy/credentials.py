"""Certificates of a fleet, and keys of a test fleet: a CA, the SuperLink's certificate, SuperNode keys.

Keys of nodes are made here for trials only: a node of a real fleet makes its own (see `enrolment`). Private
keys are unencrypted and readable by their owner only; whoever has ``ca.key`` can pose as the SuperLink, so
keep it off the machines of the fleet.

======================  ====  ==========================================================
ca.crt, ca.key          0644  the certificate that every SuperNode trusts; its key (0600)
server.crt, server.key  0644  the SuperLink's certificate; its key (0600)
roster                  0644  which key is which device, for ``fleet.roster``
nodes/node-000          0600  a SuperNode's private key (ECDSA, P-384, OpenSSH format)
nodes/node-000.pub      0644  its public key, to be registered with the SuperLink
======================  ====  ==========================================================
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

LOOPBACK = ("localhost", "127.0.0.1")
_PRIVATE, _PUBLIC, _FOLDER = 0o600, 0o644, 0o700


@dataclass(frozen=True)
class Credentials:
    """Where the files of a test fleet are."""

    folder: Path

    @property
    def ca_certificate(self) -> Path:
        """What a SuperNode and the `flwr` command trust."""
        return self.folder / "ca.crt"

    @property
    def server_certificate(self) -> Path:
        """The SuperLink's certificate."""
        return self.folder / "server.crt"

    @property
    def server_key(self) -> Path:
        """The SuperLink's private key."""
        return self.folder / "server.key"

    def node_key(self, index: int) -> Path:
        """Return the private key of SuperNode `index`; its public key lies beside it, with suffix .pub."""
        return self.folder / "nodes" / f"node-{index:03d}"


def make_credentials(folder: Path, *, nodes: int, hosts: Sequence[str] = (), days: int = 365) -> Credentials:
    """Make a CA, a SuperLink certificate for `hosts` (names or addresses) and `nodes` SuperNode keys.

    The certificate names loopback too: that is where the SuperLink listens, behind the gate.

    Raises:
        ValueError: if a number is of no use.
        FileExistsError: if one of the files is there; nothing is ever overwritten.
    """
    if nodes < 0 or days < 1:
        raise ValueError(f"nodes = {nodes}, days = {days}; there is no such number of keys, or of days")
    names = dict.fromkeys([*hosts, *LOOPBACK])  # each once
    made = Credentials(folder)
    for directory in (folder, folder / "nodes"):
        directory.mkdir(mode=_FOLDER, parents=True, exist_ok=True)
    now = datetime.now(UTC)
    ca_key, ca_name = ec.generate_private_key(ec.SECP256R1()), _name("airflower test CA")
    ca = (
        _builder(ca_name, ca_name, ca_key.public_key(), now, days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(sign_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    key = ec.generate_private_key(ec.SECP256R1())
    server = (
        _builder(_name("superlink"), ca_name, key.public_key(), now, days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(sign_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_host(name) for name in names]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False
        )
        .sign(ca_key, hashes.SHA256())
    )
    _write(folder / "ca.key", _pem(ca_key), _PRIVATE)
    _write(made.ca_certificate, ca.public_bytes(serialization.Encoding.PEM), _PUBLIC)
    _write(made.server_key, _pem(key), _PRIVATE)
    _write(made.server_certificate, server.public_bytes(serialization.Encoding.PEM), _PUBLIC)
    for index in range(nodes):
        make_node_key(made.node_key(index))
    return made


def roster(made: Credentials, nodes: int) -> Path:
    """Write which key is which device, for ``fleet.roster``; return the file."""
    lines = [
        f"{index} {made.node_key(index).with_name(f'{made.node_key(index).name}.pub').read_text()}"
        for index in range(nodes)
    ]
    path = made.folder / "roster"
    _write(path, "".join(lines).encode(), _PUBLIC)
    return path


def make_node_key(path: Path) -> None:
    """Make a SuperNode's key pair, `path` and `path`.pub, as ``ssh-keygen -t ecdsa -b 384`` does.

    Raises:
        FileExistsError: if one of the files is there.
    """
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    _write(path, private, _PRIVATE)
    _write(path.with_name(f"{path.name}.pub"), public + b"\n", _PUBLIC)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))  # clocks of edge nodes drift
        .not_valid_after(now + timedelta(days=days))
    )


def _usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(path: Path, content: bytes, mode: int) -> None:
    """Write a new file that has its mode from the start; the umask can only take rights away."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
