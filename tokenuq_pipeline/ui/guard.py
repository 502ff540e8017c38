"""The guard of the UI: an ASGI middleware around the whole of Dagster's webserver.

Dagster's webserver has no login, answers every `Host`, and executes mutations by GET from any origin. A middleware sees
what the server has parsed; a proxy in front of it would parse requests a second time, perhaps differently, and Dagster
would listen on a port of its own, without a guard.
"""

from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tokenuq_pipeline.ui.graphql_requests import (
    GRAPHQL_PATH,
    MAX_BODY,
    address_refusal,
    body_refusal,
    message_refusal,
)
from tokenuq_pipeline.ui.hosts import Hosts, Refusal, cross_origin_refusal, query_values
from tokenuq_pipeline.ui.login import Login

POLICY_VIOLATION = 1008
"""The code that closes a WebSocket."""
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "SAMEORIGIN",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Guard:
    """Answers requests of the UI's own pages and of programs, and refuses all others in words.

    Args:
        app: Dagster's webserver.
        hosts: the hosts that it answers for.
        login: asks for a token; None: whoever reaches the port may use the UI.
        endpoints: first parts of the paths that are no pages; other sites may not link to them.
    """

    def __init__(self, app: ASGIApp, hosts: Hosts, login: Login | None, endpoints: Collection[str]) -> None:
        self._app, self._hosts, self._login = app, hosts, login
        self._endpoints = {GRAPHQL_PATH.strip("/"), *(name.lower() for name in endpoints)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer or refuse a request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        guarded = send if scope["type"] == "websocket" else _with_headers(Headers(scope=scope).get("host", ""), send)
        refusal = self._hosts.refusal(scope) or cross_origin_refusal(scope, self._is_page(scope))
        if refusal is None and self._login is not None:
            if (redirect := self._login.redirect(scope)) is not None:
                await redirect(scope, receive, guarded)
                return
            refusal = self._login.refusal(scope)
        if refusal is not None:
            await _refuse(refusal, scope, receive, guarded)
        elif scope["type"] == "websocket":
            await self._app(scope, _reading_messages(receive, send), send)
        elif self._is_graphql(scope):
            await self._graphql(scope, receive, guarded)
        else:
            await self._app(scope, receive, guarded)

    def _is_page(self, scope: Scope) -> bool:
        first = scope["path"].replace("\\", "/").lstrip("/").partition("/")[0]
        return scope["type"] == "http" and first.lower() not in self._endpoints

    @staticmethod
    def _is_graphql(scope: Scope) -> bool:
        return scope["path"].strip("/").lower() == GRAPHQL_PATH.strip("/")

    async def _graphql(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST":
            refusal = address_refusal(list(query_values(scope, "query")))
            await (self._app(scope, receive, send) if refusal is None else _refuse(refusal, scope, receive, send))
            return
        content_type = Headers(scope=scope).get("content-type", "").partition(";")[0].strip().lower()
        if content_type != "application/json":
            await _refuse(Refusal(415, "send GraphQL as `Content-Type: application/json`"), scope, receive, send)
            return
        body = await _body(receive)
        refusal = Refusal(413, f"the body has more than {MAX_BODY} bytes") if body is None else body_refusal(body)
        if refusal is not None:
            await _refuse(refusal, scope, receive, send)
        else:
            await self._app(scope, _replayed(body or b"", receive), send)


async def _refuse(refusal: Refusal, scope: Scope, receive: Receive, send: Send) -> None:
    response: Response = PlainTextResponse(refusal.message + "\n", refusal.status)
    if refusal.status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    if scope["type"] == "http":
        await response(scope, receive, send)
    elif "websocket.http.response" in scope.get("extensions", {}):
        # Before the handshake, so that the reason can be read.
        await receive()
        await response(scope, receive, send)
    else:
        await receive()
        await send({"type": "websocket.close", "code": POLICY_VIOLATION})


async def _body(receive: Receive) -> bytes | None:
    """Return the whole body; None if it is too large, or the client has gone."""
    body = b""
    while len(body) <= MAX_BODY:
        message = await receive()
        if message["type"] != "http.request":
            return None
        body += message.get("body", b"")
        if not message.get("more_body", False):
            return body if len(body) <= MAX_BODY else None
    return None


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives the body once more, then what follows it."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return waiting.pop() if waiting else await receive()

    return replay


def _reading_messages(receive: Receive, send: Send) -> Receive:
    """Return a `receive` that closes the connection at a message that asks for more than to read."""

    async def checked() -> Message:
        message = await receive()
        if message["type"] == "websocket.receive" and (refusal := message_refusal(message)) is not None:
            reason = refusal.message[:120]
            await send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": reason})
            return {"type": "websocket.disconnect", "code": POLICY_VIOLATION, "reason": reason}
        return message

    return checked


def _with_headers(host: str, send: Send) -> Send:
    """Return a `send` that adds headers to the answer: no frames, types or images of others."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers.update(HEADERS)
            # In addition to Dagster's own: of two policies, both must allow. Pictures in Markdown, which may come from
            # data, must not tell another server who reads them.
            headers.append(
                "Content-Security-Policy",
                "frame-ancestors 'self'; form-action 'self'; img-src 'self' data: blob:; media-src 'self' data: blob:; "
                f"frame-src 'self' data: blob:; connect-src 'self' ws://{host} wss://{host} data: blob:",
            )
        await send(message)

    return sending
