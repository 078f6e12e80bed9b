"""Memories under budgets: least recently used first, never one that is held, bit-identical when read again."""

import errno
import json
import logging
from pathlib import Path
from threading import Thread

import pytest
import torch

from fastmem import FastMem
from fastmem.errors import InputError, MemoryFileError, MemoryMismatchError, StorageError
from fastmem.memory.recipe import Recipe
from fastmem.serve import store as store_module
from fastmem.serve.engine import Engine
from fastmem.serve.jobs import AnswerFinished
from fastmem.serve.limits import Limits
from fastmem.serve.memory_records import write_record
from fastmem.serve.memory_source import source_of
from fastmem.serve.schemas import Document
from fastmem.serve.store import Budget, Store
from fastmem.serve.tenants import Tenant
from serving import RECIPE, Asked, make_llm, source
from tiny_tokenizer import build_tokenizer


@pytest.fixture(scope="module")
def llm():
    return make_llm()


@pytest.fixture(scope="module")
def size(llm):
    """Bytes of one memory; in float32 it is the same in RAM and on the device."""
    return llm.memorize("x", RECIPE).size_bytes


def made(store, llm, text, **kwargs):
    """A memory of `text`, made, saved and released."""
    want = source(llm, text, **kwargs)
    entry = store.hold(want)
    assert entry is not None
    if not entry.made:
        store.put(entry, llm.memorize(want.tokens, want.recipe))
        if store.folder:
            store.save(entry)
    elif entry.loading:
        store.load(entry)
    store.ready(entry)
    store.release(entry)
    return entry


def test_the_least_recently_used_leaves_ram(llm, size):
    store = Store(llm, Budget(ram_bytes=2 * size))
    a, b = made(store, llm, "a"), made(store, llm, "b")
    made(store, llm, "a")
    made(store, llm, "c")
    assert (a.memory is not None, b.memory is not None) == (True, False)
    assert store.find("t", b.source.key) is None  # without a folder, leaving RAM is the end
    assert store.totals()["ram"] == (2, 2 * size)


def test_what_leaves_ram_comes_back_from_disk_to_the_bit(llm, size, tmp_path):
    store = Store(llm, Budget(ram_bytes=size), tmp_path)
    a = made(store, llm, "a")
    before = {name: t.clone() for name, t in a.memory.tensors.items()}
    made(store, llm, "b")
    assert a.memory is None
    assert store.find("t", a.source.key) is a
    made(store, llm, "a")
    assert all(torch.equal(before[name], t) for name, t in a.memory.tensors.items())
    assert any(t.any() for t in before.values())


def test_a_held_memory_is_never_evicted(llm, size):
    store = Store(llm, Budget(ram_bytes=size))
    a = made(store, llm, "a")
    assert store.hold(a.source) is a
    assert store.hold(source(llm, "b")) is None
    assert a.memory is not None
    store.release(a)
    assert store.hold(source(llm, "b")) is not None
    assert a.memory is None


def test_a_memory_not_written_yet_is_not_evicted(llm, size, tmp_path):
    store = Store(llm, Budget(ram_bytes=size), tmp_path)
    want = source(llm, "a")
    entry = store.hold(want)
    store.put(entry, llm.memorize(want.tokens, RECIPE))
    store.release(entry)
    assert store.hold(source(llm, "b")) is None
    store.save(entry)
    assert store.hold(source(llm, "b")) is not None


def test_the_device_holds_less_than_ram(llm, size):
    store = Store(llm, Budget(device_bytes=size, ram_bytes=3 * size))
    a, b = made(store, llm, "a"), made(store, llm, "b")
    assert (a.on_device, b.on_device) == (False, True)
    assert a.memory is not None
    assert store.totals()["device"] == (1, size)


def test_the_disk_has_a_budget(llm, tmp_path):
    store = Store(llm, folder=tmp_path)
    made(store, llm, "a")
    one = sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    store.close()
    # Files differ by a few bytes: the losses in their records have more or fewer digits.
    store = Store(llm, Budget(disk_bytes=2 * one + one // 10), tmp_path)
    for text in "bcd":
        made(store, llm, text)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
    assert len(list(tmp_path.glob("*.json"))) == 2
    assert store.totals()["disk"][0] == 2


def test_a_new_store_finds_what_an_earlier_one_wrote(llm, tmp_path):
    first = Store(llm, folder=tmp_path)
    a = made(first, llm, "a", name="alpha")
    made(first, llm, "b", tenant="other")
    first.close()
    second = Store(llm, folder=tmp_path)
    found = second.find("t", "alpha")
    assert found is not None
    assert found.record == a.record
    assert [e.source.key for e in second.of_tenant("t")] == [a.source.key]
    held = second.hold(found.source)
    second.load(held)
    assert all(torch.equal(t, a.memory.tensors[name]) for name, t in held.memory.tensors.items())


def test_unfinished_and_damaged_records_are_passed_over(llm, tmp_path):
    store = Store(llm, folder=tmp_path)
    a, b, c = (made(store, llm, text) for text in "abc")
    a.path.with_suffix(".json").unlink()  # killed between the memory and its record
    b.path.with_suffix(".json").write_text("{half")
    c.path.unlink()
    (tmp_path / "mem-x.json").write_text(json.dumps({"version": 99}))
    store.close()
    assert Store(llm, folder=tmp_path).of_tenant("t") == []


def test_memories_of_another_base_are_left_alone(llm, tmp_path):
    made(Store(llm, folder=tmp_path), llm, "a")
    from families import build

    other = FastMem(build("llama", seed=7), llm.tokenizer, recipe=RECIPE)
    assert Store(other, folder=tmp_path).of_tenant("t") == []
    assert len(list(tmp_path.glob("*.safetensors"))) == 1


def test_memories_of_another_tokenizer_are_neither_found_nor_used(llm, tmp_path):
    """Made by the worker, so that what a server stores is seen to say how it was read."""
    want = source(llm, "a")
    engine = Engine(llm, Store(llm, folder=tmp_path))
    assert isinstance(Asked(llm, "q", want, "fastmem", durable=True).to(engine).end(), AnswerFinished)
    engine.close()
    tokenizer = build_tokenizer()
    tokenizer.add_tokens(["ferry"])  # the ids of this document and question stay as they are
    other = FastMem(llm.model, tokenizer, recipe=RECIPE)
    for reader, found in ((llm, 1), (other, 0)):
        store = Store(reader, folder=tmp_path)
        assert len(store.of_tenant("t")) == found
        store.close()

    path = tmp_path / f"{want.key}.json"
    record = json.loads(path.read_text()) | {"tokenizer": other.reader["tokenizer_sha256"]}
    write_record(record, path.with_suffix(".safetensors"))
    store = Store(other, folder=tmp_path)  # the record is believed, the file is not
    (entry,) = store.of_tenant("t")
    with pytest.raises(MemoryMismatchError, match="made with another tokenizer"):
        store.load(store.hold(entry.source))
    assert store.of_tenant("t") == []


def test_the_tokenizer_is_part_of_a_memorys_name(llm):
    tokenizer = build_tokenizer()
    tokenizer.add_tokens(["ferry"])
    documents = [Document(text="a")]
    another = FastMem(llm.model, tokenizer, recipe=RECIPE)
    another.name = llm.name
    one, other = (source_of(each, documents, RECIPE, Tenant(("t", "t")), None, Limits()) for each in (llm, another))
    assert one.tokens.ids.tolist() == other.tokens.ids.tolist()
    assert one.key != other.key


def test_a_damaged_file_is_refused_and_forgotten(llm, size, tmp_path):
    store = Store(llm, Budget(ram_bytes=size), tmp_path)
    a = made(store, llm, "a")
    made(store, llm, "b")
    a.path.write_bytes(a.path.read_bytes()[:-7])
    entry = store.hold(a.source)
    with pytest.raises(MemoryFileError):
        store.load(entry)
    assert store.find("t", a.source.key) is None
    assert list(tmp_path.glob(f"{a.source.key}*")) == []


def test_deleting_while_held_and_while_saving(llm, tmp_path):
    store = Store(llm, folder=tmp_path)
    want = source(llm, "a")
    entry = store.hold(want)
    store.put(entry, llm.memorize(want.tokens, RECIPE))
    store.delete(entry)
    store.save(entry)
    assert list(tmp_path.glob("mem-*")) == []
    assert entry.memory is not None  # who holds it still has it
    assert store.of_tenant("t") == []


def kept_on_disk(monkeypatch, suffix):
    """Files that end so cannot be removed until `monkeypatch.undo()`."""
    unlink = Path.unlink

    def refused(self, missing_ok=False):
        if self.suffix == suffix:
            raise OSError(errno.EROFS, "Read-only file system", str(self))
        unlink(self, missing_ok)

    monkeypatch.setattr(Path, "unlink", refused)


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_a_memory_that_cannot_be_deleted_stays_until_it_can(llm, tmp_path, monkeypatch, suffix):
    store = Store(llm, folder=tmp_path)
    entry = made(store, llm, "a", name="alpha")
    kept_on_disk(monkeypatch, suffix)
    with pytest.raises(StorageError, match=r"cannot be deleted from the store \(Read-only file system\): try again"):
        store.delete(entry)
    assert store.find("t", "alpha") is entry
    monkeypatch.undo()
    store.delete(entry)
    assert store.find("t", "alpha") is None
    assert list(tmp_path.glob("mem-*")) == []


def test_a_file_that_cannot_be_removed_keeps_no_other_memory_from_being_written(llm, tmp_path, monkeypatch, caplog):
    store = Store(llm, folder=tmp_path)
    a = made(store, llm, "a")
    store.budget = Budget(disk_bytes=1)
    kept_on_disk(monkeypatch, ".json")
    with caplog.at_level(logging.WARNING, "fastmem"):
        b = made(store, llm, "b")
    assert (a.problem, b.problem) == ("", "")
    assert store.find("t", a.source.key) is a
    assert f"{a.source.key}.safetensors could not be removed: " in caplog.text
    assert store.evictions["disk"] == 0


def test_a_damaged_file_that_cannot_be_removed_is_refused_as_damaged(llm, size, tmp_path, monkeypatch):
    store = Store(llm, Budget(ram_bytes=size), tmp_path)
    a = made(store, llm, "a")
    made(store, llm, "b")
    a.path.write_bytes(a.path.read_bytes()[:-7])
    kept_on_disk(monkeypatch, ".json")
    with pytest.raises(MemoryFileError):
        store.load(store.hold(a.source))
    assert store.find("t", a.source.key) is None


@pytest.mark.parametrize("leaving", ["deleted", "evicted"])
def test_a_download_that_began_is_whole_whatever_happens_to_the_memory(llm, tmp_path, monkeypatch, leaving):
    """The memory leaves the disk in the moment between finding out where it is and opening its file."""
    store = Store(llm, folder=tmp_path)
    entry = made(store, llm, "a")
    content, path, open_file = entry.path.read_bytes(), entry.path, Path.open
    others = []

    def leave():
        if leaving == "deleted":
            store.delete(entry)
        else:
            store.budget = Budget(disk_bytes=1)
            made(store, llm, "b")  # written, so what was used longest ago leaves the disk

    def opening(self, *args, **kwargs):
        if self == path and not others:
            others.append(Thread(target=leave))
            others[0].start()
            others[0].join(0.5)
        return open_file(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", opening)
    with store.opened_file(entry) as file:
        others[0].join()
        assert not path.exists()
        assert file.read() == content


@pytest.mark.parametrize("change", ["saved", "renamed", "deleted"])
def test_a_slow_disk_does_not_keep_others_from_finding_memories(llm, tmp_path, monkeypatch, change):
    store = Store(llm, folder=tmp_path)
    other, entry = made(store, llm, "other"), made(store, llm, "a")
    found = []

    def meanwhile(*_, **__):
        finding = Thread(target=lambda: found.append(store.find("t", other.source.key)))
        finding.start()
        finding.join(60)
        assert not finding.is_alive()

    monkeypatch.setattr(store_module, "write_record", meanwhile)
    if change == "saved":
        store.save(entry)
    elif change == "renamed":
        store.rename(entry, "n")
    else:
        monkeypatch.setattr(Path, "unlink", meanwhile)
        store.delete(entry)
    assert set(found) == {other}


def test_a_memory_that_is_deleted_while_it_is_read_is_refused_as_missing(llm, size, tmp_path, monkeypatch):
    store = Store(llm, Budget(ram_bytes=size), tmp_path)
    entry = made(store, llm, "a")
    made(store, llm, "b")  # leaves RAM
    store.hold(entry.source)

    def opening(path, mode, really=open):
        file = really(path, mode)
        store.delete(entry)
        return file

    monkeypatch.setattr(store_module, "open", opening, raising=False)
    with pytest.raises(MemoryFileError):
        store.load(entry)


def test_what_is_neither_in_ram_nor_on_disk_is_no_download(llm, size, tmp_path):
    store = Store(llm, Budget(ram_bytes=size), tmp_path)
    entry = made(store, llm, "a")
    made(store, llm, "b")  # leaves RAM
    store.delete(entry)
    with pytest.raises(InputError, match="does not exist any more: make it again"):
        store.opened_file(entry)


def test_budgets_too_small_are_refused(llm, size):
    with pytest.raises(InputError, match=r"the store may hold 10 in RAM: raise that limit"):
        Store(llm, Budget(ram_bytes=10))
    store = Store(llm, Budget(ram_bytes=size))
    with pytest.raises(InputError, match="tune fewer layers"):
        store.hold(source(llm, "a", recipe=Recipe(layers=(-1, -2))))


def test_low_rank_memories_count_what_they_take(llm, size):
    recipe = Recipe(learning_rate=1e-2, steps=1, parametrization="lora", rank=2)
    store = Store(llm)
    entry = store.hold(source(llm, "a", recipe=recipe))
    assert entry.ram_bytes == llm.memorize("a", recipe).size_bytes < size


def test_names_are_the_tenants_own(llm):
    store = Store(llm)
    a, b = made(store, llm, "a", name="n"), made(store, llm, "b")
    made(store, llm, "a", tenant="other", name="n")
    with pytest.raises(InputError, match="belongs to memory"):
        store.rename(b, "n")
    store.rename(a, "n")
    assert store.find("t", "n") is a
    assert store.find("nobody", "n") is None
    assert store.find("nobody", a.source.key) is None
