"""What should the encoder read while the decoder memorizes a document: nothing, a part of it, or all of it?

    python -m studies.encoder_sources --model FOLDER --output FILE [--dev 60] [--test 200]

Design: an encoder-decoder of the embedded world (tools/train_embedded_model.py, `--family t5gemma` or `mbart`).
Questions whose context contradicts the world (world_swap), and questions about new subjects (world_new). The document
is memorized with each source (nothing but an end token; a random half of its tokens; all of them), then the question
is answered with the document in the prompt. The rate of each source is chosen on development rows of world_swap among
four, for every source alike; test rows judge.

Decision rule: the default is the source with the most right answers on the test rows of both splits together. If its
paired difference to "nothing" has an interval that contains 0, the default is "nothing", which costs least.

Every row is written to FILE as it is finished, one JSON object a line; a second run goes on from there.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from fastmem import FastMem, Recipe, Tokens
from fastmem.lab.report.content import mean_text
from fastmem.lab.scores.statistics import compare, mean
from fastmem.tiny import world

SOURCES = ("nothing", "half", "document")
RATES = (3e-4, 1e-3, 3e-3, 1e-2)
SPLITS = ("world_swap", "world_new")
NEW_TOKENS = 32


def with_source(document: Tokens, source: str, seed: int) -> Tokens:
    """The document as the decoder writes it, with what the encoder reads meanwhile, which ends with an end token."""
    written = document.ids[1:]
    if source == "nothing":
        return document
    if source == "half":
        kept = torch.rand(len(written) - 1, generator=torch.Generator().manual_seed(seed)) < 0.5
        written = torch.cat([written[:-1][kept], written[-1:]])
    return Tokens(document.ids, document.scored, written)


def rows(
    llm: FastMem, split: str, part: world.Part, start: int, count: int, rates: dict[str, tuple[float, ...]]
) -> Iterator[dict[str, Any]]:
    """Whether each example from `start` on is answered right: without a memory, and with one by source and rate."""
    for number, example in list(enumerate(world.examples(split, part, count)))[start:]:
        prompt = world.prompt_of(example)

        def right(memory: Any, prompt: str = prompt, example: Any = example) -> bool:
            answer = llm.generate(prompt, memory, max_new_tokens=NEW_TOKENS)
            return world.is_right(answer.text, example)

        found = {"split": split, "part": part, "number": number, "base": right(None)}
        for source, tried in rates.items():
            tokens = with_source(llm.memory_tokens(example.context), source, number)
            for rate in tried:
                found[f"{source} {rate:g}"] = right(llm.memorize(tokens, Recipe(learning_rate=rate, steps=10)))
        yield found


def main(arguments: list[str] | None = None) -> None:
    """Measure one model and print the table."""
    parser = argparse.ArgumentParser(prog="python -m studies.encoder_sources", description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder of an encoder-decoder of the embedded world")
    parser.add_argument("--output", type=Path, required=True, help="file for the rows")
    parser.add_argument("--dev", type=int, default=60, help="rows that choose the rates")
    parser.add_argument("--test", type=int, default=200, help="rows of each split that judge")
    args = parser.parse_args(arguments)
    llm = FastMem.from_pretrained(args.model)
    done = [json.loads(line) for line in args.output.read_text().splitlines()] if args.output.exists() else []

    def measured(
        split: str, part: world.Part, count: int, rates: dict[str, tuple[float, ...]]
    ) -> list[dict[str, Any]]:
        kept = [row for row in done if (row["split"], row["part"]) == (split, part)]
        with args.output.open("a") as file:
            for row in rows(llm, split, part, len(kept), count, rates):
                file.write(json.dumps(row) + "\n")
                file.flush()
                kept.append(row)
        return kept[:count]

    dev = measured("world_swap", "dev", args.dev, dict.fromkeys(SOURCES, RATES))
    print(f"development, {len(dev)} rows of world_swap: base {sum(row['base'] for row in dev) / len(dev):.3f}")
    best = {}
    for source in SOURCES:
        shares = {rate: sum(row[f"{source} {rate:g}"] for row in dev) / len(dev) for rate in RATES}
        best[source] = max(RATES, key=lambda rate: (shares[rate], -rate))
        print(f"  {source:9s}", "  ".join(f"{rate:g}: {share:.3f}" for rate, share in shares.items()))
    test = {split: measured(split, "test", args.test, {s: (r,) for s, r in best.items()}) for split in SPLITS}
    test["both"] = [row for split in SPLITS for row in test[split]]
    print("\n| split | encoder reads | right | less no memory | less nothing |\n|---|---|---|---|---|")
    for split, found in test.items():
        columns = {"no memory": [row["base"] for row in found]}
        columns |= {source: [row[f"{source} {rate:g}"] for row in found] for source, rate in best.items()}
        for name, values in columns.items():
            less = [
                mean_text(compare(columns[other], values).difference, "+") if name not in ("no memory", other) else ""
                for other in ("no memory", "nothing")
            ]
            print(f"| {split} | {name} | {mean_text(mean(values))} | {' | '.join(less)} |")


if __name__ == "__main__":
    main()
