"""Memorizing one document, against what its matrix products alone take and against the plain way.

python -m bench.memorize [--shape 1.5b] [--tokens 150] [--steps 10] [--repeats 3] [--shortlist 4096] [--no-naive]
"""

import argparse
from dataclasses import asdict, replace
from typing import Any

from bench import SHAPES, finish, machine, naive_module, random_llama, say
from fastmem import Memory, Recipe
from fastmem.cost import ceiling, document, memorizing
from fastmem.timing import seconds_of


def relative_error(near: Memory, memory: Memory) -> float:
    """How far the weights of `near` are from those of `memory`, as a share of what that one changes.

    Of the weights, which are float32: in a short type the change of random logits drowns in their rounding.
    """
    apart = sum((near.tensors[name] - exact).square().sum() for name, exact in memory.tensors.items())
    return (apart / sum(exact.square().sum() for exact in memory.tensors.values())).sqrt().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="1.5b", choices=SHAPES)
    parser.add_argument("--tokens", type=int, default=150)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--shortlist", type=int, default=4096, help="tokens of the fast objective")
    parser.add_argument("--no-naive", action="store_true")
    args = parser.parse_args()
    llm, recipe = random_llama(args.shape), Recipe(steps=args.steps)
    before = ceiling(llm.split_model, recipe, args.tokens)
    cost, memory = memorizing(llm, args.tokens, recipe, args.repeats)
    short, near = memorizing(llm, args.tokens, replace(recipe, shortlist=args.shortlist), args.repeats)
    after = ceiling(llm.split_model, recipe, args.tokens)
    products = args.steps * (before.product_seconds + after.product_seconds) / 2
    say(f"{llm.name}, {args.tokens} scored tokens, {args.steps} steps, {machine()}")
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
        naive, tokens = naive_module(), document(llm.split_model, args.tokens)
        names = naive.ffn_parameters(llm.model)
        naive.memorize(llm.model, tokens.ids, tokens.scored, names, steps=1)
        seconds = seconds_of(
            lambda: naive.memorize(llm.model, tokens.ids, tokens.scored, names, steps=args.steps),
            llm.split_model.device,
        )
        say(f"plain way      {seconds:8.3f} s   ours takes {whole / seconds:.2f} of it")
        found |= {"naive_seconds": seconds, "share_of_naive": whole / seconds}
    finish(bench="memorize", shape=args.shape, machine=machine(), steps=args.steps, **asdict(cost), **found)


if __name__ == "__main__":
    main()
