"""Memorizing one document, against what its matrix products alone take and against the plain way.

python -m bench.memorize [--shape 1.5b] [--dtype float32] [--device cpu] [--tokens 150] [--steps 10] [--repeats 5]
                         [--shortlist 4096] [--no-naive]

The plain way (examples/naive.py), the whole vocabulary and the shortlist take turns, `--repeats` times, so that drift
of the machine hits all three; the table has medians and the smallest and largest ratio of a turn.
"""

import argparse
import statistics
from dataclasses import asdict, replace
from typing import Any

import torch

from bench import SHAPES, finish, machine, naive_module, random_llama, say
from fastmem import FastMem, Memory, Recipe
from fastmem.cost import ceiling, document, memorizing
from fastmem.timing import seconds_of


def relative_error(near: Memory, memory: Memory) -> float:
    """How far the weights of `near` are from those of `memory`, as a share of what that one changes.

    Of the weights, which are float32: in a short type the change of random logits drowns in their rounding.
    """
    apart = sum((near.tensors[name] - exact).square().sum() for name, exact in memory.tensors.items())
    return (apart / sum(exact.square().sum() for exact in memory.tensors.values())).sqrt().item()


def in_turns(llm: FastMem, scored: int, recipe: Recipe, shortlist: int, repeats: int) -> dict[str, list[float]]:
    """Seconds of memorizing in the plain way, over the whole vocabulary and with a shortlist, which take turns."""
    naive, tokens = naive_module(), document(llm.split_model, scored)
    ids, flags = (t.to(llm.split_model.device) for t in (tokens.ids, tokens.scored))
    names = naive.ffn_parameters(llm.model)
    ways = {
        "naive": lambda: naive.memorize(llm.model, ids, flags, names, steps=recipe.steps),
        "whole": lambda: llm.memorize(tokens, recipe),
        "sampled": lambda: llm.memorize(tokens, replace(recipe, shortlist=shortlist)),
    }
    naive.memorize(llm.model, ids, flags, names, steps=1)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            seconds[name].append(seconds_of(way, llm.split_model.device))
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="1.5b", choices=SHAPES)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of the weights; default: the shape's")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tokens", type=int, default=150)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--shortlist", type=int, default=4096, help="tokens of the fast objective")
    parser.add_argument("--no-naive", action="store_true")
    args = parser.parse_args()
    llm = random_llama(args.shape, args.device, dtype=args.dtype and getattr(torch, args.dtype))
    recipe = Recipe(steps=args.steps)
    before = ceiling(llm.split_model, recipe, args.tokens)
    cost, memory = memorizing(llm, args.tokens, recipe, args.repeats)
    short, near = memorizing(llm, args.tokens, replace(recipe, shortlist=args.shortlist), args.repeats)
    after = ceiling(llm.split_model, recipe, args.tokens)
    products = args.steps * (before.product_seconds + after.product_seconds) / 2
    say(f"{llm.name}, {args.tokens} scored tokens, {args.steps} steps, {machine(args.device)}")
    say(f"bound: products alone {products:.3f} s ({before.product_flops * args.steps / 1e12:.2f} TFLOP at "
        f"{before.product_flops * args.steps / products / 1e9:.0f} GFLOP/s); AdamW moves "
        f"{before.adamw_bytes * args.steps / 1e9:.1f} GB")  # fmt: skip
    say(f"trunk pass     {cost.read_seconds:8.3f} s")
    say(f"steps          {cost.steps_seconds:8.3f} s   {products / cost.steps_seconds:.0%} of the bound")
    whole = cost.read_seconds + cost.steps_seconds
    say(f"both           {whole:8.3f} s   peak {cost.peak_bytes / 1e6:.0f} MB")
    found: dict[str, Any] = {"ceiling_seconds": products, "share_of_ceiling": products / cost.steps_seconds}
    passes, error = short.steps_seconds / short.read_seconds, relative_error(near, memory)
    say(f"with shortlist {short.steps_seconds:8.3f} s   {passes:.2f} trunk passes")
    say(f"               peak {short.peak_bytes / 1e6:.0f} MB; tuned weights off by {error:.2%} of their change")
    found["shortlist"] = asdict(short) | {"tokens": near.recipe.shortlist, "trunk_passes": passes, "error": error}
    if not args.no_naive:
        turns = in_turns(llm, args.tokens, recipe, args.shortlist, args.repeats)
        for name, taken in turns.items():
            share = statistics.median(taken) / statistics.median(turns["naive"])
            shares = sorted(one / plain for one, plain in zip(taken, turns["naive"], strict=True))
            say(f"{name:<15}{statistics.median(taken):8.3f} s   {min(taken):.3f} to {max(taken):.3f}; "
                f"{share:.2f} of the plain way, {shares[0]:.2f} to {shares[-1]:.2f}")  # fmt: skip
            found |= {f"{name}_seconds": taken, f"{name}_share_of_naive": share}
    finish(
        bench="memorize",
        shape=args.shape,
        dtype=str(llm.model.dtype).removeprefix("torch."),
        machine=machine(args.device),
        steps=args.steps,
        **asdict(cost),
        **found,
    )


if __name__ == "__main__":
    main()
