"""The record of a stored memory: a JSON file beside its safetensors file, to list memories without reading them.

Both files are replaced atomically, the memory first. A memory without a record was not finished and is ignored.
"""

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastmem.atomic_write import replacing
from fastmem.memory.memory import Memory
from fastmem.memory.recipe import Recipe
from fastmem.serve.memory_source import MemorySource

RECORD_VERSION = 2


def new_record(source: MemorySource, memory: Memory) -> dict[str, Any]:
    """The record of a memory that was just made from `source`."""
    return {
        "version": RECORD_VERSION,
        "id": source.key,
        "tenant": source.tenant,
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
        temporary.write(json.dumps(record).encode())


def stored_memories(folder: Path) -> Iterator[tuple[MemorySource, dict[str, Any], Path]]:
    """(source without tokens, record, memory file) of every finished memory in `folder`, the oldest first.

    Ignores records of another version, damaged records and records without a memory.
    """
    found = []
    for path in folder.glob("mem-*.json"):
        memory_path = path.with_suffix(".safetensors")
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            if record["version"] != RECORD_VERSION or record["id"] != path.stem or not memory_path.is_file():
                continue
            recipe = Recipe(**record["recipe"])
            source = MemorySource(record["id"], record["tenant"], recipe, name=record["name"], about=record["about"])
            found.append((record["created"], source.key, source, record, memory_path))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    for _, _, source, record, memory_path in sorted(found, key=lambda item: item[:2]):
        yield source, record, memory_path
