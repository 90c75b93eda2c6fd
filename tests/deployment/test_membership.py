"""A node makes its own key; the operator sees the public half only, and says who belongs to the fleet."""

import dataclasses
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from deploy.cli import CONFIG_ERROR, fleet, supernode
from deploy.enrolment import enrol, read_request
from deploy.membership import Membership, _confirm
from schema import ConfigError
from server_app.run import RunFailedError
from strategies.identity import read_entries, read_roster


class SuperLink:
    """Takes keys as Flower does: each once, for ever."""

    def __init__(self):
        self.keys, self.status = {}, {}

    def register(self, public_key, name):
        key = public_key.read_text()
        if key in self.keys.values():
            raise RunFailedError("Public key already in use.")
        node = str(1000 + len(self.keys))
        self.keys[node], self.status[node] = key, "registered"
        return node

    def unregister(self, node):
        if self.status.get(node) in (None, "unregistered"):
            raise RunFailedError(f"Node {node} not found")
        self.status[node] = "unregistered"

    def nodes(self):
        return [{"node-id": node, "status": status} for node, status in self.status.items()]

    @property
    def accepted(self):
        return {self.keys[node].strip() for node, status in self.status.items() if status != "unregistered"}


@pytest.fixture
def members(tmp_path):
    return Membership(tmp_path / "keys" / "roster", SuperLink())


@pytest.fixture
def asked(tmp_path):
    """Returns the request of a new node."""
    return lambda name, device: enrol(tmp_path / "nodes" / name, device, name)


def test_a_node_keeps_its_key_and_sends_what_openssl_and_ssh_can_read(tmp_path, capsys):
    key = tmp_path / "etc" / "node"
    assert supernode(["enrol", str(key), "--device", "3", "--name", "edge-3"]) == 0
    said = capsys.readouterr().out
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    request = read_request(tmp_path / "etc" / "node.csr")
    assert (request.device, request.name) == (3, "edge-3")
    assert f"{request.public_key}\n" == (tmp_path / "etc" / "node.pub").read_text()
    assert request.fingerprint in said
    shown = subprocess.run(["ssh-keygen", "-lf", f"{key}.pub"], capture_output=True, text=True, check=False)
    assert shown.returncode or request.fingerprint in shown.stdout
    secret = "".join(key.read_text().splitlines()[1:-1])
    for path in (f"{key}.csr", f"{key}.pub"):
        assert "PRIVATE" not in Path(path).read_text()
        assert secret[-60:] not in "".join(Path(path).read_text().split())
    assert secret[-60:] not in said
    assert supernode(["enrol", str(key), "--device", "3"]) == CONFIG_ERROR  # nothing is overwritten
    assert "is there already" in capsys.readouterr().err


def _forged(path, **change):
    """Write a request that is wrong in one way."""
    key = change.get("key") or ec.generate_private_key(ec.SECP384R1())
    names = [
        x509.NameAttribute(NameOID.COMMON_NAME, change.get("name", "edge-3")),
        x509.NameAttribute(NameOID.SERIAL_NUMBER, change.get("device", "3")),
    ][: change.get("names", 2)]
    digest = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA384()
    signed = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(names)).sign(key, digest)
    content = signed.public_bytes(Encoding.DER)
    if change.get("other_signature"):
        content = content[:-1] + bytes([content[-1] ^ 1])
    pem = x509.load_der_x509_csr(content).public_bytes(Encoding.PEM)
    path.write_bytes(pem[: change.get("size")])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"other_signature": True}, "not that of the key in it"),
        ({"key": ec.generate_private_key(ec.SECP256K1())}, "P-384"),
        ({"key": ed25519.Ed25519PrivateKey.generate()}, "P-384"),
        ({"name": "a b\x1b[31m"}, "does not say which device"),
        ({"name": "edge\n1 ecdsa"}, "does not say which device"),
        ({"device": "-1"}, "does not say which device"),
        ({"device": "1e3"}, "does not say which device"),
        ({"names": 1}, "does not say which device"),
        ({"size": 90}, "no request"),
        ({"size": 0}, "no request"),
    ],
)
def test_a_request_that_is_not_to_be_trusted_is_refused(tmp_path, change, named):
    _forged(tmp_path / "node.csr", **change)
    with pytest.raises(ConfigError, match=named):
        read_request(tmp_path / "node.csr")


def _says(answer):
    return lambda _: answer


def test_only_the_request_that_the_node_has_made_is_approved(asked):
    mine, other = asked("a", 0), asked("b", 0)
    _confirm(mine, mine.fingerprint)
    _confirm(mine, None, lambda _: "yes")
    _confirm(mine, None, lambda _: f" {mine.fingerprint} ")
    with pytest.raises(ConfigError, match="nothing was changed"):
        _confirm(mine, other.fingerprint)
    for answer in ("no", "", other.fingerprint):
        with pytest.raises(ConfigError, match="nothing was changed"):
            _confirm(mine, None, _says(answer))

    def nobody(_):
        raise EOFError

    with pytest.raises(ConfigError, match="--fingerprint"):
        _confirm(mine, None, nobody)


def test_the_roster_and_the_superlink_say_the_same_after_every_step(members, asked):
    def same():
        entries = read_entries(members.roster) if members.roster.exists() else []
        assert {entry.public_key for entry in entries} == members._register.accepted
        return {entry.index: entry.public_key for entry in entries}

    first, second, third = asked("a", 0), asked("b", 1), asked("c", 1)
    members.approve(first)
    members.approve(second)
    assert same() == {0: first.public_key, 1: second.public_key}
    with pytest.raises(ConfigError, match="device 1 has the key"):
        members.approve(third)
    node, old = members.rotate(third)
    assert old.fingerprint == second.fingerprint
    assert same() == {0: first.public_key, 1: third.public_key}
    assert members.revoke("a").index == 0
    assert same() == {1: third.public_key}
    with pytest.raises(RunFailedError, match="already in use"):  # a key that was revoked stays so
        members.approve(first)
    again = asked("again", 0)
    members.approve(again)
    assert same() == {0: again.public_key, 1: third.public_key}
    assert read_roster(members.roster, 2) == {0: again.fingerprint, 1: third.fingerprint}
    text = members.roster.read_text()
    assert text.count("# revoked") == text.count("# rotated") == 1
    rows = members.table()
    assert [row[:2] for row in rows[1:]] == [("0", "again"), ("1", "c")]
    assert rows[2][2] == node


def test_a_key_is_one_device_and_a_name_that_two_have_is_none(members, asked):
    first, second = asked("edge", 0), enrol(members.roster.parent / "other" / "edge", 1, "edge")
    members.approve(first)
    with pytest.raises(ConfigError, match="this key is that of device 0 already"):
        members.approve(dataclasses.replace(first, device=2))
    members.approve(second)
    before = members.roster.read_text()
    with pytest.raises(ConfigError, match="names several devices"):
        members.revoke("edge")
    assert members.roster.read_text() == before
    assert members.revoke(second.fingerprint).index == 1


def test_whoever_reads_the_roster_meanwhile_reads_a_whole_one(members, asked):
    members.approve(asked("a", 0))
    before = members.roster.read_text()
    with members.roster.open() as reader:
        members.approve(asked("b", 1))
        assert reader.read() == before
    assert len(read_entries(members.roster)) == 2


@pytest.mark.parametrize("command", ["rotate", "revoke"])
def test_whoever_is_not_in_the_roster_can_neither_rotate_nor_be_revoked(members, asked, command):
    members.approve(asked("a", 0))
    who = asked("b", 1) if command == "rotate" else "b"
    with pytest.raises(ConfigError, match="is no device, name or fingerprint"):
        getattr(members, command)(who)


def test_a_roster_that_cannot_be_written_leaves_no_key_registered(members, asked, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", str(members.roster))

    monkeypatch.setattr(members, "_write", full)
    with pytest.raises(ConfigError, match="No space left"):
        members.approve(asked("a", 0))
    assert members._register.accepted == set()


def test_a_superlink_that_does_not_answer_changes_nothing(members, asked, monkeypatch):
    members.approve(asked("a", 0))
    before = members.roster.read_text()

    def down(*_):
        raise RunFailedError("nothing listens there")

    monkeypatch.setattr(members._register, "unregister", down)
    with pytest.raises(RunFailedError):
        members.revoke("0")
    assert members.roster.read_text() == before


def test_the_operators_commands_say_what_is_wrong(tmp_path, capsys):
    (tmp_path / "x.csr").write_text("nothing")
    assert fleet(["approve", str(tmp_path / "x.csr")]) == CONFIG_ERROR
    assert "no request of `airflower-supernode enrol`" in capsys.readouterr().err
    assert fleet(["approve", str(tmp_path / "y.csr")]) == CONFIG_ERROR
    assert "No such file" in capsys.readouterr().err


def test_enrolling_needs_neither_torch_nor_a_network(tmp_path):
    script = (
        "import sys; from deploy.cli import supernode; "
        f"code = supernode(['enrol', {str(tmp_path / 'node')!r}, '--device', '0']); "
        "sys.exit(code or 'torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
