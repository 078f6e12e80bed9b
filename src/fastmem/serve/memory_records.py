"""What is known about a memory without reading it: the JSON file beside its safetensors file.

Both are written to a temporary file, flushed and renamed, the memory first: a memory without a record was not finished
and is not found again.
"""

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fastmem.core.files import replacing
from fastmem.core.memory import Memory, Recipe
from fastmem.prompts import Tokens

RECORD_VERSION = 2


@dataclass(frozen=True)
class Wish:
    """A memory that is wanted: found if it exists, made from `tokens` otherwise.

    key: its id, in which the tenant, the base, the recipe and the tokens are hashed. name: what its maker calls it.
    about: what else its record says. tokens: None where only one that exists will do.
    """

    key: str
    tenant: str
    recipe: Recipe
    tokens: Tokens | None = None
    name: str | None = None
    about: Mapping[str, Any] = field(default_factory=dict)


def record_of(wish: Wish, memory: Memory) -> dict[str, Any]:
    """The record of a memory that was just made."""
    return {
        "version": RECORD_VERSION,
        "id": wish.key,
        "tenant": wish.tenant,
        "name": wish.name,
        "created": int(time.time()),
        "base": memory.base.digest,
        "tokenizer": memory.details.get("tokenizer_sha256"),
        "bytes": memory.size_bytes,
        "recipe": asdict(wish.recipe) | {"layers": list(wish.recipe.layers)},
        "trace": [asdict(step) for step in memory.trace],
        "stopped": memory.stopped,
        "about": dict(wish.about),
    }


def write_record(record: Mapping[str, Any], memory_path: Path) -> None:
    """The record of the memory at `memory_path`, beside it. A kill at any instant leaves the old or the new one."""
    with replacing(memory_path.with_suffix(".json")) as temporary:
        temporary.write(json.dumps(record).encode())


def stored(folder: Path) -> Iterator[tuple[Wish, dict[str, Any], Path]]:
    """(wish without tokens, record, memory file) of all that was finished in `folder`, in the order it was made.

    Records of another version, damaged ones and those without a memory are passed over.
    """
    found = []
    for path in folder.glob("mem-*.json"):
        memory_path = path.with_suffix(".safetensors")
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            if record["version"] != RECORD_VERSION or record["id"] != path.stem or not memory_path.is_file():
                continue
            recipe = Recipe(**record["recipe"])
            wish = Wish(record["id"], record["tenant"], recipe, name=record["name"], about=record["about"])
            found.append((record["created"], wish.key, wish, record, memory_path))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    for _, _, wish, record, memory_path in sorted(found, key=lambda one: one[:2]):
        yield wish, record, memory_path
