"""Memories on the device, in RAM and on disk, each within a byte budget. The least recently used are evicted first.

An `Entry` is one memory of one tenant. A memory on the device (weights ready to use) is also in RAM (the float32
difference). A memory in RAM is written to disk soon after it was made, so evicting it from RAM loses nothing and
loading it again is bit-identical. Without a folder, a memory evicted from RAM is lost. Entries in use are held, and
held entries are never evicted. The budgets count them too, so `hold` can fail for lack of room.

Threads: methods that change entries take one lock; `save` and `load` write and read weights outside of it.
"""

import threading
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fastmem.errors import FastMemError, InputError, MemoryFileError
from fastmem.memory.memory import Memory
from fastmem.memory.recipe import Recipe
from fastmem.model import FastMem
from fastmem.serve.memory_records import new_record, stored_memories, write_record
from fastmem.serve.memory_source import MemorySource


@dataclass(frozen=True)
class Budget:
    """The greatest number of bytes in each place. None: no limit."""

    device_bytes: int | None = None
    ram_bytes: int | None = None
    disk_bytes: int | None = None


@dataclass(eq=False)
class Entry:
    """One memory and where it is.

    holders: how many jobs use it or wait for it. used: a counter, larger is more recent. made: it exists, in RAM or on
    disk. unsaved: it will be written to disk. loading: it is being read from disk. record: see `memory_records.py`.
    """

    source: MemorySource
    ram_bytes: int
    device_bytes: int
    memory: Memory | None = None
    on_device: bool = False
    path: Path | None = None
    disk_bytes: int = 0
    holders: int = 0
    used: int = 0
    made: bool = False
    unsaved: bool = False
    loading: bool = False
    record: dict[str, Any] = field(default_factory=dict)

    @property
    def in_ram(self) -> bool:
        """Whether it counts for the RAM budget: it is in RAM, being read or being made."""
        return self.memory is not None or self.loading or not self.made


class Store:
    """The memories of all tenants of one model. folder: where they are stored; None keeps them in RAM only.

    Errors: `InputError` if a budget is smaller than one memory of the default recipe.
    """

    def __init__(self, llm: FastMem, budget: Budget | None = None, folder: Path | None = None):
        self.llm, self.budget, self.folder = llm, budget or Budget(), folder
        self.evictions = {"device": 0, "ram": 0, "disk": 0}
        self._entries: dict[str, Entry] = {}
        self._lock = threading.RLock()
        self._clock = 0
        self._check_budget(llm.recipe)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self._find_stored(folder)

    def hold(self, source: MemorySource) -> Entry | None:
        """The entry, which is not evicted until `release`; None if other held entries take all the room.

        It may still have to be made or loaded. Errors: `InputError` if it is larger than the whole budget, or if it
        does not exist and the source has no tokens.
        """
        with self._lock:
            entry = self._entries.get(source.key)
            if entry is None:
                if source.tokens is None:
                    raise InputError(f"memory {source.name or source.key!r} does not exist any more: make it again.")
                self._check_budget(source.recipe)
                entry = Entry(source, *self._sizes(source.recipe))
            if not entry.holders and not self._make_room(entry):
                return None
            self._entries[source.key] = entry
            entry.loading = entry.made and entry.memory is None
            entry.holders += 1
            self._touch(entry)
            return entry

    def is_held(self, key: str) -> bool:
        """Whether this memory is held already, so that another hold takes no room."""
        entry = self._entries.get(key)
        return entry is not None and entry.holders > 0

    def release(self, entry: Entry) -> None:
        """End one hold. An entry that is no longer held and was never made is removed."""
        with self._lock:
            entry.holders -= 1
            if not entry.holders and not entry.made:
                self._forget(entry)

    def put(self, entry: Entry, memory: Memory) -> None:
        """Store the memory that was made for a held entry."""
        with self._lock:
            entry.memory = _in_ram(memory)
            entry.record = new_record(entry.source, memory)
            entry.ram_bytes = memory.size_bytes
            entry.made, entry.unsaved = True, self.folder is not None

    def ready(self, entry: Entry) -> Memory:
        """The memory of a held entry in RAM, with its weights on the device. Called by the worker's thread only."""
        assert entry.memory is not None
        self.llm.ffn(entry.memory)
        entry.on_device = True
        return entry.memory

    def save(self, entry: Entry) -> None:
        """Write a made entry to disk: the memory first, then its record. Errors: `OSError`."""
        assert self.folder is not None
        memory, path = entry.memory, self.folder / f"{entry.source.key}.safetensors"
        try:
            if memory is not None and self._entries.get(entry.source.key) is entry:
                memory.save(path)
                with self._lock:
                    write_record(entry.record, path)
                    entry.path, entry.disk_bytes = path, path.stat().st_size
                    if self._entries.get(entry.source.key) is not entry:  # deleted meanwhile
                        self._unlink(entry)
                    self._shrink_disk()
        finally:
            entry.unsaved = False

    def load(self, entry: Entry) -> None:
        """Read a held entry from disk. Errors: `FastMemError` for a damaged or missing file; the entry is removed."""
        try:
            if entry.path is None:
                raise MemoryFileError(f"memory {entry.source.key} was deleted before it was read: make it again.")
            entry.memory = _in_ram(Memory.load(entry.path, model=self.llm))
        except (FastMemError, OSError):
            with self._lock:
                self._forget(entry)
            raise
        finally:
            entry.loading = False

    def find(self, tenant: str, reference: str) -> Entry | None:
        """A made memory of this tenant by id or name."""
        return next((e for e in self.of_tenant(tenant) if reference in (e.source.key, e.record["name"])), None)

    def of_tenant(self, tenant: str) -> list[Entry]:
        """The made memories of this tenant, oldest first."""
        with self._lock:
            entries = [e for e in self._entries.values() if e.made and e.source.tenant == tenant]
        return sorted(entries, key=lambda e: (e.record["created"], e.source.key))

    def rename(self, entry: Entry, name: str) -> None:
        """Give a made memory a name, also on disk. Errors: `InputError` if another memory of the tenant has it."""
        with self._lock:
            other = self.find(entry.source.tenant, name)
            if other is not None and other is not entry:
                raise InputError(
                    f"the name {name!r} belongs to memory {other.source.key}: delete it or choose another."
                )
            entry.record = entry.record | {"name": name}
            if entry.path is not None:
                write_record(entry.record, entry.path)

    def delete(self, entry: Entry) -> None:
        """Remove an entry, also on disk. Jobs that hold it can use it until they release it."""
        with self._lock:
            self._forget(entry)

    def totals(self) -> dict[str, tuple[int, int]]:
        """Number and bytes of the memories in each place: place -> (memories, bytes)."""
        with self._lock:
            entries = list(self._entries.values())
        sizes = {
            "device": [e.device_bytes for e in entries if e.on_device],
            "ram": [e.ram_bytes for e in entries if e.in_ram],
            "disk": [e.disk_bytes for e in entries if e.path is not None],
        }
        return {place: (len(of_each), sum(of_each)) for place, of_each in sizes.items()}

    def _touch(self, entry: Entry) -> None:
        self._clock += 1
        entry.used = self._clock

    def _sizes(self, recipe: Recipe) -> tuple[int, int]:
        """(RAM, device) bytes of a memory with this recipe, before it is made.

        In RAM it is a difference in float32, on the device it is weights in the model's type.
        """
        tuned = list(self.llm.split_model.parameters(recipe.layers).values())
        numbers = sum(t.numel() for t in tuned)
        if recipe.parametrization == "lora":
            sides = [
                (t.numel() // (t.shape[-1] * t.shape[-2]), t.shape[-2], t.shape[-1]) for t in tuned if t.ndim >= 2
            ]
            numbers = sum(experts * min(recipe.rank, n, m) * (n + m) for experts, n, m in sides)
        return numbers * max(4, tuned[0].element_size()), sum(t.numel() * t.element_size() for t in tuned)

    def _check_budget(self, recipe: Recipe) -> None:
        ram_bytes, device_bytes = self._sizes(recipe)
        for option, place, need, limit in (
            ("ram_bytes", "RAM", ram_bytes, self.budget.ram_bytes),
            ("device_bytes", "device memory", device_bytes, self.budget.device_bytes),
        ):
            if limit is not None and need > limit:
                raise InputError(
                    f"a memory of this recipe takes {need:,} bytes, the store may hold {limit:,} in {place}: raise "
                    "that limit, or tune fewer layers.",
                    options=(option,),
                )

    def _make_room(self, entry: Entry) -> bool:
        """Evict until `entry` fits on the device and in RAM. If it cannot fit, evict nothing and return False."""
        others = sorted((e for e in self._entries.values() if e is not entry), key=lambda e: e.used)
        evictable = [e for e in others if not e.holders and not e.unsaved]
        leaving: list[tuple[str, Entry]] = []
        if (limit := self.budget.ram_bytes) is not None:
            over = entry.ram_bytes + sum(e.ram_bytes for e in others if e.in_ram) - limit
            for other in (e for e in evictable if e.in_ram):
                if over > 0:
                    leaving.append(("ram", other))
                    over -= other.ram_bytes
            if over > 0:
                return False
        if (limit := self.budget.device_bytes) is not None:
            gone = {id(e) for _, e in leaving}
            there = [e for e in others if (e.on_device or e.holders) and id(e) not in gone]
            over = entry.device_bytes + sum(e.device_bytes for e in there) - limit
            for other in (e for e in evictable if e.on_device and id(e) not in gone):
                if over > 0:
                    leaving.append(("device", other))
                    over -= other.device_bytes
            if over > 0:
                return False
        for place, other in leaving:
            self._evict(other, place)
        return True

    def _evict(self, entry: Entry, place: str) -> None:
        """Evict from the device, or from RAM and thereby from the device."""
        self.evictions[place] += 1
        if entry.on_device and entry.memory is not None:
            self.llm.release(entry.memory)
        entry.on_device = False
        if place == "ram":
            entry.memory = None
            if entry.path is None:
                self._forget(entry)

    def _shrink_disk(self) -> None:
        on_disk = sorted((e for e in self._entries.values() if e.path is not None), key=lambda e: e.used)
        size_bytes = sum(e.disk_bytes for e in on_disk)
        for entry in on_disk:
            if self.budget.disk_bytes is None or size_bytes <= self.budget.disk_bytes:
                break
            if not entry.holders:
                size_bytes -= entry.disk_bytes
                self.evictions["disk"] += 1
                self._unlink(entry)
                if entry.memory is None:
                    self._forget(entry)

    def _forget(self, entry: Entry) -> None:
        if self._entries.get(entry.source.key) is entry:
            del self._entries[entry.source.key]
        self._unlink(entry)

    def _unlink(self, entry: Entry) -> None:
        if entry.path is not None:
            entry.path.with_suffix(".json").unlink(missing_ok=True)
            entry.path.unlink(missing_ok=True)
        entry.path, entry.disk_bytes = None, 0

    def _find_stored(self, folder: Path) -> None:
        """Find memories that an earlier server stored. Those of other bases and tokenizers are ignored."""
        for source, record, path in stored_memories(folder):
            digests = (self.llm.base(source.recipe.layers).digest, self.llm.reader.get("tokenizer_sha256"))
            if (record["base"], record["tokenizer"]) == digests:
                ram_bytes, device_bytes = self._sizes(source.recipe)
                entry = Entry(source, ram_bytes, device_bytes, path=path, disk_bytes=path.stat().st_size, made=True)
                entry.record = record
                self._touch(entry)
                self._entries[source.key] = entry
        self._shrink_disk()


def _in_ram(memory: Memory) -> Memory:
    """The memory with its tensors on the CPU."""
    return replace(memory, tensors={name: t.detach().cpu() for name, t in memory.tensors.items()})
