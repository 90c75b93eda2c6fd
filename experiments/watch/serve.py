"""The snapshot over HTTP, on this machine only: a page, JSON, and text for Prometheus.

The page is one file that asks for nothing but ``/state.json`` of the same server. Requests that name another
host are refused, so that no web page elsewhere can read a run by giving its own name this address.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from experiments.watch.state import Snapshot

HOST = "127.0.0.1"
PAGE = Path(__file__).with_name("page.html")
_OURS = ("127.0.0.1", "localhost", "[::1]")
_INLINE = "style-src 'unsafe-inline'; script-src 'unsafe-inline'"
_POLICY = f"default-src 'none'; {_INLINE}; connect-src 'self'; img-src data:"


def server(port: int, snapshot: Callable[[], Snapshot]) -> ThreadingHTTPServer:
    """Return a server on a loopback port (0: any free one) that answers with what `snapshot` returns.

    Raises:
        OSError: if the port is taken.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.headers.get("Host", "").rpartition(":")[0] not in _OURS:
                self._answer(403, "text/plain", b"this server answers to the names of its own machine only\n")
                return
            path = self.path.partition("?")[0]
            try:
                if path == "/":
                    self._answer(200, "text/html", PAGE.read_bytes())
                elif path == "/state.json":
                    self._answer(200, "application/json", json.dumps(snapshot().to_dict()).encode())
                elif path == "/metrics":
                    text = "\n".join(metrics(snapshot())) + "\n"
                    self._answer(200, "text/plain; version=0.0.4", text.encode())
                else:
                    self._answer(404, "text/plain", b"there are /, /state.json and /metrics\n")
            except (OSError, ValueError) as error:  # a folder that has gone, or is just being written
                self._answer(503, "text/plain", f"{error}\n".encode())

        def _answer(self, status: int, kind: str, content: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind if ";" in kind else f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Content-Security-Policy", _POLICY)
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass  # the terminal shows the run

    return ThreadingHTTPServer((HOST, port), Handler)


def metrics(snapshot: Snapshot) -> Iterator[str]:
    """Yield the lines of Prometheus' text format; what is not known has no line."""
    run = f'run="{_label(Path(snapshot.folder).name)}"'
    single = {
        "round": ("Rounds that have ended.", snapshot.round),
        "rounds": ("Rounds that there are to be.", snapshot.rounds),
        "running": ("Whether the run goes on.", int(snapshot.status == "running")),
        "failed": (
            "Whether the run ended badly.",
            int(snapshot.status in ("failed", "killed", "interrupted")),
        ),
        "round_seconds": ("Wall-clock seconds of a recent round.", snapshot.round_s),
        "accuracy": ("Mean test accuracy.", snapshot.accuracy[-1][1] if snapshot.accuracy else None),
        "accuracy_worst": ("Test accuracy of the worst device.", snapshot.worst),
    }
    if snapshot.sweep is not None:
        single |= {
            "sweep_jobs": ("Jobs of the sweep.", snapshot.sweep.jobs),
            "sweep_jobs_ended": ("Jobs of the sweep that have ended.", snapshot.sweep.done),
            "sweep_jobs_failed": ("Jobs of the sweep that ended badly.", snapshot.sweep.failed),
        }
    for name, (text, value) in single.items():
        if value is not None:
            yield from _head(name, text)
            yield f"airflower_{name}{{{run}}} {value:.10g}"
    if snapshot.figures:
        yield from _head("last_round", "Numbers of the last round.")
        for name, value in snapshot.figures:
            yield f'airflower_last_round{{{run},quantity="{_label(name)}"}} {value:.10g}'
    for field, name, text in (
        ("seen_s", "node_seen_seconds", "Seconds since a device last answered."),
        ("download_s", "node_download_seconds", "Seconds from a node's last order to its beginning with it."),
        ("train_s", "node_train_seconds", "Seconds that a device trained in its last round."),
        ("upload_s", "node_upload_seconds", "Seconds from a node's end to its answer's arrival."),
        ("transfer_s", "node_transfer_seconds", "Seconds of a device's last upload by a timed transfer."),
        ("exchange_s", "node_exchange_seconds", "Seconds from order to answer, less training."),
        ("sent_bytes", "node_sent_bytes", "Bytes of a device's last upload."),
        ("energy_j", "node_energy_joules", "Joules that a device's board measured while it trained."),
        ("accuracy", "node_accuracy", "Test accuracy of a device."),
    ):
        found = [
            (node.device, getattr(node, field)) for node in snapshot.nodes if getattr(node, field) is not None
        ]
        if found:
            yield from _head(name, text)
            for device, value in found:
                yield f'airflower_{name}{{{run},device="{device}"}} {value:.10g}'
    if snapshot.nodes:
        yield from _head("node_ok", "Whether a device's last round was used.")
        for node in snapshot.nodes:
            yield f'airflower_node_ok{{{run},device="{node.device}"}} {int(node.status == "ok")}'


def _head(name: str, text: str) -> Iterator[str]:
    yield f"# HELP airflower_{name} {text}"
    yield f"# TYPE airflower_{name} gauge"


def _label(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
