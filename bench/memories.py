"""What a smaller memory costs in answers: full, low-rank, truncated and rounded ones; accuracy, bytes, seconds.

    python bench/memories.py                                                   # the embedded model on world_swap
    python bench/memories.py --task nq_swap --also nq --data rows.json --model FOLDER

The learning rates of the full memories and of the ranks 1, 8 and 64 are chosen on rows of their own: the most right
answers, the smaller rate where two are equal; other ranks take the nearest one's. Then every reported row's document
is memorized and its question asked, greedy, the document in the prompt, graded by the paper's rule. Columns + and -
count the answers that are right where `full` is wrong, and the other way round; p is McNemar's exact test of the two.
`document` is the loss of the memorized tokens under the memory (nats per token). Bytes are those of the stored
tensors, seconds those of the processor, so that a busy machine changes them less. `--also` asks the same of another
task, whose documents agree with what the model knows. The last line is one JSON object.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from fastmem import FastMem, Memory, Recipe
from fastmem.lab.scores.statistics import compare
from memory_rows import Kept, Measured, Rows, interval, rows_of

LORA_SCALE = 2.0  # lora_alpha / rank at every rank
FULL_RATES = (5e-4, 1e-3, 2e-3, 4e-3)
LORA_RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
CHOSEN_AT = (1, 8, 64)  # ranks whose rate is searched; another rank takes that of the nearest of them, in octaves
HEADER = (
    "| memory | rate | accuracy | + | - | p | document | {also} | bytes | memorize, CPU s |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)


def chosen(rows: Rows, recipes: Sequence[Recipe], kept: Kept, key: list) -> Recipe:
    """The recipe with the most right answers; the first of those that are equal."""
    best, most = recipes[0], -1
    for recipe in recipes:
        found = kept.get([*key, asdict(recipe)], lambda recipe=recipe: rows.measure(*rows.memorize(recipe)))
        right = sum(found.rows)
        print(
            f"  {_name(recipe)} at {recipe.learning_rate:g}: {right} of {len(found.rows)}", file=sys.stderr, flush=True
        )
        if right > most:
            best, most = recipe, right
    return best


def variants(
    rows: Rows, full: Recipe, low: Sequence[Recipe], kept: Kept, key: list, smaller: bool = True
) -> Iterator[tuple[str, Measured]]:
    """The base, the full memory, low-rank ones, and with `smaller` what can be made of the full one afterwards."""
    memories: list[Memory] = []
    seconds = 0.0

    def made() -> tuple[list[Memory], float]:
        nonlocal seconds
        if not memories:
            found, seconds = rows.memorize(full)
            memories.extend(found)
        return memories, seconds

    yield "base", kept.get([*key, "base"], lambda: rows.measure(None))
    yield "full", kept.get([*key, asdict(full)], lambda: rows.measure(*made()))
    for recipe in low:
        measured = kept.get([*key, asdict(recipe)], lambda recipe=recipe: rows.measure(*rows.memorize(recipe)))
        yield _name(recipe), measured
    if smaller:
        yield from cuts(rows, made, full, low, kept, key)


def cuts(
    rows: Rows,
    made: Callable[[], tuple[list[Memory], float]],
    full: Recipe,
    low: Sequence[Recipe],
    kept: Kept,
    key: list,
) -> Iterator[tuple[str, Measured]]:
    """What can be made of full memories afterwards."""
    for recipe in low:

        def cut(rank: int = recipe.rank) -> Measured:
            return rows.measure([memory.truncated(rank)[0] for memory in made()[0]])

        yield f"full, truncated to rank {recipe.rank}", kept.get([*key, asdict(full), "rank", recipe.rank], cut)
    for dtype, share in (("bfloat16", 2), ("int8", 4)):

        def short(dtype: str = dtype, share: int = share) -> Measured:
            size = made()[0][0].size_bytes // share
            return rows.measure([memory.rounded(dtype) for memory in made()[0]], size=size)

        yield f"full, {dtype}", kept.get([*key, asdict(full), dtype], short)


def _name(recipe: Recipe) -> str:
    return "full" if recipe.parametrization == "full" else f"lora, rank {recipe.rank}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", help="folder or hub id; the embedded model if left out")
    parser.add_argument("--dtype", help="as in transformers; the checkpoint's if left out")
    parser.add_argument("--task", default="world_swap")
    parser.add_argument(
        "--also", default="world", help="a task whose documents agree with what the model knows; or none"
    )
    parser.add_argument("--data", type=Path)
    parser.add_argument("--limit", type=int, default=200, help="reported rows")
    parser.add_argument("--choosing", type=int, default=60, help="rows to choose the rates on")
    parser.add_argument(
        "--ranks", type=lambda text: tuple(map(int, text.split(","))), default=(1, 2, 4, 8, 16, 32, 64)
    )
    parser.add_argument("--kept", type=Path, help="file of finished measurements, for runs in pieces")
    given = parser.parse_args()
    llm, kept = FastMem.from_pretrained(given.model, dtype=given.dtype), Kept(given.kept)
    reported, choosing = (Rows(llm, part) for part in rows_of(given.task, given.data, given.limit, given.choosing))
    agreeing = () if given.also == "none" else rows_of(given.also, given.data, given.limit, given.choosing)[0]
    also = Rows(llm, agreeing)
    base, counts = llm.base().digest, (len(reported.examples), len(choosing.examples))
    print(f"{counts[0]} rows of {given.task}, rates chosen on {counts[1]} others", file=sys.stderr)
    key = [base, given.task, "choosing", counts]
    full = chosen(choosing, [replace(llm.recipe, learning_rate=rate) for rate in FULL_RATES], kept, key)
    low = []
    at: dict[int, float] = {}
    for rank in given.ranks:
        nearest = min(CHOSEN_AT, key=lambda one: abs(math.log2(rank / one)))
        one = replace(llm.recipe, parametrization="lora", rank=nearest, lora_alpha=LORA_SCALE * nearest)
        if nearest not in at:
            among = [replace(one, learning_rate=rate) for rate in LORA_RATES]
            at[nearest] = chosen(choosing, among, kept, key).learning_rate
        low.append(replace(one, rank=rank, lora_alpha=LORA_SCALE * rank, learning_rate=at[nearest]))
    rates = {_name(recipe): recipe.learning_rate for recipe in (full, *low)}
    found, results = list(variants(reported, full, low, kept, [base, given.task, "reported", counts[0]])), []
    of_full = dict(found)["full"]
    beside: dict[str, Measured] = {}
    if agreeing:
        beside = dict(variants(also, full, low, kept, [base, given.also, "reported", len(agreeing)], False))
    print(HEADER.format(also=given.also))
    for name, measured in found:
        against = compare(of_full.rows, measured.rows, reported.groups)
        rate = f"{rates[name]:g}" if name in rates else "-"
        cells = [name, rate, interval(measured, reported.groups), against.only_second, against.only_first]
        cells += [
            f"{against.p_value:.2g}",
            f"{measured.document:.3f}",
            interval(beside[name], also.groups)[:5] if name in beside else "-",
        ]
        cells += [f"{measured.size_bytes:,}", f"{measured.seconds:.3f}" if measured.seconds else "-"]
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)
        right = sum(beside[name].rows) if name in beside else None
        results.append({"variant": name, "rate": rate, "also": right} | asdict(measured))
    print(json.dumps({"task": given.task, "rows": counts, "also": given.also, "results": results}))


if __name__ == "__main__":
    main()
