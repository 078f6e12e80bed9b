"""Memorizing long documents: seconds per step and the most bytes beside the model, by length.

python -m bench.length [--shape 1.5b] [--lengths 512,2048,8192] [--steps 1]
"""

import argparse

from bench import SHAPES, finish, machine, random_llama, say
from fastmem import Recipe
from fastmem.cost import ceiling, document
from fastmem.device_memory import PeakMemory
from fastmem.learn.budget import plan
from fastmem.learn.memorize import drain
from fastmem.timing import seconds_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="1.5b", choices=SHAPES)
    parser.add_argument("--lengths", default="512,2048,8192")
    parser.add_argument("--steps", type=int, default=1)
    args = parser.parse_args()
    llm, recipe, rows = random_llama(args.shape), Recipe(steps=args.steps), []
    lengths = [int(part) for part in args.lengths.split(",")]
    per_token = ceiling(llm.split_model, recipe, 256, repeats=2).product_seconds / 256
    say(f"{llm.name}, {args.steps} step(s), {machine()}")
    say(f"bound: {per_token * 1e3:.2f} ms of products per scored token and step")
    say(" tokens   trunk pass s    step s   ms/token   of bound   peak MB   expected MB")
    llm.memorize(document(llm.split_model, 50), recipe)
    for length in lengths:
        peak = PeakMemory(llm.split_model.device)
        run = llm.memorizing(document(llm.split_model, length), recipe, watch=False)
        read_seconds = seconds_of(lambda: next(run), llm.split_model.device)  # noqa: B023
        step = seconds_of(lambda: drain(run), llm.split_model.device) / args.steps  # noqa: B023
        peak_bytes = peak.added_bytes
        expected = plan(llm.split_model, recipe, length).need_bytes
        share = per_token * length / step
        say(f"{length:7d} {read_seconds:14.2f} {step:9.2f} {step / length * 1e3:10.2f} {share:10.0%} "
            f"{peak_bytes / 1e6:9.0f} {expected / 1e6:13.0f}")  # fmt: skip
        rows.append({
            "scored_tokens": length, "read_seconds": read_seconds, "step_seconds": step, "share_of_ceiling": share,
            "peak_bytes": peak_bytes, "expected_bytes": expected,
        })  # fmt: skip
    finish(bench="length", shape=args.shape, machine=machine(), ceiling_seconds_per_token=per_token, rows=rows)


if __name__ == "__main__":
    main()
