"""ASGI middleware around every request: its id, the limits on its body, its log line, and unexpected errors.

Bodies are held in memory, so only those of clients who may send requests are read; the others are answered at once.
Clients whose requests are refused again and again are slowed down here (`refusal_pace.py`).
"""

import asyncio
import re
import time
import uuid
from collections.abc import Callable, Mapping

from fastapi.responses import JSONResponse

from fastmem.serve.asgi import Asgi, Message, Receive, Scope, Send, header
from fastmem.serve.http_errors import error_response
from fastmem.serve.refusal_pace import RefusalPace
from fastmem.serve.responses import error_object
from fastmem.serve.tenants import Tenant

# Statuses by which a request is refused for what it is. Not 429 and 499: a full queue, and a client that has left.
REFUSALS = {400, 401, 403, 404, 405, 409, 413, 415, 422}
# A request may have waited for others before it was refused.
LONGEST_CHARGE_SECONDS = 0.5


class RequestMiddleware:
    """refusal_of: the response to a request that is refused for its headers, otherwise None. sender_of: who sends a
    request, for `app` in its state; if None, as for a key that is not accepted, `app` gets it without its body.
    body_bytes, body_seconds: the largest body, and how long a client may take to send it. pace, client_of: how clients
    are slowed down, and who they are (None: not at all), once `sender` is in the state. on_response: called with
    method, path, status, request id and seconds of every request, when its response is complete."""

    def __init__(
        self,
        app: Asgi,
        refusal_of: Callable[[Scope], Asgi | None],
        sender_of: Callable[[Scope], Tenant | None],
        body_bytes: int,
        body_seconds: float,
        pace: RefusalPace,
        client_of: Callable[[Scope], str | None],
        on_response: Callable[[str, str, int, str, float], None],
    ):
        self.app, self.body_bytes, self.body_seconds, self.on_response = app, body_bytes, body_seconds, on_response
        self.refusal_of, self.sender_of, self.pace, self.client_of = refusal_of, sender_of, pace, client_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = header(scope, b"x-request-id")
        request_id = given if re.fullmatch(r"[A-Za-z0-9._-]{1,128}", given) else f"req-{uuid.uuid4().hex}"
        sender = self.sender_of(scope)
        scope.setdefault("state", {}).update(request_id=request_id, sender=sender)
        status, began, closing = 0, time.perf_counter(), False

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                added = [(b"x-request-id", request_id.encode()), *([(b"connection", b"close")] if closing else [])]
                message["headers"] = [*message.get("headers", []), *added]
            await send(message)

        client = self.client_of(scope)
        wait = self.pace.wait(client)
        reserved = self.pace.begin(client)
        handled = 0.0
        try:
            if wait is None:
                text = "too many requests of this client were refused: correct them, and try again in 10 s."
                await _refused(429, text, "too_many_refused", {"retry-after": "10"})(scope, receive, send_with_id)
                return
            await asyncio.sleep(wait)
            refusal, body = self.refusal_of(scope), b""
            if refusal is None and sender is not None:
                try:
                    read = await asyncio.wait_for(self._body(scope, receive), self.body_seconds)
                except TimeoutError:
                    text = f"the body did not arrive within {self.body_seconds:g} s: send it faster."
                    await _refused(408, text, "body_too_slow")(scope, receive, send_with_id)
                    return
                if read is None:
                    text = f"the request is larger than {self.body_bytes} bytes, the most this server accepts."
                    await _refused(413, text, "body_too_large")(scope, receive, send_with_id)
                    return
                body = read
            else:
                closing = _has_body(scope)
            unread: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

            async def receive_body_first() -> Message:
                return unread.pop() if unread else await receive()

            handled = time.perf_counter()
            try:
                await (refusal or self.app)(scope, receive_body_first, send_with_id)
            except Exception as error:  # a bug; without this the response would have no id
                if status:
                    raise
                await error_response(error, request_id)(scope, receive, send_with_id)
        finally:
            took = time.perf_counter() - handled if handled and status in REFUSALS else 0.0
            self.pace.end(client, reserved, min(took, LONGEST_CHARGE_SECONDS))
            path = scope["path"].removeprefix(scope.get("root_path", ""))
            self.on_response(scope["method"], path, status, request_id, time.perf_counter() - began)

    async def _body(self, scope: Scope, receive: Receive) -> bytes | None:
        """The whole body; None if it is too large, in which case no more than the limit is read."""
        announced = header(scope, b"content-length") or "0"
        if not announced.isdigit() or int(announced) > self.body_bytes:
            return None
        parts, size = [], 0
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return b""
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self.body_bytes:
                return None
            if not message.get("more_body"):
                return b"".join(parts)


def _has_body(scope: Scope) -> bool:
    return header(scope, b"content-length") not in ("", "0") or header(scope, b"transfer-encoding") != ""


def _refused(status: int, text: str, code: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """A refusal after which the connection is closed, since the rest of the body is not read."""
    kind = "rate_limit_error" if status == 429 else "invalid_request_error"
    return JSONResponse(error_object(text, kind, code=code), status, {"connection": "close", **(headers or {})})
