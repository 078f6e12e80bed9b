"""The ASGI application: the service, its routes, and their authorization."""

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response

import fastmem
from fastmem.model import FastMem
from fastmem.serve import completion_routes, memory_routes
from fastmem.serve.engine import Engine, EngineLimits
from fastmem.serve.http_errors import install_error_handlers
from fastmem.serve.limits import Limits
from fastmem.serve.metrics import Metrics, StoreCollector
from fastmem.serve.middleware import RequestMiddleware
from fastmem.serve.responses import model_object
from fastmem.serve.schemas import Template
from fastmem.serve.service import Service, service_of
from fastmem.serve.store import Budget, Store

PAGE = Path(__file__).parent / "page.html"


def create_app(
    llm: FastMem,
    *,
    budget: Budget | None = None,
    folder: Path | None = None,
    limits: Limits | None = None,
    engine_limits: EngineLimits | None = None,
    api_keys: Sequence[str] = (),
    template: Template = "context",
    name: str | None = None,
) -> FastAPI:
    """The application for a loaded model. Its worker starts at once and ends with the application's lifespan.

    folder: where memories are stored; None keeps them in RAM only. api_keys: the accepted keys; none accepts every
    client. template: how documents enter a prompt, unless the request says. name: the model name for clients. Errors:
    `InputError` for a budget that is too small for one memory.
    """
    metrics = Metrics()
    store = Store(llm, budget, folder)
    engine = Engine(llm, store, engine_limits, metrics.count_engine_event)
    metrics.registry.register(StoreCollector(engine, store))
    limits = limits or Limits()
    service = Service(
        llm=llm,
        store=store,
        engine=engine,
        metrics=metrics,
        name=name or llm.name,
        started=int(time.time()),
        limits=limits,
        api_keys=tuple(api_keys),
        template=template,
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        engine.close()

    app = FastAPI(title="FastMem", version=fastmem.__version__, lifespan=lifespan, openapi_url=None)
    app.state.service = service
    guarded = [Depends(_authorized)]
    app.include_router(completion_routes.router, dependencies=guarded)
    app.include_router(memory_routes.router, dependencies=guarded)
    app.add_api_route("/v1/models", _models, dependencies=guarded)
    app.add_api_route("/v1/models/{model:path}", _model, dependencies=guarded)
    app.add_api_route("/health", _health, response_model=None)
    app.add_api_route("/version", _version)
    app.add_api_route("/metrics", _metrics, response_model=None)
    app.add_api_route("/", _page, response_model=None)
    install_error_handlers(app)
    routes = {"/", "/health", "/version", "/metrics", "/v1/chat/completions", "/v1/completions", "/v1/memories"}

    def on_response(method: str, path: str, status: int) -> None:
        known = path if path in routes else "/v1/models" if path.startswith("/v1/models") else None
        known = known or ("/v1/memories/..." if path.startswith("/v1/memories/") else "other")
        metrics.responses.labels(f"{method if known != 'other' else ''} {known}".strip(), status).inc()

    app.add_middleware(RequestMiddleware, body_bytes=limits.body_bytes, on_response=on_response)
    return app


async def _authorized(request: Request) -> None:
    service_of(request).authorize(request)


async def _models(request: Request, cache_salt: str | None = None) -> dict[str, Any]:
    """The base model and the caller's memories."""
    service = service_of(request)
    entries = service.store.of_tenant(service.tenant(request, cache_salt))
    data = [model_object(service.name, service.started)] + [_memory_model(service, e.record) for e in entries]
    return {"object": "list", "data": data}


async def _model(model: str, request: Request, cache_salt: str | None = None) -> dict[str, Any]:
    service = service_of(request)
    entry = service.memory_of_model(service.tenant(request, cache_salt), model)
    return model_object(service.name, service.started) if entry is None else _memory_model(service, entry.record)


def _memory_model(service: Service, record: dict[str, Any]) -> dict[str, Any]:
    name = record["name"] or record["id"]
    return model_object(name, record["created"], parent=service.name, root=record["id"])


async def _health(request: Request) -> Response:
    """200 while the worker accepts requests, otherwise 503."""
    alive = service_of(request).engine.alive
    return JSONResponse({"status": "ok" if alive else "unavailable"}, 200 if alive else 503)


async def _version() -> dict[str, str]:
    return {"version": fastmem.__version__}


async def _metrics(request: Request) -> Response:
    return Response(service_of(request).metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def _page() -> Response:
    """The page for the browser. Its policy forbids the browser to load anything from another server."""
    policy = (
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:"
    )
    headers = {
        "content-security-policy": policy,
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
    }
    return HTMLResponse(PAGE.read_text(encoding="utf-8"), headers=headers)
