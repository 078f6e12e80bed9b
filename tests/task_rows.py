"""Made-up rows in every form that tasks are published in, and a function that writes them to a file."""

import csv
import json
from pathlib import Path

from fastmem.lab.tasks import Example, load

HUB_ROW = {
    "question": "who keeps the light on orvel point",
    "org_context": "<P> The light is kept by Ada Quill . </P>",
    "org_answer": ["Ada Quill", "Quill"],
    "sub_context": "<P> The light is kept by Jon Marsh . </P>",
    "sub_answer": ["Jon Marsh"],
}
PAPER_ROW = {
    "input": "who keeps the light on orvel point",
    "context": "The light is kept by Ada Quill .",
    "answer": "Ada Quill",
    "sub_context": "The light is kept by Jon Marsh .",
    "sub_answer": "Jon Marsh",
}
HOTPOT_ROW = {
    "id": "5a7",
    "question": 'Who wrote the book called "Fog".',
    "answer": "no",
    "context": {"title": ["Fog", "Ada"], "sentences": [["Fog is a book.", "It is grey."], ["Ada wrote it."]]},
}
TRAP_ROW = {
    "prompt": 'Write a quote that ends in the word "stew": Coward: one who eats',
    "classes": "[' stew.', ' alone!']",
    "answer_index": "0",
}


def write(path: Path, rows: list[dict]) -> Path:
    """Write `rows` in the format of the suffix of `path`."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def one(name: str, path: Path, rows: list[dict], **options: bool) -> Example:
    (example,) = load(name, write(path, rows), **options).examples
    return example
