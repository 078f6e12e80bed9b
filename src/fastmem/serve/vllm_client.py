"""The HTTP client of one running vLLM: its models, its adapters, and streamed completions.

What comes back is checked and bounded, in time and in size. What vLLM says of a failure goes to the log and never to a
client of ours, since it can name addresses, folders and the adapters of others.
"""

import json
import logging
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2

from fastmem.errors import FastMemError, InputError

log = logging.getLogger("fastmem")

# As long as a restart is expected to take at least; a client that asks too early is told so again.
RETRY_AFTER_SECONDS = 5


class VllmUnavailableError(FastMemError, RuntimeError):
    """vLLM does not answer, or its answer cannot be read. retry_after_seconds: when to try again."""

    def __init__(self, detail: str):
        super().__init__(
            f"the engine that writes the answers does not respond now: try again in {RETRY_AFTER_SECONDS} s."
        )
        self.detail, self.retry_after_seconds = detail, RETRY_AFTER_SECONDS


class VllmRefusedError(FastMemError, RuntimeError):
    """vLLM answered with an error. status: of its response; detail: what it said, for the log only."""

    def __init__(self, status: int, detail: str):
        super().__init__("the engine that writes the answers did not accept this request: the server's log says why.")
        self.status, self.detail = status, detail


@dataclass(frozen=True)
class VllmLimits:
    """connect_seconds, call_seconds: for a connection, and for a call that is no answer (an adapter is loaded).
    silent_seconds: between two parts of an answer. body_bytes: of a response that is no stream; line_bytes: of one
    event of a stream."""

    connect_seconds: float = 5.0
    call_seconds: float = 30.0
    silent_seconds: float = 60.0
    body_bytes: int = 4 * 2**20
    line_bytes: int = 2**20


@dataclass(frozen=True)
class BaseModel:
    """The model that vLLM serves. positions: of prompt and answer together; None if vLLM does not say."""

    name: str
    positions: int | None


class VllmClient:
    """One vLLM. url: its address without `/v1`. key: its API key, if it has one. For one event loop."""

    def __init__(self, url: str, key: str | None = None, limits: VllmLimits | None = None):
        self.url, self.limits = checked_url(url), limits or VllmLimits()
        seconds = httpx2.Timeout(self.limits.call_seconds, connect=self.limits.connect_seconds)
        headers = {"authorization": f"Bearer {key}"} if key else {}
        # Redirects are not followed, and proxies of the environment not used: it is the address that was given.
        self._http = httpx2.AsyncClient(base_url=self.url, headers=headers, timeout=seconds, trust_env=False)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def models(self) -> tuple[BaseModel, set[str]]:
        """(the base model, the names of all adapters that are loaded). Errors: `VllmUnavailableError` and others."""
        status, body = await self._call("GET", "/v1/models")
        self._check(status, body)
        try:
            found = json.loads(body)["data"]
            names = {str(model["id"]) for model in found if model.get("parent") is not None}
            base = next(model for model in found if model.get("parent") is None)
            positions = base.get("max_model_len")
            return BaseModel(str(base["id"]), positions if isinstance(positions, int) else None), names
        except (ValueError, TypeError, LookupError, AttributeError, StopIteration) as error:
            raise self._unreadable(error) from error

    async def load(self, name: str, folder: Path) -> None:
        """Load an adapter; one that is loaded already stays. Errors: `VllmUnavailableError`, `VllmRefusedError`."""
        status, body = await self._call("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})
        # The status for "already loaded" is that of other mistakes, and its text may change.
        if status == 400 and name in (await self.models())[1]:
            return
        self._check(status, body, refusing={500})

    async def unload(self, name: str) -> None:
        """Unload an adapter, if it is loaded. Errors: `VllmUnavailableError`, `VllmRefusedError`."""
        status, body = await self._call("POST", "/v1/unload_lora_adapter", {"lora_name": name})
        if status != 404:
            self._check(status, body)

    async def completion(self, body: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """The chunks of a streamed completion, until vLLM says that there are no more.

        Errors: `VllmUnavailableError`, also for a stream that breaks off or cannot be read; `VllmRefusedError`.
        """
        limits = self.limits
        seconds = httpx2.Timeout(limits.silent_seconds, connect=limits.connect_seconds)
        try:
            request = self._http.stream("POST", "/v1/completions", json=dict(body), timeout=seconds)
            async with request as response:
                if response.status_code != 200:
                    self._check(response.status_code, await self._body(response))
                async for data in self._events(response):
                    if data == b"[DONE]":
                        return
                    chunk = json.loads(data)
                    if not isinstance(chunk, dict) or "choices" not in chunk:
                        raise ValueError("an event that is not a chunk")
                    yield chunk
        except httpx2.HTTPError as error:
            raise self._unreachable(error) from error
        except (ValueError, RecursionError) as error:
            if isinstance(error, FastMemError):
                raise
            raise self._unreadable(error) from error
        raise VllmUnavailableError(f"{self.url}: a stream ended early")

    async def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> tuple[int, bytes]:
        """(status, body) of a response. Errors: `VllmUnavailableError`."""
        try:
            async with self._http.stream(method, path, json=body) as response:
                return response.status_code, await self._body(response)
        except httpx2.HTTPError as error:
            raise self._unreachable(error) from error

    async def _body(self, response: httpx2.Response) -> bytes:
        found = b""
        async for part in response.aiter_bytes():
            found += part
            if len(found) > self.limits.body_bytes:
                raise VllmUnavailableError(f"{self.url}: a response above {self.limits.body_bytes} bytes")
        return found

    async def _events(self, response: httpx2.Response) -> AsyncIterator[bytes]:
        """The data of server-sent events."""
        rest = b""
        async for part in response.aiter_bytes():
            *lines, rest = (rest + part).split(b"\n")
            if max(map(len, (*lines, rest))) > self.limits.line_bytes:
                raise ValueError("a line that is too long")
            for line in lines:
                if line.startswith(b"data:"):
                    yield line[5:].strip()

    def _check(self, status: int, body: bytes, refusing: set[int] | None = None) -> None:
        """Errors: `VllmUnavailableError` for statuses that say that vLLM has a problem, unless they are in `refusing`;
        `VllmRefusedError` for others."""
        if status == 200:
            return
        detail = f"{self.url} answered {status}: {body[:500].decode(errors='replace')!r}"
        if status in (408, 429) or (status >= 500 and status not in (refusing or ())):
            raise VllmUnavailableError(detail)
        raise VllmRefusedError(status, detail)

    def _unreachable(self, error: Exception) -> VllmUnavailableError:
        return VllmUnavailableError(f"{self.url} cannot be reached: {type(error).__name__} {error}")

    def _unreadable(self, error: Exception) -> VllmUnavailableError:
        return VllmUnavailableError(f"{self.url} sent a response that cannot be read: {type(error).__name__}")


def checked_url(url: str) -> str:
    """The address of a vLLM without `/v1` and slashes at its end. Errors: `InputError`."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and not parts.query and not parts.fragment
        good = good and (parts.port is None or parts.port > 0)
    except ValueError:
        good = False
    if not good:
        raise InputError(f"vllm is {url!r}: give an address such as http://127.0.0.1:8001.", field="vllm")
    return url.rstrip("/").removesuffix("/v1").rstrip("/")
