"""Which weights of a model should learn a document: the last FFN, other FFNs, attention, the norms, the head?

    python -m studies.which_layer --output DIR/embedded
    python -m studies.which_layer --output DIR/nq-mini --model FOLDER --data nq_swap_dev.json
    python -m studies.which_layer --table --output DIR --figure which-layer.svg    # of both

**Question.** FastMem tunes the last FFN, because nothing above it feeds attention, so the trunk runs once. Is it also
the best choice, or only the best for its price?

**Design.** The same objective (cross entropy + 0.1 KL on the document's tokens), optimizer and number of steps for
every set of weights; only the rate differs, which is chosen on development rows (`compared_ways.py`), first from the
same three for all (four times as large for the norms). FFNs are tuned by FastMem itself (`Recipe(layers=...)`), which
runs the layers below the lowest tuned one once; others by `tuned_parameters.py`, which runs the whole model at every
step, so their seconds are those of plain autograd. Kinds of rows of the embedded world: the document contradicts what
the model knows (world_swap), agrees with it (world), is irrelevant to the question (world_irrelevant), or contradicts
in a sentence that names the answer first (world_turned); the answer needs two sentences (world_hop), is a list, a
JSON object or a summary. Of real text: NQ-SWAP contradicts, NQ agrees.

**Decision rule**, written before the first run. On contradicting test rows, a set is better than the last FFN if the
paired difference is above 0 by McNemar's test at 0.05, corrected by Holm over all sets and kinds of a model; and
worse likewise. The last FFN is the best if no set is better, and the best for its price if every better one takes
more than twice its seconds or loses on another kind.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from fastmem import FastMem
from fastmem.answer.request import Request
from fastmem.errors import InputError
from fastmem.lab.run.run_files import write_json
from fastmem.learn.memorize import drain
from fastmem.tiny import world
from studies import compared_ways
from studies.compared_ways import BASE, KINDS, Made, Way, size_of, timed
from studies.study_rows import Row
from studies.tuned_parameters import logits_of, tune, untouched_logits

STEPS = 3  # as many as `fastmem calibrate` takes
RATES = (5e-4, 2e-3, 8e-3)
REFERENCE = "FFN, last"
DEPTH = 6  # of both models
Names = Callable[[FastMem], Sequence[str]]


def base(llm: FastMem, document: str, rate: float) -> Made:
    """Nothing is memorized."""
    return Made(request=lambda row: llm.request(row.example.prompt, max_new_tokens=row.max_new_tokens))


def ffn(layers: tuple[int, ...], steps: int = STEPS) -> Callable[[FastMem, str, float], Made]:
    """FastMem's own memorizing of these layers' FFNs."""

    def make(llm: FastMem, document: str, rate: float) -> Made:
        recipe = replace(llm.recipe, learning_rate=rate, steps=steps, layers=layers)
        (memory,), seconds = timed(
            lambda: drain(llm.memorizing(llm.memory_tokens(document), recipe, watch=False)),
        )

        def request(row: Row) -> Request:
            return llm.request(row.example.prompt, memory, "fastmem", max_new_tokens=row.max_new_tokens)

        return Made(seconds, memory.size_bytes, request, loss=memory.trace[-1].loss)

    return make


def weights(names: Names) -> Callable[[FastMem, str, float], Made]:
    """Plain autograd on these parameters of the model."""

    def make(llm: FastMem, document: str, rate: float) -> Made:
        recipe = replace(llm.recipe, learning_rate=rate, steps=STEPS)
        tokens, logits = llm.memory_tokens(document), logits_of(llm.model)
        own = dict(llm.model.named_parameters(remove_duplicate=False))
        start = {name: own[name] for name in names(llm)}
        (tuned, trace), seconds = timed(
            lambda: tune(logits, start, tokens, untouched_logits(llm.model, tokens), recipe)
        )
        return Made(seconds, size_of(tuned), logits=lambda ids, last: logits(tuned, ids, last), loss=trace[-1].loss)

    return make


def attention(llm: FastMem, layers: slice = slice(None)) -> list[str]:
    """The parameters of the mixers of these layers."""
    mixers = tuple(f"{name}." for layer in llm.split_model.structure.layers[layers] for name in layer.mixers)
    return [name for name, _ in llm.model.named_parameters() if name.startswith(mixers)]


def norms(llm: FastMem) -> list[str]:
    """The vectors of the model that belong to no FFN and no mixer."""
    layers = llm.split_model.structure.layers
    parts = tuple(f"{name}." for layer in layers for name in (*layer.mixers, *layer.ffn))
    return [name for name, weight in llm.model.named_parameters() if weight.ndim == 1 and not name.startswith(parts)]


def head(llm: FastMem) -> list[str]:
    """The output embedding, apart from the input embedding that it may be tied to."""
    output = llm.model.get_output_embeddings()
    return [f"{name}.weight" for name, module in llm.model.named_modules() if module is output]


def everything(llm: FastMem) -> list[str]:
    """All parameters."""
    return [name for name, _ in llm.model.named_parameters()]


def ways() -> list[Way]:
    """All that are compared."""
    last = DEPTH - 1
    return [
        Way(BASE, (0.0,), base),
        *(Way(f"FFN, layer {n}", RATES, ffn((n,))) for n in range(last)),
        Way(REFERENCE, RATES, ffn((-1,))),
        Way("FFN, last two", RATES, ffn((-2, -1))),
        Way("FFN, last half", RATES, ffn(tuple(range(DEPTH // 2, DEPTH)))),
        Way("FFN, all", RATES, ffn(tuple(range(DEPTH)))),
        Way("attention, last", RATES, weights(lambda llm: attention(llm, slice(-1, None)))),
        Way("attention, all", RATES, weights(attention)),
        Way("norms", tuple(4 * rate for rate in RATES), weights(norms)),
        Way("head", RATES, weights(head)),
    ]


def parser(name: str, description: str) -> argparse.ArgumentParser:
    """The arguments of both studies."""
    made = argparse.ArgumentParser(prog=f"python -m studies.{name}", description=description)
    made.add_argument("--output", type=Path, required=True, help="folder of this model's results; with --table of all")
    made.add_argument("--model", help="folder or hub id; the embedded model if left out")
    made.add_argument("--data", type=Path, help="NQ-SWAP rows with the paper's columns; default: the embedded world")
    made.add_argument("--ways", nargs="*", help="only these rows of the table; others can be added later")
    made.add_argument("--kinds", nargs="*", default=list(KINDS), choices=KINDS, help="of documents, on test rows")
    made.add_argument("--dev-rows", type=int, default=60, help="of each kind")
    made.add_argument("--test-rows", type=int, default=200, help="of each kind")
    made.add_argument("--table", action="store_true", help="only print the tables")
    made.add_argument("--figure", type=Path)
    made.add_argument("--json", type=Path, help="with --table: every number of the tables as one JSON document")
    return made


def act(args: argparse.Namespace, compared: Sequence[Way], reference: str) -> None:
    """Measure, or print the tables."""
    if not args.table:
        llm = compared_ways.load(args.model)
        unknown = set(args.ways or ()) - {way.name for way in compared}
        if unknown:
            raise InputError(f"--ways has {sorted(unknown)}: give some of {[way.name for way in compared]}.")
        compared = [way for way in compared if not args.ways or way.name in args.ways]
        rows: dict[world.Part, int] = {"dev": args.dev_rows, "test": args.test_rows}
        compared_ways.study(llm, compared, args.output, args.data, rows, args.kinds)
        return
    found = {}
    for folder in sorted(path.parent for path in args.output.glob("*/test.jsonl")):
        found[folder.name] = results = compared_ways.Results.read(folder, compared)
        print(f"\n{folder.name}\n", *compared_ways.tables(results, compared, reference), sep="\n")
        print(f"\n{folder.name}, development\n", *compared_ways.development_table(folder, compared), sep="\n")
    if args.figure:
        compared_ways.figure(found, reference, args.figure)
    if args.json:
        write_json(args.json, compared_ways.document(found, reference))


def main(arguments: list[str] | None = None) -> None:
    """Measure one model."""
    act(parser("which_layer", __doc__.splitlines()[0]).parse_args(arguments), ways(), REFERENCE)


if __name__ == "__main__":
    main()
