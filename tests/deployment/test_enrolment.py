"""Enrolment, rotation and revocation with real processes: the operator never opens a node's private key."""

import os
import re
import subprocess
import sys
import textwrap
from base64 import b64encode
from pathlib import Path

import psutil
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_ssh_private_key
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.node_pb2 import Node

from deploy.local_fleet import LocalFleet
from tests.deployment.fleets import SMALL, rounds, rows, wait
from tests.deployment.test_strangers import _call, _signed

pytestmark = [pytest.mark.slow, pytest.mark.fleet]

TRAINED = 1.2  # loss of the personal steps after two or more rounds; 1.5 in the first
SETTINGS = (
    *SMALL, "rounds=1000", "evaluate_every=1000", "training.personal_learning_rate=0.05",
    "fleet.round_timeout_s=120", "fleet.min_devices=1",
)  # fmt: skip


class Operator:
    """Runs the operator's commands in processes that note every file that they open."""

    def __init__(self, folder: Path, fleet: LocalFleet) -> None:
        self.roster, self.opened = folder / "keys" / "roster", folder / "opened"
        hook = folder / "hook"
        hook.mkdir()
        (hook / "sitecustomize.py").write_text(
            textwrap.dedent(f"""
                import os, sys
                log = os.open({str(self.opened)!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                def note(event, arguments):
                    if event == "open":
                        os.write(log, (str(arguments[0]) + "\\n").encode())
                sys.addaudithook(note)
            """)
        )
        self.environment = {
            **os.environ, "PYTHONPATH": str(hook), "FLWR_HOME": str(fleet.scratch / "operator" / "home"),
        }  # fmt: skip

    def __call__(self, *arguments: str) -> str:
        program = "import sys; from deploy.cli import fleet; sys.exit(fleet())"
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments, "--roster", str(self.roster)],
            capture_output=True, text=True, env=self.environment, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


def _enrol(key: Path, device: int) -> tuple[Path, str]:
    """Return the request of a new key, and the fingerprint that its node shows."""
    program = "import sys; from deploy.cli import supernode; sys.exit(supernode())"
    said = subprocess.run(
        [sys.executable, "-c", program, "enrol", str(key), "--device", str(device)],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    found = re.search(r"SHA256:\S+", said)
    assert found
    return Path(f"{key}.csr"), found[0]


def _shows(text: bytes, key: Path) -> bool:
    """Return whether the secret number of a private key is in a text: as it is, in hexadecimal or in base64.

    A file of a private key holds the public one too, which may be anywhere.
    """
    content = key.read_bytes()
    load = load_ssh_private_key if b"OPENSSH" in content else load_pem_private_key
    loaded = load(content, None)
    assert isinstance(loaded, EllipticCurvePrivateKey)
    secret = loaded.private_numbers().private_value.to_bytes((loaded.key_size + 7) // 8, "big")
    coded = [b64encode(secret[shift : shift + (len(secret) - shift) // 3 * 3]) for shift in range(3)]
    joined = text.replace(b"\n", b"")
    return any(form in joined for form in (secret, secret.hex().encode(), *coded))


def _admitted(fleet: LocalFleet, node: str, key: Path) -> bool:
    """Return whether the SuperLink takes a call of a node with a key."""
    beat = SendNodeHeartbeatRequest(node=Node(node_id=int(node)), heartbeat_interval=30)
    answer = _call(
        fleet.port, fleet.credentials.ca_certificate, "/v1/fleet/send-node-heartbeat",
        beat.SerializeToString(), _signed(key),
    )  # fmt: skip
    assert answer.status_code in (200, 401)
    return bool(answer.status_code == 200)


def test_nodes_are_let_in_changed_and_shut_out_by_their_requests(tmp_path):
    nodes, out = tmp_path / "nodes", tmp_path / "out"
    with LocalFleet(tmp_path / "fleet", 3, tmp_path / "logs") as fleet:
        operator = Operator(tmp_path, fleet)

        def start(device: int, key: Path) -> None:
            fleet.start_node(
                device, {"state-dir": str(tmp_path / f"state-{device}")}, key=key, name=key.name,
                kept_running=True,
            )  # fmt: skip

        def admit(command: str, key: Path, device: int) -> str:
            request, fingerprint = _enrol(key, device)
            said = operator(command, str(request), "--fingerprint", fingerprint)
            found = re.search(r"node (\d+)", said)
            assert found
            return found[1]

        keys = [nodes / f"key-{device}" for device in range(3)]
        ids = []
        for device, key in enumerate(keys):
            ids.append(admit("approve", key, device))
            start(device, key)
        fleet.submit([*SETTINGS, f"fleet.roster={operator.roster}"], out)
        wait(lambda: all(len(rows(out, device)) >= 2 for device in range(3)), "two rounds", out)

        def ok(device: int, since: int) -> list[dict[str, str]]:
            return [row for row in rows(out, device)[since:] if row["status"] == "ok"]

        # Revoked: refused at once, and for good.
        assert _admitted(fleet, ids[2], keys[2])
        operator("revoke", "2")
        assert not _admitted(fleet, ids[2], keys[2])
        revoked = rounds(out)
        log = tmp_path / "logs" / f"{keys[2].name}.log"
        wait(lambda: "exit code 305" in log.read_text(), "the revoked node is refused", out)
        wait(lambda: rounds(out) >= revoked + 2, "rounds without it", out)
        assert ok(2, revoked + 1) == []

        # Rotated: the device goes on with its personal part under the new key, in the same run.
        new = nodes / "key-1-new"
        changed = admit("rotate", new, 1)
        assert not _admitted(fleet, ids[1], keys[1])
        since = rounds(out)
        start(1, new)
        wait(lambda: len(ok(1, since)) >= 1, "the device with the new key", out)
        assert float(ok(1, since)[0]["personal_loss"]) < TRAINED
        assert _admitted(fleet, changed, new)

        # Let in again, with another key.
        again = nodes / "key-2-again"
        admit("approve", again, 2)
        since = rounds(out)
        start(2, again)
        wait(lambda: len(ok(2, since)) >= 1, "the device that was let in again", out)

        listed = operator("list").splitlines()
        assert [line.split()[:2] for line in listed[1:4]] == [
            ["0", "device-0"],
            ["1", "device-1"],
            ["2", "device-2"],
        ]
        assert [line.split()[3] for line in listed[1:4]] == ["online"] * 3

        commands = [
            " ".join(process.info["cmdline"] or []).encode(errors="replace")
            for process in psutil.process_iter(["cmdline"])
        ]
    private = [*keys, new, again]
    opened = operator.opened.read_text().splitlines()
    assert str(Path(f"{keys[0]}.csr")) in opened  # the hook is at work
    assert not {str(key) for key in private} & {
        os.path.realpath(path) for path in opened if path.startswith("/")
    }
    said = b"".join(
        [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.parent != nodes]
        + commands
    )
    assert all(_shows(key.read_bytes(), key) for key in private)  # the check can tell
    assert not any(_shows(said, key) for key in private)
