"""A server with thousands of stored memories: how long it takes to start, to list them, to find one, to use one.

    python -m bench.serving_memories --memories 5000

One memory is made; the others are records of their own beside hard links to its weights, which is what the server sees
of a memory until it is used. Starts with the empty store and with the full one alternate. Human-readable lines go to
standard error; the last line of standard output is one JSON object.
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import httpx2

from bench.serving_process import Server
from fastmem import FastMem
from fastmem.memory.recipe import Recipe
from fastmem.serve.memory_records import new_record, write_record
from fastmem.serve.memory_source import MemorySource
from fastmem.serve.tenants import Keys

KEY = "bench"
DOCUMENT = "The ferry leaves at nine from the east pier."


def fill(folder: Path, count: int) -> None:
    """Store `count` memories of one tenant."""
    llm = FastMem.from_pretrained()
    memory = llm.memorize(DOCUMENT, recipe := Recipe(steps=1))
    tenant = Keys().tenant(KEY)
    assert tenant is not None
    about = {"titles": ["Notice"], "tokens": 12, "text_sha256": "0" * 64}
    source = MemorySource("", tenant.salted(None), recipe, name=None, about=about)
    first = folder / "weights"
    memory.save(first)
    for number in range(count):
        path = folder / f"mem-{number:032x}.safetensors"
        path.hardlink_to(first)
        write_record(new_record(replace(source, key=path.stem, name=f"notice-{number}"), memory), path)
    first.unlink()


def milliseconds(http: httpx2.Client, method: str, path: str, **options: object) -> tuple[float, dict]:
    """(how long a request took, its answer)."""
    began = time.perf_counter()
    answer = http.request(method, path, **options)
    took = 1e3 * (time.perf_counter() - began)
    answer.raise_for_status()
    return took, answer.json()


def start_seconds(folder: Path) -> tuple[Server, float]:
    """(a server on this store, how long it took until it answered)."""
    began = time.perf_counter()
    server = Server(["--name", "bench", "--template", "question"], folder)
    return server, time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memories", type=int, default=5000)
    parser.add_argument("--starts", type=int, default=3)
    parser.add_argument("--looks", type=int, default=300)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        empty, full = Path(name) / "empty", Path(name) / "full"
        for folder in (empty, full):
            folder.mkdir()
        fill(full, options.memories)
        starts: dict[str, list[float]] = {"empty": [], "full": []}
        for number in range(options.starts):
            for folder, found in ((empty, starts["empty"]), (full, starts["full"])):
                server, took = start_seconds(folder)
                found.append(took)
                if folder is empty or number < options.starts - 1:
                    server.stop()
        headers = {"authorization": f"Bearer {KEY}"}
        try:
            with httpx2.Client(base_url=server.url, headers=headers, timeout=60) as http:
                draw, looks = random.Random(0), []
                for _ in range(options.looks):
                    number = draw.randrange(options.memories)
                    reference = draw.choice([f"notice-{number}", f"mem-{number:032x}"])
                    looks.append(milliseconds(http, "GET", f"/v1/memories/{reference}")[0])
                pages, seen, after = [], set(), {}
                while True:
                    took, page = milliseconds(http, "GET", "/v1/memories", params={"limit": 100} | after)
                    pages.append(took)
                    seen |= {memory["id"] for memory in page["data"]}
                    if not page["has_more"]:
                        break
                    after = {"after": page["last_id"]}
                body = {"model": "notice-7", "messages": [{"role": "user", "content": "When?"}], "max_tokens": 1}
                used = milliseconds(http, "POST", "/v1/chat/completions", json=body)[0]
        finally:
            server.stop()
    look_up = {"p50": statistics.median(looks), "p99": statistics.quantiles(looks, n=100)[98]}
    page_of_100 = {"p50": statistics.median(pages), "most": max(pages)}
    medians = {store: statistics.median(found) for store, found in starts.items()}
    result = {
        "memories": options.memories,
        "listed": len(seen),
        "start_seconds": starts,
        "longer_start_seconds": medians["full"] - medians["empty"],
        "look_up_ms": look_up,
        "page_of_100_ms": page_of_100,
        "first_use_ms": used,
    }
    print(
        f"{len(seen)} of {options.memories} listed; start {medians['full']:.2f} s, with none "
        f"{medians['empty']:.2f} s; look-up p99 {look_up['p99']:.1f} ms; page {page_of_100['p50']:.1f} ms; "
        f"first answer {used:.0f} ms",
        file=sys.stderr,
    )
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
