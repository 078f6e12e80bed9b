"""What a grid costs against running every point on its own, decoding included.

    python bench/search.py --model nq-mini --data nq_swap_dev_333.json --examples 3 --shortlist 512

What bounds it: the optimizations. The paper's grid has 20 runs of 50 steps, which are 1,000 steps of one document;
60 separate runs make 1,600. The trunk passes over document and prompt are shared by all points, and the answers of
several points are decoded in one batch. The head is most of a step, and a shortlist avoids most of it; the separate
runs are measured without one. Seconds are processor time of one thread, which other programs on the machine change
little; the last line is JSON.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch

from fastmem import FastMem
from fastmem.lab.search.grid import PAPER_KLS, PAPER_STEPS, Grid, Space
from fastmem.lab.search.search import part_of
from fastmem.lab.tasks import Example, load
from fastmem.learn.memorize import drain

RATES = (3e-4, 1e-3, 3e-3, 1e-2)  # a small model wants more than the paper's
NEW_TOKENS = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="folder or hub id")
    parser.add_argument("--data", type=Path, required=True, help="rows of NQ-SWAP, with the paper's columns")
    parser.add_argument("--examples", type=int, default=2)
    parser.add_argument("--shortlist", type=int, default=512)
    given = parser.parse_args()
    torch.set_num_threads(1)
    llm = FastMem.from_pretrained(given.model, dtype="float32")
    data = part_of(load("nq_swap", given.data), "searched").examples[: given.examples]
    space = Space(llm.recipe, RATES, PAPER_STEPS, PAPER_KLS)
    short = replace(space, recipe=replace(space.recipe, shortlist=given.shortlist))
    llm.answer(data[0].question, data[0].context, recipe=space.points[0].recipe)  # warm
    shared, shared_seconds = _shared(Grid(llm, space, NEW_TOKENS), data)
    listed, listed_seconds = _shared(Grid(llm, short, NEW_TOKENS), data)

    parts = {"trunk": 0.0, "steps": 0.0, "decode": 0.0}
    equal, nearly = 0, 0
    for example, *texts in zip(data, shared, listed, strict=True):
        for point, text, other in zip(space.points, *texts, strict=True):
            times = [time.process_time()]
            run = llm.memorizing(llm.memory_tokens(example.context, point.recipe), point.recipe, watch=False)
            next(run)
            times.append(time.process_time())
            (memory,) = drain(run)
            times.append(time.process_time())
            answer = llm.generate(example.prompt, memory, "fastmem", max_new_tokens=NEW_TOKENS)
            times.append(time.process_time())
            equal += answer.text == text
            nearly += answer.text == other
            for part, (before, after) in zip(parts, pairwise(times), strict=True):
                parts[part] += after - before
    alone, points = sum(parts.values()), len(space.points) * len(data)
    print(f"{len(space.points)} points, {len(data)} examples, one by one: {alone:.1f} s, of which")
    print(", ".join(f"{name} {seconds:.1f} s" for name, seconds in parts.items()))
    for what, seconds, same in (
        ("the whole vocabulary", shared_seconds, equal),
        (f"a shortlist of {given.shortlist}", listed_seconds, nearly),
    ):
        print(
            f"as one grid, {what}: {seconds:.1f} s, {alone / seconds:.2f} times cheaper; the same text as one by one "
            f"at {same} of {points} points"
        )
    found = {"alone_seconds": parts, "shared_seconds": shared_seconds, "shortlist_seconds": listed_seconds}
    print(json.dumps(found | {"equal": equal, "equal_with_shortlist": nearly, "points": points}))


def _shared(grid: Grid, data: Sequence[Example]) -> tuple[list[list[str]], float]:
    """(the texts of every example at every point, processor seconds)."""
    started = time.process_time()
    texts = [grid.texts(example) for example in data]
    return texts, time.process_time() - started


if __name__ == "__main__":
    main()
