"""The ASGI application: the service, its routes, and their authorization."""

import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, Response

import fastmem
from fastmem.model import FastMem
from fastmem.serve import completion_routes, memory_routes, responses_route, tokenize_route
from fastmem.serve.allowed_hosts import LOCAL_HOSTS, AllowedHosts
from fastmem.serve.asgi import Scope
from fastmem.serve.docs_page import docs_page
from fastmem.serve.engine import Engine, EngineLimits
from fastmem.serve.http_errors import install_error_handlers
from fastmem.serve.limits import Limits
from fastmem.serve.memory_source import check_adapter
from fastmem.serve.metrics import Metrics, StoreCollector
from fastmem.serve.middleware import RequestMiddleware
from fastmem.serve.refusal_pace import RefusalPace
from fastmem.serve.responses import model_object
from fastmem.serve.schemas import Template
from fastmem.serve.service import Service, service_of
from fastmem.serve.store import Budget, Store
from fastmem.serve.tenants import Keys, Tenant, bearer_key, check_key
from fastmem.serve.text_thread import TextThread
from fastmem.serve.vllm_answers import VllmAnswers, VllmOptions
from fastmem.tiny.world import shown_examples

access = logging.getLogger("fastmem.access")
HERE = Path(__file__).parent
PAGE_FILES = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
_PAGE = {name: (HERE / name).read_text(encoding="utf-8") for name, _ in PAGE_FILES.values()}
# The browser loads nothing from another server, runs no script from inside the page, and shows the page in no frame.
PAGE_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    ),
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


def create_app(
    llm: FastMem,
    *,
    budget: Budget | None = None,
    folder: Path | None = None,
    limits: Limits | None = None,
    engine_limits: EngineLimits | None = None,
    api_keys: Sequence[str] = (),
    keys_file: Path | None = None,
    admin_key: str | None = None,
    allowed_hosts: Sequence[str] = LOCAL_HOSTS,
    allowed_origins: Sequence[str] = (),
    template: Template = "context",
    name: str | None = None,
    aliases: Sequence[str] = (),
    vllm: VllmOptions | None = None,
) -> FastAPI:
    """The application for a loaded model. Its worker starts at once and ends with the application's lifespan.

    folder: where memories are stored; None keeps them in RAM only. api_keys: the accepted keys; none accepts every
    client. keys_file: a file of tenants with their keys and limits, see `tenants.py`. admin_key: what `/metrics`
    needs; without one it is refused where there are API keys, and open where there are none. allowed_hosts,
    allowed_origins: see `allowed_hosts.py`; pages of these origins may also read responses (CORS). template: how
    documents enter a prompt, unless the request says. name, aliases: names of the model for clients. vllm: where
    answers are written instead of here; the model's recipe must then be low-rank. Errors:
    `InputError` for an empty key or a budget that is too small for one memory, `StorageError` for a folder that cannot
    be used.
    """
    llm.split_model.require_decoder_only("the server")
    if admin_key is not None:
        check_key("admin_key", admin_key)
    limits, engine_limits = limits or Limits(), engine_limits or EngineLimits()
    # More answers would never find room, and their client would be told to try again.
    limits = replace(limits, answers=min(limits.answers, engine_limits.rows + engine_limits.waiting))
    if vllm is not None:
        limits = replace(limits, adapter_rank=llm.recipe.rank)
        check_adapter(llm.recipe, limits)
    keys, metrics = Keys(api_keys, keys_file), Metrics()
    with ExitStack() as on_error:  # an application that is refused leaves no thread and no lock
        store = Store(llm, budget, folder)
        on_error.callback(store.close)
        engine = Engine(llm, store, engine_limits, metrics.count_engine_event)
        on_error.callback(engine.close)
        writers = None
        if vllm is not None:
            writers = VllmAnswers(engine, vllm, metrics.count_engine_event)
            on_error.callback(writers.folder.close)
        metrics.registry.register(StoreCollector(engine, store, writers))
        service = Service(
            llm=llm,
            store=store,
            engine=engine,
            metrics=metrics,
            text=TextThread(llm),
            name=name or llm.name,
            aliases=tuple(aliases),
            started=int(time.time()),
            limits=limits,
            keys=keys,
            admin_key=admin_key,
            template=template,
            vllm=writers,
        )
        app = _application(service, allowed_hosts, allowed_origins)
        on_error.pop_all()
    return app


def _application(service: Service, allowed_hosts: Sequence[str], allowed_origins: Sequence[str]) -> FastAPI:
    """The routes of a service, and its end."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        if service.vllm is not None:
            await service.vllm.close()
        service.engine.close(timeout_seconds=service.limits.shutdown_seconds)
        service.text.close()

    app = FastAPI(title="FastMem", version=fastmem.__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.service = service
    guarded = [Depends(_authorized)]
    app.include_router(completion_routes.router, dependencies=guarded)
    app.include_router(responses_route.router, dependencies=guarded)
    app.include_router(memory_routes.router, dependencies=guarded)
    app.include_router(tokenize_route.router, dependencies=guarded)
    app.add_api_route("/v1/models", _models, dependencies=guarded)
    app.add_api_route("/v1/models/{model:path}", _model, dependencies=guarded)
    open_to_all: dict[str, Any] = {
        "/health": _health,
        "/ping": _health,
        "/version": _version,
        "/metrics": _metrics,
        "/examples": _examples,
    }
    for path, answer in (open_to_all | dict.fromkeys(PAGE_FILES, _page) | {"/docs": _docs}).items():
        app.add_api_route(path, answer, response_model=None, include_in_schema=path in open_to_all)
        app.add_api_route(path, answer, response_model=None, methods=["HEAD"], include_in_schema=False)
    install_error_handlers(app)
    if allowed_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(allowed_origins), allow_methods=["*"], allow_headers=["*"]
        )
    app.add_middleware(
        RequestMiddleware,
        refusal_of=AllowedHosts(allowed_hosts, allowed_origins).refusal,
        sender_of=partial(_sender_of, service.keys),
        body_bytes=service.limits.body_bytes,
        body_seconds=service.limits.body_seconds,
        pace=RefusalPace(service.limits.refused_share),
        client_of=partial(_client_of, service.keys),
        on_response=partial(_on_response, service.metrics),
    )
    return app


_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
_ROUTES = {
    "/health",
    "/ping",
    "/tokenize",
    "/version",
    "/metrics",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/memories",
    "/docs",
    *PAGE_FILES,
}


def _on_response(metrics: Metrics, method: str, path: str, status: int, request_id: str, seconds: float) -> None:
    """Count a response and write its line to the log. Names in a path are left out of both."""
    known = path if path in _ROUTES else "/v1/models" if path.startswith("/v1/models") else None
    known = known or ("/v1/memories/..." if path.startswith("/v1/memories/") else "other")
    method = method if method in _METHODS else "OTHER"
    metrics.responses.labels(f"{method if known != 'other' else ''} {known}".strip(), status).inc()
    fields = {"method": method, "path": known, "status": status, "seconds": round(seconds, 3)}
    access.info("request", extra={"fields": {"request_id": request_id} | fields})


def _sender_of(keys: Keys, scope: Scope) -> Tenant | None:
    return keys.tenant(bearer_key(Request(scope)))


def _client_of(keys: Keys, scope: Scope) -> str | None:
    """Whose refusals are counted together: a tenant's, or an address's where no key is accepted or needed. None for
    the checks of health, which never wait."""
    if scope["path"].removeprefix(scope.get("root_path", "")) in ("/health", "/ping"):
        return None
    tenant = scope["state"]["sender"] if keys.needed else None
    return tenant.salted(None) if tenant is not None else f"address {(scope.get('client') or ('unknown',))[0]}"


async def _authorized(request: Request) -> None:
    service_of(request).sender(request)


async def _models(
    request: Request, cache_salt: str | None = None, limit: memory_routes.Limit = 1000, after: str | None = None
) -> dict[str, Any]:
    """The base model and a page of the caller's memories, as in `GET /v1/memories`."""
    service = service_of(request)
    entries, _ = memory_routes.page_of(service.store.of_tenant(service.tenant(request, cache_salt)), limit, after)
    data = [model_object(one, service.started) for one in (service.name, *service.aliases)] + [
        _memory_model(service, e.record) for e in entries
    ]
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
    service_of(request).authorize_administrator(request)
    return Response(service_of(request).metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def _examples(request: Request) -> Response:
    """Documents that contradict what the embedded model knows, for the page; none for other models."""
    rows = shown_examples("test") if service_of(request).llm.name == "fastmem-tiny" else ()
    return JSONResponse([{"document": row.context, "question": row.question} for row in rows])


async def _docs(request: Request) -> Response:
    """The routes, as /openapi.json describes them."""
    return Response(docs_page(request.app.openapi()), media_type="text/html", headers=PAGE_HEADERS)


async def _page(request: Request) -> Response:
    """The page for the browser, and its style and script."""
    name, media_type = PAGE_FILES[request.scope["route"].path]
    return Response(_PAGE[name], media_type=media_type, headers=PAGE_HEADERS)
