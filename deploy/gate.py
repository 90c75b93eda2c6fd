"""The only door from a fleet's network to the SuperLink: the calls of a SuperNode, and no others.

Flower serves three interfaces on one port: that of the nodes (``/v1/fleet``), that of the operator
(``/v1/control``: register a key, run an app, read logs) and that of the ServerApp (``/v1/runtime``). Keys of
SuperNodes guard the first one only; whoever reaches the port can use the others. The SuperLink therefore
listens on loopback, and the gate in front of it passes on what stands in `NODE_API`: POST to exactly these
paths, without a query. What it sends on is a new request: the path is the one in the list, the headers are
those in `_PASSED`, so that nothing which the two sides might read differently gets through.

``deploy/nginx/airflower.conf`` does the same with nginx; a test holds the two lists together. Registering
and unregistering is not among the calls: with keys it is the operator who does it.
"""

from __future__ import annotations

import argparse
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Mount

NODE_API = tuple(
    f"/v1/fleet/{call}"
    for call in (
        "activate-node",
        "confirm-message-received",
        "deactivate-node",
        "get-fab",
        "get-run",
        "pull-messages",
        "pull-object",
        "push-messages",
        "push-object",
        "send-node-heartbeat",
    )
)

# Flower sends arrays in pieces of 5 MiB; the rest of a request is small.
LARGEST_REQUEST = 16 << 20
_SECONDS = 60.0
_MOST_REQUESTS = 1000  # at once; more are told to come back
_PASSED = frozenset({b"accept", b"content-type"})
_PASSED_PREFIX = b"flwr-"  # signature, public key, time stamp, version

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


@dataclass(frozen=True)
class GateOptions:
    """Where the gate listens and where it leads.

    Attributes:
        host, port: where the nodes reach it.
        superlink: host:port of the SuperLink; its certificate must name that host.
        certificate, key: what the gate shows to nodes.
        ca_certificate: what it trusts of the SuperLink.
    """

    host: str
    port: int
    superlink: str
    certificate: Path
    key: Path
    ca_certificate: Path


def node_api(options: GateOptions) -> Starlette:
    """Return the gate as an ASGI application."""
    clients: list[httpx.AsyncClient] = []

    @asynccontextmanager
    async def connected(_: Starlette) -> AsyncIterator[None]:
        trust = ssl.create_default_context(cafile=str(options.ca_certificate))
        async with httpx.AsyncClient(
            base_url=f"https://{options.superlink}",
            verify=trust,
            timeout=_SECONDS,
            trust_env=False,  # no proxy, whatever the environment says
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=100),
        ) as client:
            clients.append(client)
            yield
            clients.clear()

    async def answer(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # a WebSocket: nobody answers, which refuses it
            return
        response = await _passed_on(clients[0], Request(scope, receive))
        await response(scope, receive, send)

    return Starlette(routes=[Mount("/", app=answer)], lifespan=connected)


def serve(options: GateOptions) -> None:
    """Serve until the process is told to end."""
    uvicorn.run(
        node_api(options),
        host=options.host,
        port=options.port,
        ssl_certfile=str(options.certificate),
        ssl_keyfile=str(options.key),
        access_log=False,
        log_level="warning",
        proxy_headers=False,
        server_header=False,
        limit_concurrency=_MOST_REQUESTS,
    )


def arguments(options: GateOptions) -> list[str]:
    """Return the arguments of `main` that stand for these options."""
    return [
        *("--listen", f"{options.host}:{options.port}", "--superlink", options.superlink),
        *("--ssl-certfile", str(options.certificate), "--ssl-keyfile", str(options.key)),
        *("--root-certificates", str(options.ca_certificate)),
    ]


def main(given: Sequence[str] | None = None) -> int:
    """Serve as the command line says."""
    parser = argparse.ArgumentParser(
        prog="airflower-fleet gate",
        description="Pass the calls of SuperNodes on to a SuperLink that listens on loopback, and no others.",
    )
    parser.add_argument("--listen", default="0.0.0.0:8443", metavar="HOST:PORT", help="(0.0.0.0:8443)")
    parser.add_argument("--superlink", default="localhost:8000", metavar="HOST:PORT", help="(localhost:8000)")
    for option, text in (
        ("--ssl-certfile", "certificate shown to the nodes"),
        ("--ssl-keyfile", "its private key"),
        ("--root-certificates", "the CA of the SuperLink's certificate"),
    ):
        parser.add_argument(option, type=Path, required=True, metavar="FILE", help=text)
    options = parser.parse_args(given)
    host, _, port = options.listen.rpartition(":")
    if not host or not port.isdecimal():
        parser.error(f"--listen {options.listen}: HOST:PORT is expected")
    for path in (options.ssl_certfile, options.ssl_keyfile, options.root_certificates):
        if not path.is_file():
            parser.error(f"{path}: there is no such file")
    serve(
        GateOptions(
            host.strip("[]"),
            int(port),
            options.superlink,
            options.ssl_certfile,
            options.ssl_keyfile,
            options.root_certificates,
        )
    )
    return 0


async def _passed_on(client: httpx.AsyncClient, request: Request) -> Response:
    """Return the SuperLink's answer to a call of the node API, or a refusal."""
    wanted = bytes(request.scope["raw_path"])
    path = next((path for path in NODE_API if path.encode() == wanted), None)
    if path is None or request.method != "POST" or request.scope["query_string"]:
        return refusal(404, "not served here: this port is for SuperNodes with a registered key")
    if int(request.headers.get("content-length", "0")) > LARGEST_REQUEST:
        return refusal(413, f"a request may have {LARGEST_REQUEST} bytes")
    headers = [
        (name, value)
        for name, value in request.headers.raw
        if name in _PASSED or name.startswith(_PASSED_PREFIX)
    ]
    try:
        body = await _body(request)
        reply = await client.send(
            client.build_request("POST", path, headers=headers, content=body), stream=True
        )
    except _TooLarge:
        return refusal(413, f"a request may have {LARGEST_REQUEST} bytes")
    except ClientDisconnect:
        return refusal(400, "the connection broke")
    except httpx.TransportError as error:
        return refusal(502, f"the SuperLink does not answer ({type(error).__name__})")
    return StreamingResponse(
        _until_closed(reply),
        status_code=reply.status_code,
        headers={
            name: value
            for name, value in reply.headers.items()
            if name in ("content-type", "content-length", "retry-after") or name.startswith("flwr-")
        },
    )


class _TooLarge(Exception):
    pass


async def _body(request: Request) -> bytes:
    """Read a request's body; it may come without a length."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > LARGEST_REQUEST:
            raise _TooLarge
    return bytes(body)


async def _until_closed(reply: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for piece in reply.aiter_raw():
            yield piece
    finally:
        await reply.aclose()


def refusal(status: int, reason: str) -> Response:
    """Return an answer that Flower's clients show as a sentence."""
    text = json.dumps({"code": status, "detail": reason})
    return Response(text, status_code=status, media_type="application/json")


if __name__ == "__main__":
    main()
