"""What the server does under load, and after it is killed: every answer against the one computed without a server.

    python -m bench.serving base            the same load on the untouched model alone
    python -m bench.serving mixed           methods mixed, the store's budget holding 5 of the 20 documents
    python -m bench.serving kills           the same, the server killed (kill -9) and restarted twice

50 clients in a closed loop, without pauses: each asks one of two questions about one of 20 documents of the embedded
world, with a method drawn at random, half of them streaming; one in ten leaves before the end. Greedy, so that an
answer is right when its digest is that of `FastMem.answer` for the same document, question and method; those are
computed before the load begins. Ceiling: the model steps all running rows at once, so with R rows and t seconds a
step no more than R / t tokens come out per second; the report states t.

Human-readable lines go to standard error; the last line of standard output is one JSON object.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import httpx2
import psutil

from bench.serving_clients import KEY, MAX_TOKENS, Question, Tally, client, digest
from bench.serving_process import Server
from fastmem import FastMem, Memory
from fastmem.tiny.world import examples

METHODS = {
    "base": ("base",),
    "mixed": ("base", "fastmem", "cad", "dola", "fastmem+cd", "fastmem+cad", "fastmem+dola"),
}


def say(text: str) -> None:
    """For people."""
    print(text, file=sys.stderr, flush=True)


def pool(documents: int, methods: tuple[str, ...]) -> list[Question]:
    """Every document with its own question and its neighbour's (which it does not answer)."""
    rows = examples("world_swap", "dev", documents)
    return [
        Question(row.context, rows[(i + k) % len(rows)].question, method)
        for i, row in enumerate(rows)
        for k in (0, 1)
        for method in methods
    ]


def offline(llm: FastMem, questions: list[Question]) -> dict[Question, str]:
    """Digest of the right answer to each, one by one, without a server."""
    memories: dict[str, Memory] = {}
    found = {}
    for one in questions:
        memory = None
        if one.method.startswith("fastmem"):
            memory = memories.get(one.document) or memories.setdefault(one.document, llm.memorize(one.document))
        answer = llm.answer(one.question, one.document, one.method, memory=memory, max_new_tokens=MAX_TOKENS)
        found[one] = digest(answer.text)
    return found


def expected(llm: FastMem, questions: list[Question], kept: Path | None) -> dict[Question, str]:
    """`offline`, from the file `kept` where an earlier run has left it there for the same base."""
    base = llm.base().digest
    if kept is not None and kept.is_file():
        found = json.loads(kept.read_text())
        right = {Question(*one): answer for *one, answer in found["answers"]}
        if found["base"] == base and set(questions) <= right.keys():
            return right
    say(f"computing {len(questions)} answers without a server ...")
    right = offline(llm, questions)
    if kept is not None:
        answers = [[one.document, one.question, one.method, answer] for one, answer in right.items()]
        kept.write_text(json.dumps({"base": base, "answers": answers}))
    return right


def server_of(model: str | None, folder: Path, memory_bytes: int, rows: int) -> Server:
    """A server with room for 5 memories."""
    options = ["--ram-bytes", str(5 * memory_bytes), "--device-bytes", str(5 * memory_bytes), "--rows", str(rows)]
    options += ["--template", "question", "--name", "bench", "--prefix-bytes", str(64 * 2**20)]
    return Server([*options, *(["--model", model] if model else [])], folder)


async def watch(server: Server, tally: Tally, started: float, until: float) -> None:
    """The process's resident memory, every second."""
    while time.monotonic() < until:
        if server.process.poll() is None:
            tally.rss_mb.append((time.monotonic() - started, server.rss_mb()))
        await asyncio.sleep(1)


async def kill_twice(server: Server, started: float, seconds: float, checks: list[dict]) -> None:
    """kill -9 after a third and after two thirds; what was stored before must be there after, and whole."""
    for third in (1, 2):
        await asyncio.sleep(max(started + seconds * third / 3 - time.monotonic(), 0))
        before = await asyncio.to_thread(server.listed, KEY)
        server.kill()
        restart = time.monotonic()
        await asyncio.to_thread(server.start)
        after = await asyncio.to_thread(server.listed, KEY)
        checks.append({"before": len(before), "missing": len(before - after), "down_s": time.monotonic() - restart})


async def load(server: Server, questions: list, right: dict, clients: int, seconds: float, kills: bool) -> tuple:
    """Run the clients; (tally, what the restarts found, seconds it took)."""
    tally, checks, started = Tally(), [], time.monotonic()
    until = started + seconds
    tasks = [client(i, server.url, questions, right, tally, until) for i in range(clients)]
    tasks.append(watch(server, tally, started, until))
    if kills:
        tasks.append(kill_twice(server, started, seconds, checks))
    await asyncio.gather(*tasks)
    return tally, checks, time.monotonic() - started


def percentile(values: list[float], q: float) -> float:
    """Of unsorted values; 0 where there are none."""
    return statistics.quantiles(values, n=100, method="inclusive")[round(q) - 1] if len(values) > 1 else 0.0


def verified(folder: Path, llm: FastMem) -> tuple[int, int]:
    """(files that load for this model, files)."""
    paths, good = sorted(folder.glob("*.safetensors")), 0
    for path in paths:
        Memory.load(path, model=llm)  # raises where it is damaged
        good += 1
    return good, len(paths)


def metric(server: Server, name: str) -> float:
    """The sum of a metric's samples."""
    text = httpx2.get(f"{server.url}/metrics", timeout=60).text
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("phase", choices=("base", "mixed", "kills"))
    parser.add_argument("--model", help="folder or hub id; the embedded model if left out")
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--documents", type=int, default=20)
    parser.add_argument("--rows", type=int, default=16, help="answers the server decodes side by side")
    parser.add_argument("--expected", type=Path, help="file to keep the right answers in, for further runs")
    options = parser.parse_args()
    llm = FastMem.from_pretrained(options.model)
    questions = pool(options.documents, METHODS["base" if options.phase == "base" else "mixed"])
    right = expected(llm, questions, options.expected)
    memory_bytes = llm.memorize(questions[0].document).size_bytes
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server = server_of(options.model, folder, memory_bytes, options.rows)
        try:
            say(f"{options.clients} clients for {options.seconds:g} s ...")
            running = load(server, questions, right, options.clients, options.seconds, options.phase == "kills")
            tally, checks, took = asyncio.run(running)
            cpu_seconds = sum(psutil.Process(server.process.pid).cpu_times()[:2])
            step_seconds = metric(server, "fastmem_step_seconds_sum") / max(
                metric(server, "fastmem_step_seconds_count"), 1
            )
            evictions, memorized = (
                metric(server, "fastmem_evictions_total"),
                metric(server, "fastmem_memorize_seconds_count"),
            )
            memorize_seconds = metric(server, "fastmem_memorize_seconds_sum") / max(memorized, 1)
        finally:
            server.stop()
        good, stored = verified(folder, llm)
    after_a_minute = [(at, rss) for at, rss in tally.rss_mb if at >= min(60, options.seconds / 2)]
    result = {
        "phase": options.phase,
        "seconds": round(took, 1),
        "load_average": round(os.getloadavg()[1], 1),
        "server_cpu_seconds": round(cpu_seconds, 1),
        "rows": options.rows,
        "clients": options.clients,
        "answers": tally.answers,
        "right": tally.right,
        "wrong": tally.wrong[:5],
        "left_early": tally.left_early,
        "disconnected": tally.disconnected,
        "statuses": {str(k): v for k, v in tally.statuses.items()},
        "first_token_s": {"p50": round(percentile(tally.first, 50), 3), "p95": round(percentile(tally.first, 95), 3)},
        "whole_answer_s": {"p50": round(percentile(tally.whole, 50), 3), "p95": round(percentile(tally.whole, 95), 3)},
        "longest_silence_s": round(tally.longest_silence, 2),
        "tokens_per_second": round(tally.tokens / took, 1),
        "answers_per_second": round(tally.answers / took, 1),
        "prompt_tokens_reused": round(tally.cached / max(tally.cached + tally.read, 1), 3),
        "step_ms": round(step_seconds * 1e3, 2),
        "evictions": int(evictions),
        "memorized": int(memorized),
        "memorize_ms": round(memorize_seconds * 1e3, 1),
        "rss_mb": {
            "after_first_minute": round(after_a_minute[0][1], 1),
            "end": round(after_a_minute[-1][1], 1),
            "slope_per_minute": round(60 * statistics.linear_regression(*zip(*after_a_minute, strict=True)).slope, 2),
            "most": round(max((rss for _, rss in tally.rss_mb), default=0), 1),
            "every_20_s": [round(rss) for _, rss in tally.rss_mb[::20]],
        },
        "restarts": checks,
        "files_verified": f"{good} of {stored}",
    }
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
