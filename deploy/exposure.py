"""What a SuperLink shows to whoever stands here: for the operator of a fleet to look at it from a node."""

from __future__ import annotations

import argparse
import ssl
from collections.abc import Sequence
from pathlib import Path

import httpx

from engines.diagnose import trouble

# One harmless call of each interface: without a body that makes sense, none of them does anything.
_CALLS = {
    "control (register keys, run apps, read logs)": "/v1/control/list-runs",
    "runtime (of the ServerApp)": "/v1/runtime/get-nodes",
}
_NODE_CALL = "/v1/fleet/pull-messages"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what is reachable; return 0 if that is the node interface and nothing else."""
    parser = argparse.ArgumentParser(
        prog="airflower-fleet check",
        description="Tell whether a SuperLink is reachable from here, and whether more is than nodes need.",
    )
    parser.add_argument("address", metavar="HOST:PORT")
    parser.add_argument(
        "--root-certificates", type=Path, metavar="FILE", help="the CA (default: the system's)"
    )
    options = parser.parse_args(arguments)
    if reason := trouble(options.address, options.root_certificates):
        print(f"airflower-fleet: {reason}")
        return 1
    trust = ssl.create_default_context(
        cafile=str(options.root_certificates) if options.root_certificates else None
    )
    with httpx.Client(
        base_url=f"https://{options.address}", verify=trust, timeout=10.0, trust_env=False
    ) as client:
        open_calls = [name for name, path in _CALLS.items() if _answered(client, path)]
        nodes = _answered(client, _NODE_CALL)
    print(f"nodes: {'reachable' if nodes else 'not served here'}")
    for name in _CALLS:
        print(f"{name}: {'OPEN to everybody who reaches this port' if name in open_calls else 'closed'}")
    return 0 if nodes and not open_calls else 1


def _answered(client: httpx.Client, path: str) -> bool:
    """Return whether a call has reached Flower: it answers anything but "not found"."""
    try:
        answer = client.post(path, headers={"content-type": "application/protobuf"})
    except httpx.TransportError:  # cut off: it serves other users
        return False
    return answer.status_code != 404
