"""A real vLLM behind `fastmem serve --vllm`: are its answers those of `FastMem.answer`, and how many tokens a second?

    VLLM_ENV=vllm-env python -m bench.vllm              # or: make test-vllm VLLM_ENV=vllm-env

VLLM_ENV is an environment with vLLM (`docs/guides/adapters.md`). 16 clients ask two questions about each of 20
documents of the embedded world. When a quarter is answered, vLLM is killed and started again; clients that get 503
ask again after `Retry-After`. Every text is compared with `FastMem.answer` for the same low-rank memory; where one
differs, the gap between the two best logits at the first other token is shown. The exit code is 1 if fewer
than 38 of 40 are equal, if a difference is no tie, or if a memory was made twice.

Then the same questions are asked with 24 tokens to every answer, whatever they are: of vLLM behind FastMem, with
memories and without; of vLLM alone, without an adapter; and of FastMem's own engine.
"""

import argparse
import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx2

from bench.serving import pool
from bench.serving_clients import Question, body_of
from bench.serving_process import Server, wait_for_health
from fastmem import FastMem, Memory
from fastmem.auto_recipe import automatic_recipe
from fastmem.cli.output import say
from fastmem.memory.recipe import merged_recipe
from fastmem.prompts import question_prompt

CLIENTS = 16
TIMED_TOKENS = 24
TIE = 1e-3  # of two logits in float32 whose kernels differ
MODEL = Path(__file__).parents[1] / "src" / "fastmem" / "tiny" / "model"
# One thread for each process, as the machine has few cores. Without the compiler: what vLLM compiles for the
# log-probabilities takes more than a minute on a CPU.
VARIABLES = {
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "TORCH_COMPILE_DISABLE": "1",
}


class Vllm:
    """A vLLM of its own environment, on a free port of this machine. log: where it writes."""

    def __init__(self, environment: Path, log: Path):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = log
        options = (
            "--served-model-name base --dtype float32 --enforce-eager --enable-lora --max-lora-rank 8 --max-loras 8"
        )
        options += f" --max-cpu-loras 32 --max-model-len 512 --host 127.0.0.1 --port {self.port} --model {MODEL}"
        python = environment / "bin" / "python"
        self.command = [str(python), "-m", "vllm.entrypoints.openai.api_server", *options.split()]
        self.start()
        self.wait()

    def start(self) -> None:
        """Start, without waiting."""
        with self.log.open("ab") as file:
            self.process = subprocess.Popen(
                self.command, env=os.environ | VARIABLES, stdout=file, stderr=file, start_new_session=True
            )

    def wait(self) -> None:
        """Wait until it answers."""
        wait_for_health(self.url, self.process, f"vLLM ended at its start: {self.log} says why")

    def kill(self) -> None:
        """kill -9 of all its processes."""
        os.killpg(self.process.pid, 9)
        self.process.wait()


async def with_clients(questions: list[Question], ask: Callable[[Question], Awaitable[str]]) -> dict[Question, str]:
    """The answers to all questions, asked by so many clients."""
    left, found = list(questions), {}

    async def client() -> None:
        while left:
            one = left.pop()
            found[one] = await ask(one)

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return found


async def asked(
    url: str, questions: list[Question], statuses: Counter, change: dict, on_answer: Callable[[int], None]
) -> dict[Question, str]:
    """The texts of FastMem's server. change: of the bodies. on_answer: called with the number of answers so far."""
    async with httpx2.AsyncClient(base_url=url, timeout=300, limits=httpx2.Limits(max_connections=CLIENTS)) as http:

        async def ask(one: Question) -> str:
            while True:
                response = await http.post("/v1/chat/completions", json=body_of(one, False) | change)
                statuses[response.status_code] += 1
                if response.status_code == 200:
                    on_answer(statuses[200])
                    return response.json()["choices"][0]["message"]["content"]
                await asyncio.sleep(float(response.headers["retry-after"]))

        return await with_clients(questions, ask)


async def asked_alone(vllm: Vllm, llm: FastMem, questions: list[Question]) -> None:
    """Ask vLLM itself, with the same tokens and without an adapter."""
    async with httpx2.AsyncClient(base_url=vllm.url, timeout=300) as http:

        async def ask(one: Question) -> str:
            body = {"model": "base", "prompt": prompt_of(llm, one), "max_tokens": TIMED_TOKENS}
            found = await http.post("/v1/completions", json=body | {"ignore_eos": True, "temperature": 0})
            return found.json()["choices"][0]["text"]

        await with_clients(questions, ask)


def prompt_of(llm: FastMem, one: Question) -> list[int]:
    """The token ids of the question's prompt."""
    return llm.ids(question_prompt(one.document, one.question)).tolist()


def offline(llm: FastMem, questions: list[Question]) -> tuple[dict[Question, str], dict[str, Memory]]:
    """(the texts of `FastMem.answer`, the memories by document)."""
    memories = {document: llm.memorize(document) for document in dict.fromkeys(q.document for q in questions)}
    texts = {
        q: llm.answer(q.question, q.document, memory=memories[q.document], max_new_tokens=40).text for q in questions
    }
    return texts, memories


def gap(llm: FastMem, one: Question, memory: Memory, other: str) -> float:
    """The distance of the two best logits where `FastMem.answer` leaves the text `other`."""
    answer = llm.answer(one.question, one.document, memory=memory, max_new_tokens=40)
    ids = llm.ids(question_prompt(one.document, one.question)).tolist()
    tokens = list(answer.token_ids)
    same = 0
    while same < len(tokens) and other.startswith(llm.tokenizer.decode(tokens[: same + 1], skip_special_tokens=True)):
        same += 1
    import torch

    best = llm.logits(torch.tensor(ids + tokens[:same]), memory)[-1].topk(2).values
    return float(best[0] - best[1])


def made(url: str) -> int:
    """How many memories a server has made."""
    found = re.search(r'events_total\{event="memorized"\} (\S+)', httpx2.get(f"{url}/metrics", timeout=60).text)
    return round(float(found[1])) if found else 0


def prove(vllm: Vllm, url: str, llm: FastMem, questions: list[Question]) -> bool:
    """Whether the answers are those of `FastMem.answer`, though vLLM is killed meanwhile."""
    right, memories = offline(llm, questions)
    killed = []

    def kill(answers: int) -> None:
        if answers >= len(questions) // 4 and not killed:
            killed.append(time.perf_counter())
            vllm.kill()
            vllm.start()

    statuses: Counter = Counter()
    found = asyncio.run(asked(url, questions, statuses, {}, kill))
    other = {one: text for one, text in found.items() if text != right[one]}
    gaps = [gap(llm, one, memories[one.document], text) for one, text in other.items()]
    for (one, text), distance in zip(other.items(), gaps, strict=True):
        print(f"other: {text!r} instead of {right[one]!r}; the two best logits are {distance:.2g} apart")
    count = made(url)
    print(f"{len(found) - len(other)} of {len(found)} texts equal; vLLM killed {len(killed)} times; {dict(statuses)}")
    alone = {q: llm.answer(q.question, q.document, method="base", max_new_tokens=40).text for q in questions}
    print(f"{sum(text != alone[one] for one, text in found.items())} of {len(found)} texts are not the model's own")
    print(f"{count} memories made for {len(memories)} documents")
    enough = len(other) <= len(questions) // 20 and all(distance < TIE for distance in gaps)
    return enough and len(killed) == 1 and count == len(memories)


def timed(name: str, questions: list[Question], work: Callable[[list[Question]], object], rounds: int) -> None:
    """Tokens per second, after one round that is not measured."""
    work(questions)
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        work(questions)
        seconds.append(time.perf_counter() - began)
    rates = [TIMED_TOKENS * len(questions) / one for one in seconds]
    print(json.dumps({"what": name, "tokens_per_second": [round(rate, 1) for rate in rates]}))


def measure(vllm: Vllm, url: str, llm: FastMem, questions: list[Question], recipe: list[str], rounds: int) -> None:
    """Tokens per second of four ways to ask."""
    whole = {"max_tokens": TIMED_TOKENS, "ignore_eos": True}

    def through(address: str, method: str) -> Callable[[list[Question]], object]:
        change = whole | {"fastmem": {"method": method}}
        return lambda chosen: asyncio.run(asked(address, chosen, Counter(), change, lambda answers: None))

    timed("vLLM behind FastMem, memories", questions, through(url, "fastmem"), rounds)
    timed("vLLM behind FastMem, base", questions, through(url, "base"), rounds)
    timed("vLLM alone, base", questions, lambda chosen: asyncio.run(asked_alone(vllm, llm, chosen)), rounds)
    vllm.kill()  # it would share the cores
    own = Server(["--name", "bench", "--template", "question", *recipe])
    try:
        timed("FastMem's engine, memories", questions, through(own.url, "fastmem"), rounds)
        timed("FastMem's engine, base", questions, through(own.url, "base"), rounds)
    finally:
        own.stop()


def main() -> int:
    """Run all of it; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--documents", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds of each throughput; 0: none")
    options = parser.parse_args()
    environment = Path(os.environ.get("VLLM_ENV", ""))
    if not (environment / "bin" / "python").is_file():
        say("set VLLM_ENV to an environment that has vLLM: docs/guides/adapters.md says how to make one.")
        return 2
    llm = FastMem.from_pretrained()
    llm.recipe = automatic_recipe(llm, merged_recipe(llm.recipe, "auto", {"parametrization": "lora"}))  # type: ignore[arg-type]
    questions = [replace(one, method="fastmem") for one in pool(options.documents, ("fastmem",))]
    recipe = ["--recipe", "auto", "--parametrization", "lora"]
    with TemporaryDirectory() as folder:
        vllm = Vllm(environment, Path(folder) / "vllm.log")
        names = ["--name", "bench", "--template", "question"]
        server = Server(["--vllm", vllm.url, "--adapters", f"{folder}/adapters", *names], Path(folder) / "store")
        try:
            good = prove(vllm, server.url, llm, questions)
            if options.rounds:
                measure(vllm, server.url, llm, questions, recipe, options.rounds)
        finally:
            server.stop()
            if vllm.process.poll() is None:
                vllm.kill()
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
