"""Which adapters are loaded in one vLLM: at most so many, the least recently used leave, those in use stay.

vLLM reads an adapter's files again whenever it has put it out of its own memory, so the files stay as long as the
adapter is loaded. A vLLM that was started again has forgotten its adapters; they are loaded again when asked for.
"""

import asyncio
import hashlib
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from fastmem.serve.adapter_folder import AdapterFolder
from fastmem.serve.vllm_client import BaseModel, VllmClient, VllmRefusedError, VllmUnavailableError

log = logging.getLogger("fastmem")


@dataclass(eq=False)
class Adapter:
    """users: requests that need it now. loaded: as far as is known. deleted: it goes when nobody uses it. lock: held
    while it is being loaded."""

    name: str
    users: int = 0
    loaded: bool = False
    deleted: bool = False
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class VllmAdapters:
    """The adapters of one vLLM. most: how many may be loaded, at least as many as are in use. For the event loop."""

    def __init__(self, client: VllmClient, folder: AdapterFolder, most: int):
        self.client, self.folder, self.most = client, folder, most
        self.answering = 0  # requests that it answers now
        self._base: BaseModel | None = None
        self._adapters: OrderedDict[str, Adapter] = OrderedDict()  # the least recently used first
        self._changing = asyncio.Lock()

    def __len__(self) -> int:
        return len(self._adapters)

    def adopt(self, names: Sequence[str]) -> None:
        """Count adapters that an earlier server left in the folder, the oldest first."""
        for name in names:
            self._adapters[name] = Adapter(name)

    async def base(self) -> BaseModel:
        """The model that vLLM serves. Errors: those of `VllmClient.models`."""
        if self._base is None:
            self._base, _ = await self.client.models()
        return self._base

    @asynccontextmanager
    async def using(self, name: str) -> AsyncIterator[Adapter]:
        """Hold an adapter, whose files and place in vLLM then stay. It may still have to be written and loaded."""
        adapter = self._adapters.get(name)
        if adapter is None:
            async with self._changing:
                adapter = self._adapters.get(name)
                if adapter is None:
                    await self._make_room()
                    adapter = self._adapters[name] = Adapter(name)
                adapter.users += 1
        else:
            adapter.users += 1
        adapter.deleted = False
        self._adapters.move_to_end(name)
        try:
            yield adapter
        finally:
            adapter.users -= 1
            if adapter.deleted:
                await self.delete(name)

    async def load(self, adapter: Adapter) -> None:
        """Load a held adapter whose files are there. Errors: those of `VllmClient.load`."""
        async with adapter.lock:
            if not adapter.loaded:
                await self.client.load(adapter.name, self.folder.path(adapter.name))
                adapter.loaded = True

    def forgotten(self) -> None:
        """vLLM was started again, or may have been: what it has loaded is not known any more."""
        self._base = None
        for adapter in self._adapters.values():
            adapter.loaded = False

    async def delete(self, name: str) -> None:
        """Unload an adapter and remove its files, when nobody uses it any more."""
        async with self._changing:
            adapter = self._adapters.get(name)
            if adapter is None:
                return
            adapter.deleted = True
            if not adapter.users:
                await self._leave(adapter)

    async def _make_room(self) -> None:
        """Let the least recently used adapters leave until there is room for one more, if they are not in use."""
        while len(self._adapters) >= self.most:
            idle = next((adapter for adapter in self._adapters.values() if not adapter.users), None)
            if idle is None:
                return
            await self._leave(idle)

    async def _leave(self, adapter: Adapter) -> None:
        """Unload an adapter and remove its files. It leaves the list first, so nobody begins to use it."""
        del self._adapters[adapter.name]
        try:
            await self.client.unload(adapter.name)
        except (VllmUnavailableError, VllmRefusedError) as error:
            log.warning("an adapter could not be unloaded: %s", error.detail)
        await asyncio.to_thread(self.folder.remove, adapter.name)


def chosen_for(name: str, servers: Sequence[VllmAdapters]) -> VllmAdapters:
    """The vLLM that has this adapter (rendezvous hashing: if one is added, only what goes to that one moves)."""
    return max(servers, key=lambda server: hashlib.sha256(f"{server.client.url} {name}".encode()).digest())
