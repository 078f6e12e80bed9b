"""Two clients that send a server the worst it accepts and the worst it refuses, one thing after the other.

    python bench/serving_attackers.py URL --seconds 300 [--fill FOLDER --fill-from 120 --fill-until 180]

Long stop strings, documents at and over every limit, floods of token ids, deep and wide JSON, large schemas, whole
memories and streams whose client leaves, half-open connections, slow bodies; with `--fill`, a disk that is full for a
while. A process of its own, so that the clients whose answers are timed do not wait for it. The last line of standard
output is one JSON object: what was sent how often, and the statuses that came back.
"""

import argparse
import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from urllib.parse import urlsplit

KEY = "attacker"
MEGABYTE = 2**20
WORDS = ("ferry", "pier", "harbour", "nine", "lamp", "river", "mayor", "glass", "seven", "letter")


def http(path: str, body: bytes, announced: int | None = None) -> bytes:
    """A whole request. announced: the length in its header, if not the true one."""
    size = len(body) if announced is None else announced
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\nConnection: close\r\n"
    return f"{head}Content-Type: application/json\r\nContent-Length: {size}\r\n\r\n".encode() + body


def chat(**fields: object) -> bytes:
    """A chat request with these fields."""
    body = {
        "model": "bench",
        "messages": [{"role": "user", "content": "Who is the mayor?"}],
        "max_tokens": 64,
    } | fields
    return http("/v1/chat/completions", json.dumps(body).encode())


def document(words: int, draw: random.Random) -> list[dict]:
    """A document that the server has not seen yet."""
    return [{"text": " ".join(draw.choices(WORDS, k=words)) + "."}]


WIDE = {"type": "object", "properties": {f"k{i}": {"enum": [f"v{j}" for j in range(20)]} for i in range(130)}}
ACCEPTED: dict[str, Callable[[random.Random], bytes]] = {
    "16 stop strings of 256 characters": lambda draw: chat(
        stop=["a" * (240 + i) for i in range(16)], max_tokens=200, ignore_eos=True, documents=document(20, draw)
    ),
    "16 answers with log-probabilities": lambda draw: chat(n=16, logprobs=True, top_logprobs=20, max_tokens=40),
    "100 steps on a long document": lambda draw: http(
        "/v1/memories",
        json.dumps({"documents": document(150, draw), "fastmem": {"recipe": {"steps": 100}}}).encode(),
    ),
    "two contrasts over a long document": lambda draw: chat(
        documents=document(150, draw), fastmem={"method": "fastmem+adacad"}
    ),
    "a large schema": lambda draw: chat(
        response_format={"type": "json_schema", "json_schema": {"name": f"s{draw.random()}", "schema": WIDE}}
    ),
    "a schema with nested repetitions": lambda draw: chat(
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"pattern": "(a+)+" * 500}}}
    ),
}
# Equal bytes every time, so that making them costs this process nothing.
REFUSED: dict[str, bytes] = {
    "a stop string of 100,000 characters": chat(stop="ab" * 50_000),
    "a document of 3 MB": chat(documents=[{"text": "a" * 3 * MEGABYTE}]),
    "a document as long as characters allow": chat(documents=[{"text": "the " * 2500}]),
    "a document without spaces": chat(documents=[{"text": "a" * 8000}]),
    "a body of 20 MB": http("/v1/chat/completions", b" " * 20 * MEGABYTE),
    "260,000 token ids": http("/v1/completions", json.dumps({"model": "bench", "prompt": [7] * 260_000}).encode()),
    "a JSON list 100,000 deep": http("/v1/chat/completions", b"[" * 100_000),
    "600,000 fields": http("/v1/chat/completions", b"{" + b'"a":1,' * 600_000 + b'"b":1}'),
    "a thousand messages": chat(messages=[{"role": "user", "content": "word " * 200}] * 1000),
    "a recipe that is none": chat(documents=[{"text": "a"}], fastmem={"recipe": {"steps": 10**9}}),
}


class Attackers:
    """What is attacked, and what was seen."""

    def __init__(self, url: str, seconds: float):
        parts = urlsplit(url)
        self.address = (parts.hostname, parts.port)
        self.until = time.monotonic() + seconds
        self.sent: dict[str, Counter] = {}

    async def run(self, clients: int) -> None:
        """All attackers, until the time is over."""
        await asyncio.gather(*(self._client(random.Random(number)) for number in range(clients)))

    async def _client(self, draw: random.Random) -> None:
        others: dict[str, Callable[[random.Random], Awaitable[str]]] = {
            "a stream whose client leaves": self._leave,
            "50 half-open connections": self._half_open,
            "a body that does not end": self._slow_body,
        }
        while time.monotonic() < self.until:
            name = draw.choice(list(draw.choice([ACCEPTED, REFUSED, others])))
            seen = self.sent.setdefault(name, Counter())
            try:
                if name in others:
                    seen[await others[name](draw)] += 1
                else:
                    seen[await self._send(ACCEPTED[name](draw) if name in ACCEPTED else REFUSED[name])] += 1
            except OSError as error:  # cut off while it still sends, which is right for what is too large
                seen[type(error).__name__] += 1

    async def _send(self, request: bytes) -> str:
        """The status, after the whole answer was read."""
        reader, writer = await asyncio.open_connection(*self.address)
        try:
            writer.write(request)
            status = (await reader.readline()).split(b" ")[1:2]
            while await reader.read(MEGABYTE):
                pass
            return status[0].decode() if status else "closed"
        finally:
            writer.close()

    async def _leave(self, draw: random.Random) -> str:
        reader, writer = await asyncio.open_connection(*self.address)
        writer.write(chat(stream=True, documents=document(60, draw), fastmem={"method": "fastmem"}, max_tokens=200))
        await reader.read(draw.choice([1, 400, 2000]))
        writer.transport.abort()
        return "left"

    async def _half_open(self, draw: random.Random) -> str:
        open_ones = [await asyncio.open_connection(*self.address) for _ in range(50)]
        for _, writer in open_ones:
            writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nX-")
        await asyncio.sleep(2)
        for _, writer in open_ones:
            writer.transport.abort()
        return "left"

    async def _slow_body(self, draw: random.Random) -> str:
        _, writer = await asyncio.open_connection(*self.address)
        writer.write(http("/v1/chat/completions", b'{"model": "bench"', announced=5000))
        await asyncio.sleep(1)
        writer.transport.abort()
        return "left"


async def fill(folder: Path, begin: float, end: float) -> int:
    """Take all room on the disk of `folder` from `begin` to `end`, in seconds from now; the bytes it took."""
    await asyncio.sleep(begin)
    path, taken = folder / "filling", 0
    with path.open("wb", buffering=0) as file:
        try:
            for size in (MEGABYTE, 4096, 1):
                try:
                    while True:
                        taken += file.write(b"\0" * size)
                except OSError:
                    continue
            await asyncio.sleep(end - begin)
        finally:
            path.unlink()
    return taken


async def attack(options: argparse.Namespace) -> dict:
    """The report."""
    attackers = Attackers(options.url, options.seconds)
    work = [attackers.run(options.clients)]
    if options.fill is not None:
        work.append(fill(options.fill, options.fill_from, options.fill_until))
    done = await asyncio.gather(*work)
    return {"sent": attackers.sent, "filled_bytes": done[1] if options.fill is not None else 0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--fill", type=Path, help="folder on the disk to fill")
    parser.add_argument("--fill-from", type=float, default=120)
    parser.add_argument("--fill-until", type=float, default=180)
    print(json.dumps(asyncio.run(attack(parser.parse_args()))), flush=True)


if __name__ == "__main__":
    main()
