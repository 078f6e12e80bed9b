"""The rows of `world_free`: questions about short texts written by hand (`free.jsonl`), the first half for `dev`."""

import json
from functools import cache
from pathlib import Path

from fastmem.tiny.world.world_formats import UNANSWERABLE, Example

FILE = Path(__file__).with_name("free.jsonl")


@cache
def written_by_hand() -> tuple[Example, ...]:
    """All rows, in the order of the file."""
    lines = FILE.read_text(encoding="utf-8").splitlines() if FILE.exists() else []
    rows = [json.loads(line) for line in lines if line.strip()]
    return tuple(
        Example(f"world_free/{number:03}", row["context"], row["question"], _answers(row), ())
        for number, row in enumerate(rows, 1)
    )


def _answers(row: dict[str, object]) -> tuple[str, ...]:
    found = row.get("answers", row.get("answer"))
    texts = [found] if isinstance(found, str) else list(found or [UNANSWERABLE])  # type: ignore[call-overload]
    return tuple(map(str, texts))
