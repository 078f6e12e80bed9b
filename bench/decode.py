"""One more token: every method, beside transformers' own generate on the same model.

python -m bench.decode [--shape 1.5b] [--prompt 150] [--tokens 16] [--rounds 3]
"""

import argparse
import statistics
import time
from typing import Any

from bench import SHAPES, finish, machine, random_llama, say
from fastmem import FastMem, Recipe
from fastmem.answer.contrast import METHODS
from fastmem.cost import ceiling, document, request, token_seconds
from fastmem.timing import synchronize


class Clock:
    """A streamer for `generate`: when every token came."""

    def __init__(self, device: Any):
        self.device, self.times = device, []

    def put(self, _: Any) -> None:
        synchronize(self.device)
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


def generate_seconds(llm: FastMem, prompt: Any, tokens: int) -> list[float]:
    """Seconds of every token after the first."""
    clock = Clock(llm.split_model.device)
    llm.model.generate(
        prompt[None].to(llm.split_model.device),
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        do_sample=False,
        streamer=clock,
        pad_token_id=0,
    )
    return [b - a for a, b in zip(clock.times[1:], clock.times[2:], strict=False)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="1.5b", choices=SHAPES)
    parser.add_argument("--prompt", type=int, default=150)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    llm, recipe = random_llama(args.shape), Recipe(steps=1)
    bound = ceiling(llm.split_model, recipe, 8)
    memory = llm.memorize(document(llm.split_model, 50), recipe)
    prompt = document(llm.split_model, args.prompt, 0).ids
    found: dict[str, list[float]] = {name: [] for name in ("generate", *METHODS)}
    for _ in range(args.rounds):
        found["generate"] += generate_seconds(llm, prompt, args.tokens)
        for name in METHODS:
            found[name] += token_seconds(llm.split_model, [request(llm, prompt, memory, name, args.tokens)])
    medians = {name: statistics.median(seconds) for name, seconds in found.items()}
    floor = bound.token_bytes / bound.read_bytes_per_second
    tails = bound.ffn_bytes / bound.read_bytes_per_second
    say(f"{llm.name}, prompt of {args.prompt} tokens, {machine()}")
    say(f"bound: {floor * 1e3:.1f} ms to read {bound.token_bytes / 1e9:.2f} GB of weights at "
        f"{bound.read_bytes_per_second / 1e9:.1f} GB/s; a second FFN {tails * 1e3:.1f} ms more, "
        f"{1 + tails / floor:.2f}x")  # fmt: skip
    for name, seconds in medians.items():
        say(
            f"{name:<15}{seconds * 1e3:9.2f} ms   {seconds / medians['base']:6.3f}x base   {1 / seconds:8.2f} tokens/s"
        )
    finish(
        bench="decode",
        shape=args.shape,
        machine=machine(),
        ceiling_seconds=floor,
        contrast_ceiling_ratio=1 + tails / floor,
        seconds_per_token=medians,
        ratio_to_base={name: seconds / medians["base"] for name, seconds in medians.items()},
    )


if __name__ == "__main__":
    main()
