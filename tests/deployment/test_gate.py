"""What is reachable from a fleet's network: the calls of a SuperNode, exactly, whatever is sent."""

import re
import threading
import time

import pytest
import uvicorn
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deploy import gate
from deploy.credentials import make_credentials
from engines.superlink import free_ports
from tests.deployment.doors import DOORS, NGINX, ask, opened, post


class Recorder:
    """Stands for the SuperLink: notes every request that reaches it, and answers."""

    def __init__(self):
        self.requests = []

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            while (await receive())["type"] != "lifespan.shutdown":
                await send({"type": "lifespan.startup.complete"})
            await send({"type": "lifespan.shutdown.complete"})
            return
        body = b""
        while scope["type"] == "http":
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        target = scope["raw_path"] + (b"?" + scope["query_string"] if scope["query_string"] else b"")
        self.requests.append((scope.get("method"), target.decode("latin-1"), dict(scope["headers"]), body))
        headers = [(b"content-type", b"application/protobuf"), (b"flwr-answer", b"7")]
        await send({"type": "http.response.start", "status": 202, "headers": headers})
        await send({"type": "http.response.body", "body": b"answer:" + body[:100]})


@pytest.fixture(scope="module")
def superlink(tmp_path_factory):
    keys = make_credentials(tmp_path_factory.mktemp("gate") / "keys", nodes=1)
    recorder, (port,) = Recorder(), free_ports(1)
    server = uvicorn.Server(
        uvicorn.Config(
            recorder, port=port, log_level="error",
            ssl_certfile=keys.server_certificate, ssl_keyfile=keys.server_key,
        )
    )  # fmt: skip
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield recorder, keys, port
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module", params=DOORS)
def door(request, tmp_path_factory, superlink):
    recorder, keys, superlink_port = superlink
    folder = tmp_path_factory.mktemp("door") / request.param
    with opened(request.param, folder, keys, superlink_port) as port:
        yield recorder, lambda raw: ask(port, keys, raw)


def test_the_calls_of_a_supernode_pass_with_their_proofs_and_nothing_else(door):
    recorder, say = door
    for path in gate.NODE_API:
        recorder.requests.clear()
        body = bytes(range(256)) * 40
        status, answer = say(
            post(
                path, body, "Content-Type: application/protobuf", "flwr-signature: s1gn",
                "flwr-timestamp: now", "Authorization: Bearer x", "Cookie: a=b", "X-Forwarded-For: 127.0.0.1",
            )
        )  # fmt: skip
        ((method, target, headers, received),) = recorder.requests
        assert (method, target, received) == ("POST", path, body)
        assert (headers[b"flwr-signature"], headers[b"flwr-timestamp"]) == (b"s1gn", b"now")
        assert headers[b"content-type"] == b"application/protobuf"
        for dropped in (b"authorization", b"cookie", b"x-forwarded-for"):
            assert not headers.get(dropped)
        assert status == 202
        assert b"answer:" + body[:100] in answer
        assert b"flwr-answer: 7" in answer.lower()


def test_of_all_that_flower_serves_only_the_node_api_passes(door):
    """Every path that this version of Flower knows; a new interface of the next one is not open by itself."""
    recorder, say = door
    paths = {path for _, path in PROTOBUF_REQUEST_TYPES}
    assert set(gate.NODE_API) < paths
    others = [*sorted(paths - set(gate.NODE_API)), "/docs", "/openapi.json", "/health", "/", "*"]
    assert {"/v1/control/start-run", "/v1/control/register-node", "/v1/runtime/acquire-task"} < set(others)
    for path in others:
        recorder.requests.clear()
        status, _ = say(post(path))
        assert 400 <= status < 500, path
        assert recorder.requests == [], path


PIECES = [
    "v1", "fleet", "control", "runtime", "pull-messages", "get-fab", "list-runs", "start-run",
    "register-node", "..", ".", "%2e%2e", "%2E", "%2f", "..%2f", "", "V1", "FLEET",
    "pull-messages;a=b", "pull-messages%00", "pull-messages/", "\\", "pull-messages?",
    "pull-messages?x=/v1/control/list-runs", "%70ull-messages", "pull%2dmessages", "pull-messages#x",
    "pull-messages%20", "%0d%0aX:y", "\u00e9",
]  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(PIECES), max_size=7), st.booleans())
def test_no_other_way_of_writing_a_path_reaches_the_superlink(door, pieces, under_fleet):
    recorder, say = door
    target = ("/v1/fleet/" if under_fleet else "/") + "/".join(pieces)
    recorder.requests.clear()
    status, _ = say(post(target))
    path = target.partition("#")[0].removesuffix("?")
    if path in gate.NODE_API:  # with a fragment or an empty query, it passes without it or not at all
        assert {request[:2] for request in recorder.requests} <= {("POST", path)}
        assert recorder.requests or path != target
    else:
        assert recorder.requests == [], target
        assert status == 0 or status >= 400


@pytest.mark.parametrize(
    "method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT", "post"]
)
def test_no_other_method_reaches_it(door, method):
    recorder, say = door
    recorder.requests.clear()
    status, _ = say(post("/v1/fleet/pull-messages", method=method))
    assert recorder.requests == []
    assert status == 0 or status >= 400


SMUGGLED = post("/v1/control/start-run", b"evil")


@pytest.mark.parametrize(
    "raw",
    [
        post("/v1/fleet/pull-messages", b"0\r\n\r\n" + SMUGGLED, "Transfer-Encoding: chunked",
             "Content-Length: 5"),
        post("/v1/fleet/pull-messages", SMUGGLED, "Content-Length: 0"),
        post("/v1/fleet/pull-messages", SMUGGLED, "Content-Length: 0", f"Content-Length: {len(SMUGGLED)}"),
        post("/v1/fleet/pull-messages", b"0\r\n\r\n" + SMUGGLED, "Transfer-Encoding: xchunked"),
        post("https://localhost/v1/control/start-run", b"x"),
        post("/v1/fleet/pull-messages", b"x", "X-Original-URL: /v1/control/start-run",
             "X-Rewrite-URL: /docs"),
        post("/v1/fleet/pull-messages", b"", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk",
             "Connection: Upgrade"),
        post("/v1/control/start-run", b"", "Upgrade: websocket", "Sec-WebSocket-Version: 13",
             "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Connection: Upgrade", method="GET"),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"POST /v1/fleet/pull-messages\r\n\r\n",
    ],
)  # fmt: skip
def test_nothing_is_smuggled_in(door, raw):
    recorder, say = door
    recorder.requests.clear()
    say(raw)
    assert {target for _, target, _, _ in recorder.requests} <= {"/v1/fleet/pull-messages"}
    assert all(
        b"evil" not in body or target == "/v1/fleet/pull-messages" for _, target, _, body in recorder.requests
    )
    assert len(recorder.requests) <= 1


def test_a_request_without_end_is_refused(door):
    recorder, say = door
    for headers, body in (
        ([], bytes(gate.LARGEST_REQUEST + 1)),
        (
            ["Transfer-Encoding: chunked"],
            b"1000000\r\n" + bytes(1 << 24) + b"\r\n10\r\n" + bytes(16) + b"\r\n0\r\n\r\n",
        ),
    ):
        recorder.requests.clear()
        status, _ = say(post("/v1/fleet/push-object", body, *headers))
        assert status in (0, 413)
        assert all(len(received) <= gate.LARGEST_REQUEST for *_, received in recorder.requests)


@pytest.mark.parametrize("which", DOORS)
def test_while_the_superlink_is_down_nodes_are_told_to_try_again(tmp_path, which, superlink):
    _, keys, _ = superlink
    (nobody,) = free_ports(1)
    with opened(which, tmp_path / "door", keys, nobody) as port:
        assert ask(port, keys, post("/v1/fleet/pull-messages"))[0] in (502, 503, 504)  # Flower retries these


@pytest.mark.parametrize("which", DOORS)
def test_the_way_to_the_superlink_trusts_its_own_ca_only(tmp_path, which, superlink):
    """Another process that took the SuperLink's port on the server gets none of the nodes' messages."""
    recorder, _, superlink_port = superlink
    other = make_credentials(tmp_path / "other", nodes=1)
    recorder.requests.clear()
    with opened(which, tmp_path / "door", other, superlink_port) as port:
        assert ask(port, other, post("/v1/fleet/pull-messages", b"secret"))[0] == 502
    assert recorder.requests == []


def test_nginx_and_the_gate_have_the_same_list():
    calls = re.search(r'\$request_uri ~ "\^/v1/fleet/\(([a-z|-]+)\)\$"', NGINX.read_text())[1]
    assert tuple(f"/v1/fleet/{call}" for call in calls.split("|")) == gate.NODE_API
    assert f"client_max_body_size    {gate.LARGEST_REQUEST >> 20}m;" in NGINX.read_text()
