"""Around every request: its id, the limit on its body, and errors in OpenAI's form."""

import logging
import re
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from fastmem.errors import FastMemError, InputError, ResourceError
from fastmem.serve.jobs import DrainingError, OverloadedError
from fastmem.serve.replies import error_object

log = logging.getLogger("fastmem")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Refusal(Exception):  # noqa: N818 - an HTTP answer, not an error of ours
    """Leave with this status and text."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code


class Door:
    """ASGI middleware. on_response: called with method, path and status of every answer."""

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

        begun = False

        async def answer(message: MutableMapping[str, Any]) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                message["headers"] = [*message.get("headers", []), (b"x-request-id", request_id.encode())]
                self.on_response(scope["method"], scope["path"], message["status"])
            await send(message)

        body = await self._body(headers, receive)
        if body is None:
            text = f"the request is larger than {self.body_bytes} bytes, which is all this server takes."
            refusal = JSONResponse(error_object(text, "invalid_request_error", code="body_too_large"), 413)
            await refusal(scope, receive, answer)
            return
        first = True

        async def once() -> MutableMapping[str, Any]:
            nonlocal first
            if first:
                first = False
                return {"type": "http.request", "body": body, "more_body": False}
            return await receive()

        try:
            await self.app(scope, once, answer)
        except Exception as error:  # a bug; outside of here the answer would lack its id
            if begun:
                raise
            await failure(error, request_id)(scope, receive, answer)

    async def _body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes | None:
        """The whole body; None where it is too large, without having read more than the limit."""
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


def answer_errors(app: FastAPI) -> None:
    """Whatever goes wrong is answered in OpenAI's form."""

    @app.exception_handler(Refusal)
    async def _refused(request: Request, error: Refusal) -> JSONResponse:
        kind = "authentication_error" if error.status == 401 else "invalid_request_error"
        return JSONResponse(error_object(error.message, kind, error.param, error.code), error.status)

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        found = error.errors()[0]
        param = ".".join(str(part) for part in found["loc"] if part != "body") or None
        if found["type"] == "extra_forbidden":
            text, code = f"unknown field {param!r}: this server does not take it. Leave it out.", "unknown_field"
        elif found["type"] == "json_invalid":
            text, code, param = "the body is not JSON.", "invalid_json", None
        else:
            text, code = f"{param}: {found['msg']}.", "invalid_value"
        return JSONResponse(error_object(text, "invalid_request_error", param, code), 400)

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        text = f"{request.method} {request.url.path}: {error.detail}."
        return JSONResponse(error_object(text, "invalid_request_error"), error.status_code, error.headers)

    @app.exception_handler(FastMemError)
    async def _failed(request: Request, error: FastMemError) -> JSONResponse:
        return failure(error, request.state.request_id)


def failure(error: Exception, request_id: str) -> JSONResponse:
    """The answer to a request that failed. What a bug says goes to the log, not to the client."""
    if isinstance(error, Refusal):
        return JSONResponse(
            error_object(error.message, "invalid_request_error", error.param, error.code), error.status
        )
    if isinstance(error, OverloadedError):
        headers = {"retry-after": str(error.retry_after_seconds)}
        return JSONResponse(error_object(str(error), "rate_limit_error", code="overloaded"), 429, headers)
    if isinstance(error, DrainingError):
        return JSONResponse(error_object(str(error), "server_error", code="shutting_down"), 503, {"retry-after": "5"})
    if isinstance(error, InputError):
        return JSONResponse(error_object(str(error), "invalid_request_error", code="invalid_value"), 400)
    if isinstance(error, ResourceError):
        log.warning("%s: %s", request_id, error)
        return JSONResponse(error_object(str(error), "server_error", code="out_of_memory"), 503)
    if isinstance(error, FastMemError):
        log.warning("%s: %s", request_id, error)
        return JSONResponse(error_object(str(error), "server_error", code=type(error).__name__), 500)
    log.error("%s failed", request_id, exc_info=error)
    return JSONResponse(error_object(f"internal error; the log has it under {request_id}.", "server_error"), 500)
