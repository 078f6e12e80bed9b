"""The record of a stored memory: a JSON file beside its safetensors file, to list memories without reading them.

Both files are replaced atomically, the memory first. A record holds a digest of itself; one that does not agree with
it, or does not make sense, is set aside with its memory in `damaged/` and never keeps the others from loading. So is a
memory without a record, which was not finished or is somebody's download. Files with other names than those of the
store are left alone.
"""

import hashlib
import json
import logging
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from fastmem.atomic_write import replacing
from fastmem.errors import InputError
from fastmem.memory.memory import Memory
from fastmem.memory.recipe import Recipe
from fastmem.serve.logs import cause
from fastmem.serve.memory_source import MemorySource
from fastmem.serve.schemas import MEMORY_NAME

RECORD_VERSION = 3  # 2 had no digest
DAMAGED = "damaged"
_KEY = re.compile(r"mem-[0-9a-f]{32}")
_PART = re.compile(r"\.mem-[0-9a-f]{32}\.(json|safetensors)\.\d+-[0-9a-f]{8}\.tmp")  # see `atomic_write.py`

log = logging.getLogger("fastmem")


def new_record(source: MemorySource, memory: Memory) -> dict[str, Any]:
    """The record of a memory that was just made from `source`."""
    return {
        "version": RECORD_VERSION,
        "id": source.key,
        "tenant": source.tenant,
        "account": source.account,
        "name": source.name,
        "created": int(time.time()),
        "base": memory.base.digest,
        "tokenizer": memory.details.get("tokenizer_sha256"),
        "bytes": memory.size_bytes,
        "recipe": asdict(source.recipe) | {"layers": list(source.recipe.layers)},
        "trace": [asdict(step) for step in memory.trace],
        "stopped": memory.stopped,
        "about": dict(source.about),
    }


def write_record(record: Mapping[str, Any], memory_path: Path) -> None:
    """Write the record of the memory at `memory_path` beside it. Errors: `OSError`."""
    with replacing(memory_path.with_suffix(".json")) as temporary:
        record = dict(record) | {"version": RECORD_VERSION}
        temporary.write(json.dumps(record | {"digest": _digest(record)}).encode())


def stored_memories(folder: Path) -> Iterator[tuple[MemorySource, dict[str, Any], Path]]:
    """(source without tokens, record, memory file) of every finished memory in `folder`, the oldest first.

    Ignores records of another version and records without a memory; sets damaged ones aside.
    """
    found = []
    for path in folder.glob("mem-*.json"):
        if not _KEY.fullmatch(path.stem):
            continue
        memory_path = path.with_suffix(".safetensors")
        try:
            record = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
            if isinstance(record["version"], int) and record["version"] not in (2, RECORD_VERSION):
                continue
            source = _checked(record, path.stem)
            record.pop("digest", None)
        except Exception as error:  # whatever somebody wrote into a file
            _set_aside(f"the record {path.name} is damaged ({cause(error)})", path, memory_path)
            continue
        if memory_path.is_file():
            found.append((record["created"], source.key, source, record, memory_path))
    for _, _, source, record, memory_path in sorted(found, key=lambda item: item[:2]):
        yield source, record, memory_path


def clear_leftovers(folder: Path) -> None:
    """Clear away what a killed server or a full disk left: parts of files, and weights without a record.

    The latter are set aside, as they can also be downloads, which have the same names. Errors: `OSError`.
    """
    for path in folder.glob(".mem-*.tmp"):
        if _PART.fullmatch(path.name):
            path.unlink(missing_ok=True)
    for path in folder.glob("mem-*.safetensors"):
        if _KEY.fullmatch(path.stem) and not path.with_suffix(".json").exists():
            _set_aside(f"{path.name} has no record", path)


def _refuse(constant: str) -> None:
    raise InputError(f"the record has {constant}, which is not a number.")


def _digest(record: Mapping[str, Any]) -> str:
    content = {key: value for key, value in record.items() if key != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _checked(record: dict[str, Any], key: str) -> MemorySource:
    """The source of a record that is as it was written. Errors: `InputError`, and whatever a strange record causes."""
    if record["id"] != key or (record["version"] == RECORD_VERSION and record["digest"] != _digest(record)):
        raise InputError("the record is not as it was written.")
    texts = [record[field] for field in ("id", "tenant", "base")]
    name, about = record["name"], record["about"]
    if not all(isinstance(text, str) for text in texts) or not isinstance(record["created"], int):
        raise InputError("a field of the record has another type.")
    if name is not None and not re.fullmatch(MEMORY_NAME, name):
        raise InputError("the name in the record is not a valid name.")
    if not isinstance(record["trace"], list) or not {"titles", "tokens", "text_sha256"} <= about.keys():
        raise InputError("the record is not complete.")
    if not isinstance(record["bytes"], int) or not {"tokenizer", "stopped"} <= record.keys():
        raise InputError("the record is not complete.")
    account = str(record.get("account", ""))
    recipe = _recipe(json.dumps(record["recipe"]))
    return MemorySource(key, record["tenant"], recipe, name=name, about=about, account=account)


@lru_cache(maxsize=256)
def _recipe(fields: str) -> Recipe:
    """The recipe of these fields, as JSON. Kept, since most memories of a store have the same one, and to check it
    takes as long as to read the rest of a record."""
    return Recipe(**json.loads(fields))


def _set_aside(reason: str, *files: Path) -> None:
    """Move files that the store cannot use to where they harm nobody."""
    try:
        (files[0].parent / DAMAGED).mkdir(exist_ok=True)
        for file in files:
            if file.exists():
                file.replace(file.parent / DAMAGED / file.name)
        log.warning("%s and was set aside in %s/.", reason, DAMAGED)
    except OSError as problem:
        log.warning("%s and could not be moved: %s", reason, cause(problem))
