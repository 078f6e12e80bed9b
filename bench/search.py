"""What a grid costs against running every point on its own, decoding included. Needs ../shared/models/nq-mini.

    python bench/search.py --examples 2

What bounds it: the optimizations. The paper's grid has 20 of 50 steps, which are 1,000 steps of one document; 60
separate runs make 1,600. Everything else (the trunk over document and prompt, the decoded beginnings that points have
in common) is shared by all points, and the four rates go through the head in lockstep. Seconds are processor time of
one thread, which other programs on the machine do not change; the last line is JSON.
"""

import argparse
import json
import time
from itertools import pairwise
from pathlib import Path

import torch

from fastmem import FastMem
from fastmem.core.memorize import memorize, read
from fastmem.lab.grid import PAPER_KLS, PAPER_STEPS, Grid, Space
from fastmem.lab.search import part_of
from fastmem.lab.tasks import load

MODEL = Path(__file__).resolve().parents[2] / "shared/models/nq-mini"
RATES = (3e-4, 1e-3, 3e-3, 1e-2)  # a small model wants more than the paper's
NEW_TOKENS = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=2)
    examples = parser.parse_args().examples
    torch.set_num_threads(1)
    llm = FastMem.from_pretrained(MODEL, dtype="float32")
    data = part_of(load("nq_swap", MODEL / "nq_swap_dev_333.json"), "searched").examples[:examples]
    space = Space(llm.recipe, RATES, PAPER_STEPS, PAPER_KLS)
    grid = Grid(llm, space, NEW_TOKENS)
    llm.answer(data[0].question, data[0].context, recipe=space.points[0].recipe)  # warm

    started = time.process_time()
    shared = [grid.texts(example) for example in data]
    shared_seconds = time.process_time() - started

    parts = {"trunk": 0.0, "steps": 0.0, "decode": 0.0}
    equal = 0
    for example, texts in zip(data, shared, strict=True):
        for point, text in zip(space.points, texts, strict=True):
            times = [time.process_time()]
            tokens = llm.memory_tokens(example.context, point.recipe)
            reading = read(llm.trunk, tokens.ids, tokens.scored)
            times.append(time.process_time())
            memory = memorize(llm.trunk, reading, point.recipe, llm.base())
            times.append(time.process_time())
            answer = llm.generate(example.prompt, memory, "fastmem", max_new_tokens=NEW_TOKENS)
            times.append(time.process_time())
            equal += answer.text == text
            for part, (before, after) in zip(parts, pairwise(times), strict=True):
                parts[part] += after - before
    alone = sum(parts.values())
    print(f"{len(space.points)} points, {examples} examples: shared {shared_seconds:.1f} s, alone {alone:.1f} s")
    print(
        f"{alone / shared_seconds:.2f} times cheaper; alone: " + ", ".join(f"{k} {v:.1f} s" for k, v in parts.items())
    )
    print(f"the same text at {equal} of {len(space.points) * examples} points")
    print(json.dumps({"shared_seconds": shared_seconds, "alone_seconds": parts, "equal": equal}))


if __name__ == "__main__":
    main()
