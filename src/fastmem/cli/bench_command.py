"""`fastmem bench`: the cost of memorizing and answering, with any model, on this machine."""

from typing import Annotated, Any

import typer

from fastmem.cli.flags import ModelFlags, OutputFlags, RecipeFlags, with_flags
from fastmem.cli.output import Status, emit


@with_flags
def bench(
    model: ModelFlags,
    recipe: RecipeFlags,
    output: OutputFlags,
    tokens: Annotated[int, typer.Option(metavar="N", min=1, help="Scored tokens of the document.")] = 150,
    new_tokens: Annotated[int, typer.Option(metavar="N", min=2, help="Tokens to decode with each method.")] = 12,
) -> None:
    """Measure the cost of memorizing, and of each method per token.

    The document consists of arbitrary tokens, since times depend on shapes only. This takes about two minutes with a
    model of 1.5 B parameters on 2 cores. For comparisons with other implementations, see bench/ in the repository.

    \b
    Examples:
      fastmem bench
      fastmem bench --model Qwen/Qwen3-0.6B --tokens 1000 --json
    """
    from fastmem.cost import card

    with Status(quiet=output.quiet) as status:
        llm = model.load(status)
        made = recipe.of(llm, status)
        status("measuring matrix products, memorizing and each method ...")
        costs = card(llm, made, tokens, new_tokens)
    if output.json:
        return emit(costs)
    print("\n".join(_lines(costs)))


def _lines(costs: dict[str, Any]) -> list[str]:
    """The measurements as a table."""
    bound, cost, methods = costs["ceiling"], costs["memorize"], costs["seconds_per_token"]
    products = costs["steps"] * bound["product_seconds"]
    share = products / cost["steps_seconds"] if cost["steps_seconds"] else 0.0
    approximation = "" if costs["shortlist"] is None else f", a shortlist of {costs['shortlist']}"
    base = methods["base"]
    floor = bound["token_bytes"] / bound["read_bytes_per_second"]
    return [
        f"{costs['model']} on {costs['device']}, {costs['dtype']}, {costs['cpu_threads']} threads",
        "",
        f"memorize {cost['scored_tokens']} tokens, {costs['steps']} steps{approximation}",
        f"  bound     {products:9.3f} s   matrix products alone, {bound['flops_per_second'] / 1e9:.0f} GFLOP/s",
        f"  steps     {cost['steps_seconds']:9.3f} s   {share:.0%} of the speed that the bound allows",
        f"  reading   {cost['read_seconds']:9.3f} s   one pass over the document",
        f"  memory    {cost['memory_bytes'] / 1e6:9.1f} MB  the memory itself, float32",
        f"  peak      {cost['peak_bytes'] / 1e6:9.1f} MB  in addition to the loaded model",
        "",
        f"one more token: bound {floor * 1e3:.2f} ms to read {bound['token_bytes'] / 1e6:.0f} MB of weights",
        *(f"  {name:<15}{s * 1e3:9.2f} ms  {s / base:6.2f}x base  {1 / s:8.1f} /s" for name, s in methods.items()),
    ]
