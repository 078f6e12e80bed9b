"""`Service`: what every route needs. The model, its store and engine, the limits, and the caller's tenant."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from fastapi import Request

from fastmem.answer.contrast import method_named
from fastmem.errors import InputError
from fastmem.model import FastMem
from fastmem.serve.engine import Engine
from fastmem.serve.http_errors import HttpRefusal
from fastmem.serve.limits import Limits
from fastmem.serve.metrics import Metrics
from fastmem.serve.schemas import Document, Template
from fastmem.serve.store import Entry, Store
from fastmem.serve.tenants import Keys, Tenant, Usage, bearer_key, is_accepted_key
from fastmem.serve.text_thread import TextThread
from fastmem.serve.vllm_answers import VllmAnswers


@dataclass(frozen=True)
class Service:
    """One server. keys: whose requests are accepted. admin_key: what administrators need; None
    lets everybody in where there are no API keys, nobody where there are some. template: the default for documents.
    vllm: who writes the answers, if the engine only memorizes.
    """

    llm: FastMem
    store: Store
    engine: Engine
    metrics: Metrics
    text: TextThread
    name: str
    started: int
    aliases: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)
    keys: Keys = field(default_factory=Keys)
    usage: Usage = field(default_factory=Usage)
    admin_key: str | None = None
    template: Template = "context"
    vllm: VllmAnswers | None = None

    @property
    def answering(self) -> Engine | VllmAnswers:
        """Who does jobs: the engine, or what passes answers on to vLLM."""
        return self.vllm or self.engine

    def check_method(self, name: str) -> None:
        """Errors: `InputError` for a contrast, where vLLM writes the answers."""
        if self.vllm is not None and method_named(name).kind is not None:
            text = (
                f"method {name!r} contrasts two sets of logits, which vLLM does not do: use 'base' or 'fastmem', or "
                "a server without --vllm."
            )
            raise InputError(text, field="fastmem.method")

    def tenant(self, request: Request, salt: str | None) -> str:
        """The tenant whose memories this request may use."""
        return self.sender(request).salted(salt)

    def sender(self, request: Request) -> Tenant:
        """Who sent a request. Errors: `HttpRefusal` if a key is needed and the request has no accepted one."""
        if request.state.sender is None:  # the middleware has looked
            text = "this server needs an API key: send it as 'Authorization: Bearer <key>'."
            raise HttpRefusal(401, text, code="invalid_api_key")
        return request.state.sender

    def authorize_administrator(self, request: Request) -> None:
        """Errors: `HttpRefusal` for everybody but an administrator, whose figures span all tenants."""
        if self.admin_key is None and not self.keys.needed:
            return
        if self.admin_key is None or not is_accepted_key(bearer_key(request), [self.admin_key]):
            text = "the metrics are for administrators: send the key of --admin-key as 'Authorization: Bearer <key>'."
            raise HttpRefusal(401, text, code="invalid_api_key")

    def check_documents(self, documents: Sequence[Document]) -> None:
        """Errors: `InputError` for more documents than allowed, or longer ones than can fit, unread."""
        if len(documents) > self.limits.documents:
            text = f"{len(documents)} documents are too many: this server allows at most {self.limits.documents}."
            raise InputError(text, field="documents")
        self.text.check_texts([d.text for d in documents], self.limits.document_tokens, "documents")

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
        if model in (self.name, *self.aliases):
            return None
        base, _, memory = model.partition(":")
        reference = memory if memory and base in (self.name, *self.aliases) else model
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
