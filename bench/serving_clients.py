"""The clients of `serving.py`: what one asks, how an answer is checked, what is counted."""

import asyncio
import collections
import hashlib
import json
import random
import time
from dataclasses import asdict, dataclass, field

import httpx2

MAX_TOKENS = 40
KEY = "bench"


@dataclass(frozen=True)
class Question:
    """One thing that may be asked: a document, a question about it, a method."""

    document: str
    question: str
    method: str


@dataclass
class Tally:
    """What came of the load. Times in seconds."""

    answers: int = 0
    right: int = 0
    left_early: int = 0
    tokens: int = 0
    statuses: collections.Counter = field(default_factory=collections.Counter)
    wrong: list = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    cached: int = 0
    read: int = 0
    disconnected: int = 0
    rss_mb: list[tuple[float, float]] = field(default_factory=list)
    heard: float | None = None
    longest_silence: float = 0.0

    def hear(self) -> None:
        """Something came from the server: how long had no client heard anything?"""
        now = time.perf_counter()
        self.longest_silence = max(self.longest_silence, now - (self.heard or now))
        self.heard = now


def digest(text: str) -> str:
    """SHA-256 of an answer's text."""
    return hashlib.sha256(text.encode()).hexdigest()


def body_of(one: Question, stream: bool) -> dict:
    """The body of a chat request."""
    body = {
        "model": "bench",
        "messages": [{"role": "user", "content": one.question}],
        "documents": [{"text": one.document}],
        "max_tokens": MAX_TOKENS,
        "stream": stream,
        "fastmem": {"method": one.method},
    }
    return body | ({"stream_options": {"include_usage": True}} if stream else {})


async def client(
    number: int, url: str, questions: list[Question], right: dict[Question, str], tally: Tally, until: float
) -> None:
    """One client: ask, check, ask again."""
    draw = random.Random(number)
    headers = {"authorization": f"Bearer {KEY}"}
    async with httpx2.AsyncClient(base_url=url, headers=headers, timeout=120) as http:
        while time.monotonic() < until:
            one = draw.choice(questions)
            stream, leave = draw.random() < 0.5, draw.random() < 0.1
            body = body_of(one, stream or leave)
            try:
                await ask(http, body, one, right[one], leave, tally)
            except httpx2.TransportError:  # counted; only the runs with kills may have any
                tally.disconnected += 1
                await asyncio.sleep(0.2)


async def ask(
    http: httpx2.AsyncClient,
    body: dict,
    one: Question,
    expected: str,
    leave: bool,
    tally: Tally,
    due: float | None = None,
) -> None:
    """One request, checked and counted. due: from when its times count, on the clock `perf_counter`; None: now."""
    started, first, texts, usage = time.perf_counter() if due is None else due, None, [], None
    if body["stream"]:
        async with http.stream("POST", "/v1/chat/completions", json=body) as answer:
            tally.statuses[answer.status_code] += 1
            if answer.status_code != 200:
                return
            async for line in answer.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                tally.hear()
                chunk = json.loads(line[6:])
                usage = chunk.get("usage") or usage
                for choice in chunk.get("choices", ()):
                    first = first or time.perf_counter()
                    texts.append(choice["delta"].get("content") or "")
                if leave:
                    tally.left_early += 1
                    return
    else:
        answer = await http.post("/v1/chat/completions", json=body)
        tally.hear()
        tally.statuses[answer.status_code] += 1
        if answer.status_code != 200:
            return
        found = answer.json()
        usage = found["usage"]
        texts.append(found["choices"][0]["message"]["content"])
    if usage is None:  # a stream that broke off: the server was killed
        raise httpx2.ReadError("the stream ended before its usage")
    tally.answers += 1
    tally.whole.append(time.perf_counter() - started)
    if first is not None:
        tally.first.append(first - started)
    tally.tokens += usage["completion_tokens"]
    tally.cached += usage["prompt_tokens_details"]["cached_tokens"]
    tally.read += usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"]
    if digest("".join(texts)) == expected:
        tally.right += 1
    else:
        tally.wrong.append({**asdict(one), "answer": "".join(texts)})
