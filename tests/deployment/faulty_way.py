"""A way to the SuperLink that repeats requests, loses answers or breaks down.

It ends TLS with the SuperLink's own certificate (a test has its key), so that it knows which request it
holds; what it passes on is signed by the SuperNode as before.
"""

import http.client
import ssl
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from deploy.credentials import Credentials


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Connections that break are what it is for."""


class FaultyWay:
    """Passes requests on to `target` until it is closed.

    Attributes:
        twice: whether every announcement of a reply is sent twice.
        lose: how many answers to announcements are lost from now on.
        stuck: whether contents of replies do not get through.
        down: whether connections are broken off inside the TLS handshake.
        passed: requests by path.
    """

    def __init__(self, keys: Credentials, target: int) -> None:
        self.twice, self.lose, self.stuck, self.down = False, 0, False, False
        self.passed: Counter[str] = Counter()
        self._target = target
        self._trust = ssl.create_default_context(cafile=str(keys.ca_certificate))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(keys.server_certificate, keys.server_key)
        self._server = _Server(("127.0.0.1", 0), self._handler(context))
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def forward(self, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        """Send one request to the SuperLink and return its answer."""
        self.passed[path] += 1
        connection = http.client.HTTPSConnection("127.0.0.1", self._target, timeout=60, context=self._trust)
        try:
            connection.request("POST", path, body, headers)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    def _handler(way, context: ssl.SSLContext) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 60

            def setup(self) -> None:
                if way.down:
                    self.request.recv(4096)  # else the other side sees a reset, which it takes better
                    raise ConnectionAbortedError("the way is down")
                self.request = context.wrap_socket(self.request, server_side=True)
                super().setup()

            def finish(self) -> None:
                super().finish()
                self.request.close()

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                if way.down or (way.stuck and self.path.endswith("/push-object")):
                    self.close_connection = True
                    return
                pushed = self.path.endswith("/push-messages")
                headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
                answers = [
                    way.forward(self.path, body, headers) for _ in range(2 if pushed and way.twice else 1)
                ]
                if pushed and way.lose:
                    way.lose -= 1
                    self.close_connection = True
                    return
                status, answered, content = answers[-1]  # as if the first had been lost
                self.send_response(status)
                for name, value in answered.items():
                    if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                        self.send_header(name, value)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        return Handler
