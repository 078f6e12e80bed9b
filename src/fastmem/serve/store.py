"""Memories on the device, in RAM and on disk, each within a byte budget. The least recently used are evicted first.

An `Entry` is one memory of one tenant. A memory on the device (weights ready to use) is also in RAM (the float32
difference). A memory in RAM is written to disk soon after it was made, so evicting it from RAM loses nothing and
loading it again is bit-identical. Without a folder, a memory evicted from RAM is lost. Entries in use are held, and
held entries are never evicted. The budgets count them too, so `hold` can fail for lack of room.

Threads: methods that change entries take one lock, which the event loop needs for every request, so weights and
records are written outside of it. Who writes a record, or removes or opens files, takes another lock before that one.
"""

import logging
import threading
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

from fastmem.errors import FastMemError, InputError, MemoryFileError, StorageError, StorageReadError
from fastmem.memory.memory import Memory
from fastmem.model import FastMem
from fastmem.serve.folder_lock import lock_folder
from fastmem.serve.logs import cause, reason_of
from fastmem.serve.memory_budget import Budget, Entry, check_budget, evictions, memory_bytes
from fastmem.serve.memory_records import clear_leftovers, new_record, stored_memories, write_record
from fastmem.serve.memory_source import MemorySource
from fastmem.serve.tenants import QuotaError

log = logging.getLogger("fastmem")


class Store:
    """The memories of all tenants of one model. folder: where they are stored; None keeps them in RAM only.

    Errors: `InputError` if a budget is smaller than one memory of the default recipe; `StorageError` if the folder
    cannot be written or belongs to another running server.
    """

    def __init__(self, llm: FastMem, budget: Budget | None = None, folder: Path | None = None):
        self.llm, self.budget, self.folder = llm, budget or Budget(), folder
        self.evictions = {"device": 0, "ram": 0, "disk": 0}
        self._entries: dict[str, Entry] = {}
        self._names: dict[tuple[str, str], str] = {}  # (tenant, name) -> key, of memories and of those to be made
        self._lock, self._files = threading.RLock(), threading.Lock()
        self._clock = 0
        check_budget(self.llm, self.budget, llm.recipe)
        if folder is not None:
            self._folder_lock = lock_folder(folder, "the store", "store")
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
                check_budget(self.llm, self.budget, source.recipe)
                self._check_quota(source)
                entry = Entry(source, *memory_bytes(self.llm, source.recipe))
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
            name = entry.source.name
            if name is not None and self.claim(entry.source.tenant, name, entry.source.key) is not None:
                entry.record["name"] = None  # its client has left, and another memory has the name now

    def ready(self, entry: Entry, on_device: bool = True) -> Memory:
        """The memory of a held entry in RAM, if asked for with its weights on the device. For the worker's thread."""
        assert entry.memory is not None
        if on_device:
            self.llm.ffn(entry.memory)
            entry.on_device = True
        return entry.memory

    def touch(self, entry: Entry) -> None:
        """Count a use of an entry that is not held for it."""
        with self._lock:
            self._touch(entry)

    def save(self, entry: Entry) -> None:
        """Write a made entry to disk: the memory first, then its record. Errors: `OSError`, kept in `problem`."""
        assert self.folder is not None
        memory, path = entry.memory, self.folder / f"{entry.source.key}.safetensors"
        try:
            if memory is not None and self._entries.get(entry.source.key) is entry:
                memory.save(path)
                with self._files:
                    write_record(entry.record, path)
                    with self._lock:
                        entry.path, entry.disk_bytes, entry.problem = path, path.stat().st_size, ""
                        if self._entries.get(entry.source.key) is not entry:  # deleted meanwhile
                            self._try_unlink(entry)
                        self._shrink_disk()
        except OSError as error:
            entry.problem = reason_of(error)
            if entry.path is None:
                path.unlink(missing_ok=True)  # weights without a record
            raise
        finally:
            entry.unsaved = False

    def to_save(self) -> list[Entry]:
        """The entries that could not be written and are now to be written again."""
        with self._lock:
            again = [e for e in self._entries.values() if e.problem and not e.unsaved and e.memory is not None]
            for entry in again:
                entry.unsaved = True
            return again

    def load(self, entry: Entry) -> None:
        """Read a held entry from disk.

        Errors: `FastMemError` for a damaged or missing file, whose entry is removed; `StorageReadError` for one that
        cannot be read now, for instance because too many files are open.
        """
        path = entry.path  # another thread may delete the entry
        try:
            if path is None:
                raise MemoryFileError(f"memory {entry.source.key} was deleted before it was read: make it again.")
            with open(path, "rb"):  # says why; safetensors does not
                pass
            entry.memory = _in_ram(Memory.load(path, model=self.llm))
        except (FastMemError, OSError) as error:
            cause = error.__cause__ if isinstance(error, MemoryFileError) else error
            if isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError | FastMemError):
                text = f"the memory cannot be read from the store now ({reason_of(error)}): try again later."
                raise StorageReadError(text) from error
            with self._files, self._lock:
                self._forget(entry)
                self._try_unlink(entry)
            raise
        finally:
            entry.loading = False

    def opened_file(self, entry: Entry) -> BinaryIO:
        """The memory's file, open for reading; a temporary one if the memory is in RAM only.

        Errors: `StorageReadError` if that is not possible now; `InputError` for a memory that is gone.
        """
        try:
            with self._files:  # an open file stays whole; one that is only named could be evicted before it is opened
                if entry.path is not None:
                    return entry.path.open("rb")
                memory = entry.memory
            if memory is None:
                raise InputError(f"memory {entry.source.key} does not exist any more: make it again.")
            with TemporaryDirectory() as folder:
                temporary = Path(folder) / "memory.safetensors"
                memory.save(temporary)
                return temporary.open("rb")  # outlives its folder
        except (OSError, MemoryFileError) as error:
            text = f"the memory cannot be read now ({reason_of(error)}): try again later."
            raise StorageReadError(text) from error

    def find(self, tenant: str, reference: str) -> Entry | None:
        """A made memory of this tenant by id or name."""
        with self._lock:
            entry = self._entries.get(self._names.get((tenant, reference), reference))
            return entry if entry is not None and entry.made and entry.source.tenant == tenant else None

    def of_tenant(self, tenant: str) -> list[Entry]:
        """The made memories of this tenant, oldest first."""
        with self._lock:
            entries = [e for e in self._entries.values() if e.made and e.source.tenant == tenant]
        return sorted(entries, key=lambda e: (e.record["created"], e.source.key))

    def claim(self, tenant: str, name: str, key: str) -> str | None:
        """Give a name to a memory that exists or is to be made. Returns the key of another memory that has it."""
        with self._lock:
            owner = self._names.setdefault((tenant, name), key)
            return None if owner == key else owner

    def unclaim(self, tenant: str, name: str, key: str) -> None:
        """Take back the name of a memory that was not made."""
        with self._lock:
            entry = self._entries.get(key)
            if self._names.get((tenant, name)) == key and (entry is None or entry.record.get("name") != name):
                del self._names[tenant, name]

    def rename(self, entry: Entry, name: str) -> None:
        """Give a made memory another name, also on disk. Errors: `InputError` if it is taken, `StorageError`."""
        tenant, key = entry.source.tenant, entry.source.key
        with self._files:
            if (owner := self.claim(tenant, name, key)) is not None:
                raise InputError(f"the name {name!r} belongs to memory {owner}: delete it or choose another.")
            renamed, former = entry.record | {"name": name}, entry.record["name"]
            try:
                if entry.path is not None:
                    write_record(renamed, entry.path)
            except OSError as error:
                self.unclaim(tenant, name, key)
                text = f"the store did not accept the new name ({reason_of(error)}): try again later."
                raise StorageError(text) from error
            with self._lock:
                entry.record = renamed
                self.unclaim(tenant, former, key)

    def delete(self, entry: Entry) -> None:
        """Remove an entry, also on disk. Jobs that hold it can use it until they release it. Errors: `StorageError`
        if its files cannot be removed; it then stays."""
        with self._files:
            try:
                self._unlink(entry)
            except OSError as error:
                text = f"the memory cannot be deleted from the store ({reason_of(error)}): try again later."
                raise StorageError(text) from error
            with self._lock:
                self._forget(entry)

    def close(self) -> None:
        """Leave the folder to other servers."""
        if self.folder is not None:
            self._folder_lock.release()

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

    def _check_quota(self, source: MemorySource) -> None:
        """Errors: `QuotaError` if another memory is more than its tenant may have."""
        quota, own = source.quota, [e for e in self._entries.values() if e.source.account == source.account]
        if quota.memories is not None and len(own) >= quota.memories:
            raise QuotaError(f"this key has {len(own)} memories, the most it may have: delete one.", 60)
        size = sum(max(e.ram_bytes, e.disk_bytes) for e in own) + memory_bytes(self.llm, source.recipe)[0]
        if quota.bytes is not None and size > quota.bytes:
            raise QuotaError(f"the memories of this key may take {quota.bytes:,} bytes: delete some.", 60)

    def _make_room(self, entry: Entry) -> bool:
        """Evict until `entry` fits on the device and in RAM. If it cannot fit, evict nothing and return False."""
        leaving = evictions(entry, [e for e in self._entries.values() if e is not entry], self.budget)
        for place, other in leaving or ():
            self._evict(other, place)
        return leaving is not None

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
        """Remove what was used longest ago. With the lock, so that nobody holds an entry that is being removed."""
        on_disk = sorted((e for e in self._entries.values() if e.path is not None), key=lambda e: e.used)
        size_bytes = sum(e.disk_bytes for e in on_disk)
        for entry in on_disk:
            if self.budget.disk_bytes is None or size_bytes <= self.budget.disk_bytes:
                break
            if not entry.holders and (freed := self._try_unlink(entry)):
                size_bytes -= freed
                self.evictions["disk"] += 1
                if entry.memory is None:
                    self._forget(entry)

    def _forget(self, entry: Entry) -> None:
        if self._entries.get(entry.source.key) is entry:
            del self._entries[entry.source.key]
            name = (entry.source.tenant, str(entry.record.get("name") or entry.source.name))
            if self._names.get(name) == entry.source.key:
                del self._names[name]

    def _unlink(self, entry: Entry) -> None:
        """Remove the files of an entry: the record first, without which the weights are no memory. Errors: `OSError`,
        and the entry keeps its path."""
        if entry.path is not None:
            entry.path.with_suffix(".json").unlink(missing_ok=True)
            entry.path.unlink(missing_ok=True)
        entry.path, entry.disk_bytes = None, 0

    def _try_unlink(self, entry: Entry) -> int:
        """The same where nobody waits for it: a failure goes to the log. Returns the bytes that are free now."""
        path, size_bytes = entry.path, entry.disk_bytes
        try:
            self._unlink(entry)
        except OSError as error:
            log.warning("the stored memory %s could not be removed: %s", path and path.name, cause(error))
        return size_bytes - entry.disk_bytes

    def _find_stored(self, folder: Path) -> None:
        """Find memories that an earlier server stored. Those of other bases and tokenizers are ignored."""
        clear_leftovers(folder)
        # Asked once: both look at all parameters of the model (1.2 ms for each of 5,000 memories).
        base_digest = cache(lambda layers: self.llm.base(layers).digest)
        bytes_of = cache(lambda recipe: memory_bytes(self.llm, recipe))
        for source, record, path in stored_memories(folder):
            try:
                base = base_digest(source.recipe.layers)
            except InputError:  # layers that this model has not
                continue
            if (record["base"], record["tokenizer"]) == (base, self.llm.reader.get("tokenizer_sha256")):
                entry = Entry(source, *bytes_of(source.recipe), path=path, disk_bytes=path.stat().st_size, made=True)
                entry.record = record
                self._touch(entry)
                self._entries[source.key] = entry
                if record["name"] is not None:
                    self._names.setdefault((source.tenant, record["name"]), source.key)
        self._shrink_disk()


def _in_ram(memory: Memory) -> Memory:
    """The memory with its tensors on the CPU."""
    return replace(memory, tensors={name: t.detach().cpu() for name, t in memory.tensors.items()})
