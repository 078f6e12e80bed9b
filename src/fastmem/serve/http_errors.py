"""Errors as HTTP responses in OpenAI's form."""

import logging

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from fastmem.errors import FastMemError, InputError, MemoryFileError, ResourceError, StorageError, StorageReadError
from fastmem.serve.jobs import DrainingError, OverloadedError
from fastmem.serve.logs import cause
from fastmem.serve.responses import error_object
from fastmem.serve.tenants import QuotaError
from fastmem.serve.vllm_client import VllmRefusedError, VllmUnavailableError

log = logging.getLogger("fastmem")


class HttpRefusal(Exception):  # noqa: N818 - an HTTP response, not an error of ours
    """Answer with this status and message. An `InputError` is enough for status 400."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code


def install_error_handlers(app: FastAPI) -> None:
    """Answer every error in OpenAI's form."""

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        param = ".".join(str(part) for part in first["loc"] if part != "body") or None
        if first["type"] == "extra_forbidden" and param in ("tools", "functions"):
            text, code = f"this server calls no tools: leave {param!r} out.", "unknown_field"
        elif first["type"] == "extra_forbidden":
            text, code = f"unknown field {param!r}: this server does not accept it. Leave it out.", "unknown_field"
        elif first["type"] == "json_invalid":
            text, code, param = "the body is not JSON.", "invalid_json", None
        elif first["type"] == "model_attributes_type" and param is None:
            text, code = "the body is no JSON object: send one with Content-Type: application/json.", "invalid_json"
        elif first["type"] == "model_attributes_type":
            example = ', such as {"text": "..."}' if (param or "").startswith("documents.") else ""
            text, code = f"{param} is no object: give a JSON object{example}.", "invalid_value"
        else:
            text, code = f"{param}: {first['msg']}.", "invalid_value"
        return JSONResponse(error_object(text, "invalid_request_error", param, code), 400)

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        text = f"{request.method} {request.url.path}: {error.detail}."
        return JSONResponse(error_object(text, "invalid_request_error"), error.status_code, error.headers)

    @app.exception_handler(HttpRefusal)
    @app.exception_handler(FastMemError)
    async def _failed(request: Request, error: Exception) -> JSONResponse:
        return error_response(error, request.state.request_id)


def error_response(error: Exception, request_id: str) -> JSONResponse:
    """The response to a request that failed. The text of a bug goes to the log, not to the client."""
    if isinstance(error, HttpRefusal):
        kind = "authentication_error" if error.status == 401 else "invalid_request_error"
        return JSONResponse(error_object(error.message, kind, error.param, error.code), error.status)
    if isinstance(error, OverloadedError):
        headers = {"retry-after": str(error.retry_after_seconds)}
        return JSONResponse(error_object(error.text, "rate_limit_error", code="overloaded"), 429, headers)
    if isinstance(error, QuotaError):
        headers = {"retry-after": str(error.retry_after_seconds)}
        return JSONResponse(error_object(error.text, "rate_limit_error", code="quota_exceeded"), 429, headers)
    if isinstance(error, DrainingError):
        return JSONResponse(error_object(error.text, "server_error", code="shutting_down"), 503, {"retry-after": "5"})
    if isinstance(error, VllmUnavailableError | VllmRefusedError):
        log.warning("vLLM failed: %s", error.detail, extra={"fields": {"request_id": request_id}})
        if isinstance(error, VllmRefusedError):
            return JSONResponse(error_object(error.text, "server_error", code="vllm_refused"), 502)
        headers = {"retry-after": str(error.retry_after_seconds)}
        return JSONResponse(error_object(error.text, "server_error", code="vllm_unavailable"), 503, headers)
    if isinstance(error, InputError):
        return JSONResponse(error_object(error.text, "invalid_request_error", error.field, "invalid_value"), 400)
    if isinstance(error, MemoryFileError):
        log.warning("a memory could not be read: %s", cause(error), extra={"fields": {"request_id": request_id}})
        text = "the memory could not be read from the store: make it again with POST /v1/memories."
        return JSONResponse(error_object(text, "invalid_request_error", "model", "memory_damaged"), 404)
    if isinstance(error, StorageError):
        unread = isinstance(error, StorageReadError)
        status, code = (503, "storage_unavailable") if unread else (507, "storage_full")
        return JSONResponse(error_object(error.text, "server_error", code=code), status, {"retry-after": "30"})
    if isinstance(error, FastMemError):
        log.warning("a request failed: %s", cause(error), extra={"fields": {"request_id": request_id}})
        memory = isinstance(error, ResourceError)
        status, code = (503, "out_of_memory") if memory else (500, type(error).__name__)
        return JSONResponse(error_object(error.text, "server_error", code=code), status)
    log.error("a request failed: %s", cause(error), extra={"fields": {"request_id": request_id}})
    return JSONResponse(error_object(f"internal error; the log has it under {request_id}.", "server_error"), 500)
