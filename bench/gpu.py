"""All of it on a GPU at the shape of Llama-3-8B: memorizing by length, methods, batches, the ways of others.

    python -m bench.gpu [--shape 8b] [--device cuda] [--lengths 150,1000,8000] [--rows 1,4,16]

The two baselines of the same run: examples/naive.py, which runs the whole model forward and backward in every step,
and a contrast that exchanges the weights of the last FFN and runs the whole model twice per token. `--shape embedded
--device cpu` runs every line of it anywhere.
"""

import argparse
import statistics
from dataclasses import asdict
from typing import Any

import torch

from bench import SHAPES, finish, machine, naive_module, random_llama, say
from bench.batch import measured
from fastmem import FastMem, Memory, Recipe
from fastmem.answer.contrast import METHODS
from fastmem.cost import ceiling, decoding, document, memorizing
from fastmem.timing import seconds_of


def swapping_seconds(llm: FastMem, memory: Memory, prompt_tokens: int, tokens: int) -> float:
    """Median seconds per token of the contrast that writes tuned and original weights in turn into the model."""
    originals = {name: p.clone() for name, p in llm.split_model.parameters((-1,)).items()}
    tuned = {name: w.to(originals[name].dtype) for name, w in memory.weights(originals).items()}
    ids = document(llm.split_model, prompt_tokens, 0).ids.to(llm.split_model.input_device)[None]
    pasts: list[Any] = [None, None]
    seconds = []

    def step() -> None:
        nonlocal ids
        logits = []
        for i, weights in enumerate((tuned, originals)):
            for name, weight in weights.items():
                llm.model.get_parameter(name).copy_(weight)
            out = llm.model(ids, past_key_values=pasts[i], use_cache=True)
            pasts[i] = out.past_key_values
            logits.append(out.logits[:, -1].float())
        ids = (1.5 * logits[0] - 0.5 * logits[1]).argmax(-1, keepdim=True)

    with torch.no_grad():
        step()
        for _ in range(tokens):
            seconds.append(seconds_of(step, llm.split_model.device))
    return statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="8b", choices=SHAPES)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--lengths", default="150,1000,8000")
    parser.add_argument("--rows", default="1,4,16")
    parser.add_argument("--tokens", type=int, default=32)
    args = parser.parse_args()
    if args.device == "cpu" and args.shape == "8b":
        parser.error("there is no GPU: give --shape embedded --device cpu to run the program without one")
    llm, recipe = random_llama(args.shape, args.device), Recipe()
    lengths, rows = ([int(n) for n in text.split(",")] for text in (args.lengths, args.rows))
    say(f"{llm.name}, {machine(args.device)}")
    memorize: list[dict[str, Any]] = []
    for length in lengths:
        bound = ceiling(llm.split_model, recipe, length)
        cost, memory = memorizing(llm, length, recipe)
        products = recipe.steps * bound.product_seconds
        share = products / cost.steps_seconds
        say(f"memorize {length:5d} tokens: bound {products:.4f} s at {bound.flops_per_second / 1e12:.1f} TFLOP/s")
        say(f"    steps {cost.steps_seconds:.4f} s, {share:.0%} of the bound; trunk {cost.read_seconds:.4f} s")
        say(f"    peak {cost.peak_bytes / 1e9:.2f} GB beside the model")
        memorize.append(asdict(cost) | {"ceiling_seconds": products})
    per_token = decoding(llm, memory, list(METHODS), 150, args.tokens)
    for name, seconds in per_token.items():
        say(f"{name:<15}{1 / seconds:9.1f} tokens/s   {seconds / per_token['base']:.3f}x base")
    batches = {str(n): measured(llm, n, 150) for n in rows}
    for n, found in batches.items():
        alone, together = found["answer_one_by_one"], found["answer_together"]
        say(f"{n:>2} answers: one by one {alone:.4f} s, together {together:.4f} s")
    swapping = swapping_seconds(llm, memory, 150, args.tokens)
    say(f"contrast by exchanging weights: {1 / swapping:.1f} tokens/s, {swapping / per_token['base']:.3f}x base")
    naive, tokens = naive_module(), document(llm.split_model, lengths[0])
    ids, scored = tokens.ids.to(args.device), tokens.scored.to(args.device)
    names = naive.ffn_parameters(llm.model)
    naive.memorize(llm.model, ids, scored, names, steps=1)
    plain = seconds_of(lambda: naive.memorize(llm.model, ids, scored, names), llm.split_model.device)
    ours = memorize[0]["read_seconds"] + memorize[0]["steps_seconds"]
    say(f"plain way: {plain:.4f} s for {lengths[0]} tokens; ours takes {ours / plain:.2f} of it")
    finish(
        bench="gpu",
        shape=args.shape,
        machine=machine(args.device),
        memorize=memorize,
        seconds_per_token=per_token,
        batches=batches,
        swapping_contrast_seconds_per_token=swapping,
        naive_seconds=plain,
    )


if __name__ == "__main__":
    main()
