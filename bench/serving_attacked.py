"""What 50 clients of a server notice of two that attack it all the while.

    python -m bench.serving_attacked --seconds 300 --pairs 3 --rate 2.5

Runs without and with the attackers of `serving_attackers.py` alternate, each with a server of its own. The clients ask
as those of `serving.py`, each with a key and so with memories of its own, at a fixed rate, whatever the server does:
their times count from when a question was due. Every complete answer is compared with the one computed without a
server. With the rights to mount one, the store lies on a small disk of its own that the attackers fill for a fifth of
the time. Human-readable lines go to standard error; the last line of standard output is one JSON object.
"""

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2

from bench.serving import METHODS, expected, percentile, pool, say, watch
from bench.serving_clients import KEY, Question, Tally, ask, body_of
from bench.serving_health import attackers
from bench.serving_process import Server
from fastmem import FastMem

DISK_BYTES = 400_000_000
# Room for those in use, and soon full, so that resident memory does not grow with what is kept for later.
MEMORIES, PREFIX_BYTES = 48, 32 * 2**20


@contextmanager
def small_disk() -> Iterator[tuple[Path, bool]]:
    """(a folder for the store, whether it is a small disk of its own)."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", folder]
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
        try:
            yield Path(folder), mounted
        finally:
            if mounted:
                subprocess.run(["umount", folder], check=True)


async def client(number: int, url: str, right: dict[Question, str], tally: Tally, options: argparse.Namespace) -> None:
    """One client with a key of its own: a question every `clients` / `rate` seconds, answered or not."""
    draw, questions, started = random.Random(number), list(right), time.perf_counter()
    headers, running = {"authorization": f"Bearer {KEY}-{number}"}, []
    async with httpx2.AsyncClient(base_url=url, headers=headers, timeout=180) as http:
        for turn in range(int(options.seconds * options.rate / options.clients)):
            due = started + (number + turn * options.clients) / options.rate
            await asyncio.sleep(max(due - time.perf_counter(), 0))
            one, stream = draw.choice(questions), draw.random() < 0.5
            running.append(asyncio.create_task(answered(http, body_of(one, stream), one, right[one], tally, due)))
        await asyncio.gather(*running)


async def answered(
    http: httpx2.AsyncClient, body: dict, one: Question, expected: str, tally: Tally, due: float
) -> None:
    """One question; a connection that breaks is counted."""
    try:
        await ask(http, body, one, expected, False, tally, due)
    except httpx2.TransportError:
        tally.disconnected += 1


async def load(server: Server, right: dict[Question, str], options: argparse.Namespace) -> Tally:
    """All clients; the resident memory every second."""
    tally, started = Tally(), time.monotonic()
    clients = (client(number, server.url, right, tally, options) for number in range(options.clients))
    await asyncio.gather(watch(server, tally, started, started + options.seconds), *clients)
    return tally


def run(memory_bytes: int, right: dict[Question, str], options: argparse.Namespace, attacked: bool) -> dict:
    """One run with a server of its own. Times in seconds."""
    minute = options.seconds / 5
    with small_disk() as (folder, is_small):
        room = str(MEMORIES * memory_bytes)
        limits = ["--rows", str(options.rows), "--ram-bytes", room, "--device-bytes", room]
        limits += ["--disk-bytes", str(DISK_BYTES // 2), "--prefix-bytes", str(PREFIX_BYTES)]
        server = Server(["--name", "bench", "--template", "question", *limits], folder)
        try:
            filling = ["--fill", str(folder), "--fill-from", str(2 * minute), "--fill-until", str(3 * minute)]
            process = attackers(server.url, options.seconds, *(filling if is_small else ())) if attacked else None
            tally = asyncio.run(load(server, right, options))
            attacks = json.loads(process.communicate()[0]) if process is not None else None
        finally:
            server.stop()
    second, last = ([rss for at, rss in tally.rss_mb if low <= at < low + minute] for low in (minute, 4 * minute))
    return {
        "answers": tally.answers,
        "right": tally.right,
        "wrong": tally.wrong[:3],
        "disconnected": tally.disconnected,
        "statuses": {str(status): count for status, count in tally.statuses.items()},
        "p50": percentile(tally.whole, 50),
        "p95": percentile(tally.whole, 95),
        "rss_mb_second_minute": statistics.median(second),
        "rss_mb_last_minute": statistics.median(last),
        "rss_mb_every_10_s": [round(rss) for _, rss in tally.rss_mb[::10]],
        "full_disk": attacked and is_small,
        "attacks": attacks,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--rate", type=float, default=2.5, help="questions per second of all clients together")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--documents", type=int, default=20)
    parser.add_argument("--rows", type=int, default=16, help="answers the server decodes side by side")
    parser.add_argument("--expected", type=Path, help="file to keep the right answers in, for further runs")
    options = parser.parse_args()
    llm = FastMem.from_pretrained()
    right = expected(llm, pool(options.documents, METHODS["mixed"]), options.expected)
    memory_bytes = llm.memorize(next(iter(right)).document).size_bytes
    runs: dict[str, list[dict]] = {"quiet": [], "attacked": []}
    for number in range(options.pairs):
        for name, found in runs.items():
            found.append(run(memory_bytes, right, options, name == "attacked"))
            one = found[-1]
            growth = one["rss_mb_last_minute"] / one["rss_mb_second_minute"] - 1
            say(
                f"pair {number + 1}, {name}: {one['right']} of {one['answers']} right, {one['statuses']}, p50 "
                f"{one['p50']:.2f}, p95 {one['p95']:.2f} s, resident memory {growth:+.1%}"
            )
    ratios = [a["p95"] / q["p95"] for q, a in zip(runs["quiet"], runs["attacked"], strict=True)]
    each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    say(f"p95 with attackers / without: {each}; median {statistics.median(ratios):.2f}")
    result = {"rate": options.rate, "load_average": os.getloadavg()[1], "p95_ratios": ratios, "runs": runs}
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
