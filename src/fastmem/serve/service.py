"""`Service`: what every route needs. The model, its store and engine, the limits, and the caller's tenant."""

from dataclasses import dataclass, field

from fastapi import Request

from fastmem.model import FastMem
from fastmem.serve.engine import Engine
from fastmem.serve.http_errors import HttpRefusal
from fastmem.serve.limits import Limits
from fastmem.serve.metrics import Metrics
from fastmem.serve.schemas import Template
from fastmem.serve.store import Entry, Store
from fastmem.serve.tenants import bearer_key, is_accepted_key, tenant_of


@dataclass(frozen=True)
class Service:
    """One server. api_keys: the accepted keys; none accepts every client. template: the default for documents."""

    llm: FastMem
    store: Store
    engine: Engine
    metrics: Metrics
    name: str
    started: int
    limits: Limits = field(default_factory=Limits)
    api_keys: tuple[str, ...] = ()
    template: Template = "context"

    def tenant(self, request: Request, salt: str | None) -> str:
        """The tenant whose memories this request may use."""
        return tenant_of(bearer_key(request), salt)

    def authorize(self, request: Request) -> None:
        """Errors: `HttpRefusal` if a key is needed and the request has no accepted one."""
        if self.api_keys and not is_accepted_key(bearer_key(request), self.api_keys):
            text = "this server needs an API key: send it as 'Authorization: Bearer <key>'."
            raise HttpRefusal(401, text, code="invalid_api_key")

    def memory(self, tenant: str, reference: str) -> Entry:
        """A memory of this tenant by id or name. Errors: `HttpRefusal`, which does not reveal other tenants'."""
        entry = self.store.find(tenant, reference)
        if entry is None:
            text = f"the memory {reference!r} does not exist: make it with POST /v1/memories."
            raise HttpRefusal(404, text, code="memory_not_found")
        return entry

    def memory_of_model(self, tenant: str, model: str) -> Entry | None:
        """The memory that `model` names, as `<memory>` or `<base>:<memory>`; None for the base.

        Errors: `HttpRefusal`.
        """
        if model == self.name:
            return None
        reference = model.removeprefix(f"{self.name}:")
        entry = self.store.find(tenant, reference)
        if entry is None:
            text = (
                f"the model {model!r} does not exist: accepted are {self.name!r} and the memories of GET /v1/models."
            )
            raise HttpRefusal(404, text, "model", "model_not_found")
        return entry


def service_of(request: Request) -> Service:
    """The service of the application that received the request."""
    return request.app.state.service
