"""Many answers at once, with a memory per row, and a second question about the same document.

python -m bench.batch [--shape embedded] [--documents 16] [--tokens 150] [--repeats 3] [--device cpu]
"""

import argparse
import statistics
from collections.abc import Callable

from bench import SHAPES, finish, machine, random_llama, say
from fastmem import FastMem, Memory, Recipe
from fastmem.answer.batch import Batch
from fastmem.answer.cache import PrefixCache
from fastmem.answer.request import Request
from fastmem.cost import document, request
from fastmem.timing import seconds_of


def measured(llm: FastMem, count: int, tokens: int, new_tokens: int = 16, repeats: int = 3) -> dict[str, float]:
    """Seconds of each way; the two of a pair take turns, so that drift hits both."""
    device, recipe = llm.split_model.device, Recipe()
    texts = [document(llm.split_model, tokens - i) for i in range(count)]
    memories: list[Memory] = llm.memorize(texts, recipe)
    prompts = [document(llm.split_model, tokens - i, 0).ids for i in range(count)]
    requests = [request(llm, p, m, "fastmem", new_tokens) for p, m in zip(prompts, memories, strict=True)]
    question = document(llm.split_model, tokens + 20, 0).ids
    first = Batch(llm.split_model)
    (row,) = first.join([Request(question[:tokens], 2)])
    first.step()
    held = PrefixCache(limit_bytes=2**30)
    held.add(first.prefix(row, len(row.request.prompt)))
    ways: dict[str, Callable[[], object]] = {
        "answer_one_by_one": lambda: [run(llm, [one]) for one in requests],
        "answer_together": lambda: run(llm, requests),
        "first_token_read_whole": lambda: run(llm, [Request(question, 1)]),
        "first_token_prefix_kept": lambda: run(llm, [Request(question, 1, prefix=held.longest(question))]),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            seconds[name].append(seconds_of(way, device))
    return {name: statistics.median(found) for name, found in seconds.items()}


def run(llm: FastMem, requests: list[Request]) -> None:
    """Decode until all have left."""
    batch = Batch(llm.split_model)
    batch.join(requests)
    while batch.rows:
        batch.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="embedded", choices=SHAPES)
    parser.add_argument("--documents", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=150)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    llm = random_llama(args.shape, args.device)
    found = measured(llm, args.documents, args.tokens, repeats=args.repeats)
    say(f"{llm.name}, {args.documents} documents of about {args.tokens} tokens, {machine(args.device)}")
    say("bound: the products of all answers are the same; together the weights are read once for several")
    for plain, fast in list(zip(found, list(found)[1:], strict=False))[::2]:
        say(f"{plain:<26}{found[plain]:9.3f} s")
        say(f"{fast:<26}{found[fast]:9.3f} s   {found[plain] / found[fast]:.2f} times as fast")
    finish(bench="batch", shape=args.shape, machine=machine(args.device), documents=args.documents, seconds=found)


if __name__ == "__main__":
    main()
