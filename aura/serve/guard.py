"""In front of every route: request id, key, origin, body size, a seat among the requests, a line in the log."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import logging
import time
import uuid
from typing import Any
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aura.serve.failures import ApiError
from aura.serve.options import ServeOptions
from aura.serve.scheduler import stopping
from aura.serve.service import Service

logger = logging.getLogger(__name__)

PIECE_SECONDS = 30.0  # between two pieces of a body
BODY_SECONDS = 60.0  # for the whole of it: a body that trickles in holds a seat
DISCARDED = 4  # times the limit is read and thrown away, so that the client reads our 413 and not a broken pipe
SUBPROTOCOL_KEY = "openai-insecure-api-key."  # how browsers, which cannot set headers, send theirs
CLOSED = {401: 4401, 403: 4403, 404: 4404, 429: 4429, 503: 1012}  # close codes where no HTTP answer is possible


class Guard:
    """ASGI middleware; lets through what may come in.

    Args:
        app: what is guarded.
        service: whose limits hold.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app = app
        self.service = service
        self.keys = [key.encode() for key in service.options.api_keys]
        self.hosts = hosts_of(service.options)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        line = _Line(scope, self.service)
        scope["aura_note"] = line.note
        seated = scope["type"] == "http" and scope["method"] == "POST" and scope["path"].startswith("/v1/")
        try:
            self._admit(scope, seated)
        except ApiError as error:
            await _refuse(scope, receive, line.sending(send), error, self.service.options.max_bytes)
            return line.write()
        self.service.in_work += seated
        try:
            limited = self._limited(scope, receive) if scope["type"] == "http" else receive
            await self.app(scope, limited, line.sending(send))
        finally:
            self.service.in_work -= seated
            line.write()

    def _admit(self, scope: Scope, seated: bool) -> None:
        headers: dict[bytes, bytes] = dict(scope["headers"])
        self._check_host(headers)
        self._check_origin(headers)
        if scope["path"].startswith("/v1/") or scope["path"] == "/metrics":
            self._check_key(headers, scope)
        if self.service.draining and (seated or scope["type"] == "websocket"):
            raise stopping()
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self.service.options.max_bytes:
            raise too_large(self.service.options.max_bytes)
        if seated and self.service.in_work >= self.service.options.max_requests:
            raise ApiError(
                429,
                f"{self.service.in_work} requests are in work or waiting, as many as this server takes; try again soon",
                code="queue_full",
                headers=self.service.retry_after(),
            )

    def _check_host(self, headers: dict[bytes, bytes]) -> None:
        """A foreign name that resolves to this machine would make its pages look like ours: DNS rebinding."""
        if self.hosts is not None and _host_name(headers.get(b"host", b"").decode("latin-1")) not in self.hosts:
            raise ApiError(
                403,
                "the server may not be called by this name; expected localhost or 127.0.0.1,"
                " or a host that its operator allows with --cors",
                code="host",
            )

    def _check_origin(self, headers: dict[bytes, bytes]) -> None:
        """Pages of other sites may not use the reader's browser to reach a server on the reader's machine."""
        origin = headers.get(b"origin", b"").decode("latin-1")
        if not origin or origin in self.service.options.cors or "*" in self.service.options.cors:
            return
        if _netloc(origin) != headers.get(b"host", b"").decode("latin-1").lower():
            raise ApiError(
                403,
                "pages of this origin may not call the server; its operator can allow it with --cors",
                code="origin",
            )

    def _check_key(self, headers: dict[bytes, bytes], scope: Scope) -> None:
        if not self.keys:
            return
        kind, _, given = headers.get(b"authorization", b"").partition(b" ")
        if kind.lower() != b"bearer":
            offered = [p for p in scope.get("subprotocols", []) if p.startswith(SUBPROTOCOL_KEY)]
            given = offered[0].removeprefix(SUBPROTOCOL_KEY).encode() if offered else b""
        # All of them, always: the time must not tell which one came close.
        if not any([hmac.compare_digest(given.strip(), key) for key in self.keys]):  # noqa: C419
            raise ApiError(
                401,
                "the API key is missing or wrong; expected a header Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    def _limited(self, scope: Scope, receive: Receive) -> Receive:
        """`receive` that counts a body's bytes and does not wait for ever for the next ones."""
        limit, seen, whole = self.service.options.max_bytes, 0, False
        deadline: float | None = None

        async def counted() -> Message:
            nonlocal seen, whole, deadline
            if whole:
                return await receive()
            deadline = deadline or time.monotonic() + BODY_SECONDS
            try:
                message = await asyncio.wait_for(receive(), min(PIECE_SECONDS, deadline - time.monotonic()))
            except asyncio.TimeoutError as error:
                raise HTTPException(
                    408,
                    f"the body did not come within {BODY_SECONDS:g} s, or nothing of it for {PIECE_SECONDS:g} s;"
                    " send it again",
                ) from error
            seen += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if seen > limit:
                raise HTTPException(413, too_large(limit).message)
            return message

        return counted


class _Line:
    """What will stand in the log about one request."""

    def __init__(self, scope: Scope, service: Service) -> None:
        self.scope = scope
        self.service = service
        self.start = time.monotonic()
        self.status = 0
        self.note: dict[str, Any] = {}
        self.id = f"req_{uuid.uuid4().hex}"

    def sending(self, send: Send) -> Send:
        async def noted(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                self.status = message["status"]
                message = {**message, "headers": [*message["headers"], (b"x-request-id", self.id.encode())]}
            elif message["type"] == "websocket.accept":
                self.status = 101
            await send(message)

        return noted

    def write(self) -> None:
        seconds = time.monotonic() - self.start
        route = getattr(self.scope.get("route"), "path", None) or "other"
        self.service.metrics.requests.labels(route, str(self.status)).inc()
        self.service.metrics.seconds.labels(route).observe(seconds)
        if route.startswith("/v1/") and self.status == 200:
            self.service.finished(seconds)
        fields = {
            "id": self.id,
            "client": (self.scope.get("client") or ("", 0))[0],
            "method": self.scope.get("method", "WS"),
            "path": self.scope["path"][:200],
            "status": self.status,
            "seconds": round(seconds, 4),
            **self.note,
        }
        logger.info("request", extra={"fields": fields})


def too_large(limit: int) -> ApiError:
    return ApiError(413, f"the body is larger than {limit} bytes; send less audio at once", code="too_large")


def hosts_of(options: ServeOptions) -> frozenset[str] | None:
    """Names by which the server may be called; None for any."""
    if "*" in options.cors or not (options.hosts or _is_loopback(options.host)):
        return None
    friends = {_host_name(_netloc(origin)) for origin in options.cors}
    own = {"localhost", "127.0.0.1", "[::1]", _host_name(f"[{options.host}]" if ":" in options.host else options.host)}
    return frozenset({*own, *friends, *map(str.lower, options.hosts)} - {""})


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _host_name(host: str) -> str:
    """`name:port` -> name, `[::1]:port` -> [::1]."""
    name, port = host.lower(), ""
    if not host.endswith("]"):
        name, _, port = name.rpartition(":") if ":" in name else (name, "", "")
    return name if not port or port.isdigit() else ""


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


async def _refuse(scope: Scope, receive: Receive, send: Send, error: ApiError, limit: int) -> None:
    body = json.dumps({"error": error.body()}).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **error.headers}
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    if scope["type"] == "websocket":
        if "websocket.http.response" not in scope.get("extensions", {}):
            return await send({"type": "websocket.close", "code": CLOSED.get(error.status, 1008)})
        kind = "websocket.http.response"
    else:
        kind = "http.response"
        await _discard(receive, DISCARDED * limit)
    await send({"type": f"{kind}.start", "status": error.status, "headers": raw})
    await send({"type": f"{kind}.body", "body": body})


async def _discard(receive: Receive, limit: int) -> None:
    seen, more = 0, True
    try:
        while more and seen < limit:
            message = await asyncio.wait_for(receive(), 2.0)
            seen += len(message.get("body", b""))
            more = message.get("more_body", False)
    except asyncio.TimeoutError:
        return
