"""`Service`: what every route needs: the model, its store and engine, the limits, and who is asking."""

from dataclasses import dataclass, field

from fastapi import Request

from fastmem.model import FastMem
from fastmem.serve.engine import Engine
from fastmem.serve.http_errors import HttpRefusal
from fastmem.serve.limits import Limits
from fastmem.serve.metrics import Metrics
from fastmem.serve.schemas import Template
from fastmem.serve.store import Entry, Store
from fastmem.serve.tenants import bearer_key, is_accepted, tenant_of


@dataclass(frozen=True)
class Service:
    """One server. api_keys: the accepted keys; none accepts everybody. template: the default for documents."""

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
        """Whose memories this request may see."""
        return tenant_of(bearer_key(request), salt)

    def authorize(self, request: Request) -> None:
        """Errors: `HttpRefusal` where a key is needed and none of the accepted ones was given."""
        if self.api_keys and not is_accepted(bearer_key(request), self.api_keys):
            text = "this server needs an API key: send it as 'Authorization: Bearer <key>'."
            raise HttpRefusal(401, text, code="invalid_api_key")

    def memory(self, tenant: str, reference: str) -> Entry:
        """A memory of this tenant by id or name. Errors: `HttpRefusal`, the same whether or not another tenant has
        it."""
        entry = self.store.find(tenant, reference)
        if entry is None:
            text = f"the memory {reference!r} does not exist: make it with POST /v1/memories."
            raise HttpRefusal(404, text, code="memory_not_found")
        return entry

    def chosen(self, tenant: str, model: str) -> Entry | None:
        """What `model` names: None for the base, else a memory, `<memory>` or `<base>:<memory>`. Errors:
        `HttpRefusal`."""
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
    """The service that a request was sent to."""
    return request.app.state.service
