"""ASGI middleware around every request: its id, the limit on its body, and a response to unexpected errors."""

import re
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from fastapi.responses import JSONResponse

from fastmem.serve.http_errors import error_response
from fastmem.serve.responses import error_object

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class RequestMiddleware:
    """on_response: called with method, path and status of every response."""

    def __init__(self, app: Any, body_bytes: int, on_response: Callable[[str, str, int], None]):
        self.app, self.body_bytes, self.on_response = app, body_bytes, on_response

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        request_id = given if re.fullmatch(r"[A-Za-z0-9._-]{1,128}", given) else f"req-{uuid.uuid4().hex}"
        scope.setdefault("state", {})["request_id"] = request_id

        started = False

        async def send_with_id(message: MutableMapping[str, Any]) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message.get("headers", []), (b"x-request-id", request_id.encode())]
                self.on_response(scope["method"], scope["path"], message["status"])
            await send(message)

        body = await self._body(headers, receive)
        if body is None:
            text = f"the request is larger than {self.body_bytes} bytes, the most this server accepts."
            refusal = JSONResponse(error_object(text, "invalid_request_error", code="body_too_large"), 413)
            await refusal(scope, receive, send_with_id)
            return
        unread = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive_body_first() -> MutableMapping[str, Any]:
            return unread.pop() if unread else await receive()

        try:
            await self.app(scope, receive_body_first, send_with_id)
        except Exception as error:  # a bug; without this the response would have no id
            if started:
                raise
            await error_response(error, request_id)(scope, receive, send_with_id)

    async def _body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes | None:
        """The whole body; None if it is too large, in which case no more than the limit is read."""
        announced = headers.get(b"content-length", b"0")
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
