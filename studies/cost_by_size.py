"""What does it cost? Seconds and bytes by size, length, vocabulary, type and batch, each beside its prediction.

    python -m studies.cost_by_size --output rows.jsonl
    python -m studies.cost_by_size --output rows.jsonl --table --figure cost.svg    # of all rows so far
    python -m studies.cost_by_size --output rows.jsonl --table --rates rates.json   # predicted with other rates

**Question.** What do memorizing a document and answering cost, and can that be said before anything is run: from the
model's configuration, the document's length, the recipe and a few rates of the machine?

**Design.** Random weights of the Llama shape, six sizes from 5 M to 3 B parameters: two are this project's own, the
others those of SmolLM and Llama 3.2. Around a middle size the length, the vocabulary, the type, the number of steps
and the batch vary. Measured are the trunk pass over the document, all steps of memorizing, reading a prompt, one more
token for 1, 8 and 32 answers, the peak of bytes beside the model and the bytes of a saved memory. Three steps, not
ten: seconds are predicted for exactly what is run. Every time is the median of `repeats` runs after one that does not
count, with the smallest and the largest.

The prediction is `fastmem.predicted_cost`. It knows the configuration and the rates that `machine_rates.py` measures
at the start, once per type, on matrices and on a model of width 16: nothing of the models that are measured. As a
second prediction, three of these rates alone: products, memory, and what a layer's modules take.

**Decision rule**, written before the first run. The formula is good enough to state costs of sizes that were not run
if the median over all measured times of |predicted - measured| / measured is at most 20 %. The worst is reported
with it, and peaks and files separately, so that bytes that are right by construction do not lower the median.

The rows of `--output` are JSON lines, written as they come; the same command goes on where it was stopped. Rates are
measured again at every start, and rows are predicted with those of their own start. What other processes take of the
processors is measured beside everything (`quiet_machine.py`): a measurement is repeated if it is more than a tenth of
one, and what was never quiet is left out of the errors and counted.
"""

import argparse
import ctypes
import gc
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from bench import machine, random_model
from transformers import LlamaConfig

from fastmem import FastMem, Memory, Recipe
from fastmem.answer.batch import Batch
from fastmem.cost import document, request, token_seconds
from fastmem.device_memory import PeakMemory
from fastmem.lab.run.run_files import Appender, Record, complete_rows
from fastmem.learn.memorize import drain
from fastmem.predicted_cost import Machine
from fastmem.timing import seconds_of
from studies import cost_table
from studies.machine_rates import machine_rates
from studies.quiet_machine import quietly, wait_until_quiet

# hidden, FFN width, layers, heads, key-value heads, vocabulary, tied embeddings
SHAPES: dict[str, tuple[int, int, int, int, int, int, bool]] = {
    "5m": (256, 704, 6, 8, 8, 2048, False),  # nearly the embedded model's
    "25m": (384, 1024, 8, 6, 6, 32768, True),
    "135m": (576, 1536, 30, 9, 3, 49152, True),  # SmolLM-135M
    "360m": (960, 2560, 32, 15, 5, 49152, True),  # SmolLM-360M
    "1b": (2048, 8192, 16, 32, 8, 128256, True),  # Llama-3.2-1B
    "3b": (3072, 8192, 28, 24, 8, 128256, True),  # Llama-3.2-3B
    "8b": (4096, 14336, 32, 32, 8, 128256, False),  # Llama-3-8B, computed only
    "70b": (8192, 28672, 80, 64, 8, 128256, False),  # Llama-3-70B, computed only
}
MIDDLE = "135m"
DECODED = 8  # tokens after the first one
RANK = 8  # of low-rank memories
UNSCORED = 5  # tokens before the document, as of a template


@dataclass(frozen=True)
class Case:
    """One model and what is measured with it. scored: tokens of the document, and of the prompt. vocabulary: None is
    that of the shape. rows: of batches, with one memory for all; own_rows: with a memory for each."""

    shape: str
    dtype: str = "float32"
    scored: int = 150
    vocabulary: int | None = None
    steps: int = 3
    rows: tuple[int, ...] = ()
    own_rows: tuple[int, ...] = ()
    repeats: int = 3

    @property
    def config(self) -> LlamaConfig:
        """Of transformers."""
        return llama_config(self.shape, self.vocabulary)


CASES = (
    Case("5m", rows=(8,), repeats=5),
    Case("25m", rows=(8,), repeats=5),
    Case(MIDDLE, rows=(8, 32), own_rows=(8, 32)),
    Case("360m", rows=(8,)),
    Case("1b", rows=(8,), repeats=2),
    Case(MIDDLE, scored=50),
    Case(MIDDLE, scored=600),
    Case(MIDDLE, scored=1500, repeats=2),
    Case(MIDDLE, vocabulary=32768),
    Case(MIDDLE, vocabulary=131072),
    Case(MIDDLE, "bfloat16", rows=(8,)),
    Case(MIDDLE, steps=10),
    Case("1b", "bfloat16", scored=50, repeats=2),
    Case("3b", "bfloat16", scored=50, rows=(8,), repeats=2),
)


def llama_config(shape: str, vocabulary: int | None = None) -> LlamaConfig:
    """The configuration of a shape, with another vocabulary if one is given."""
    hidden, ffn, layers, heads, kv_heads, usual, tied = SHAPES[shape]
    return LlamaConfig(
        hidden_size=hidden,
        intermediate_size=ffn,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=vocabulary or usual,
        tie_word_embeddings=tied,
        max_position_embeddings=8192,
        bos_token_id=None,
        eos_token_id=None,
    )


def rows_of(case: Case) -> Iterator[Record]:
    """Every measurement of one case: what was done, its seconds, its bytes; and what others took of the processors."""
    llm = random_model(case.config, case.shape, "cpu", getattr(torch, case.dtype))
    memory, peak = first_memory(llm, case)
    yield peak
    lora = Recipe(steps=1, parametrization="lora", rank=RANK)
    yield {"what": "disk", "bytes": file_bytes(memory, llm.memorize(document(llm.split_model, 8), lora))}
    (read, steps), others = quietly(lambda: memorizing_seconds(llm, case))
    yield {"what": "read", "tokens": case.scored + UNSCORED, "seconds": read, "elsewhere": others}
    yield {"what": "steps", "tokens": case.scored, "seconds": steps, "elsewhere": others}
    seconds, others = quietly(lambda: prompt_seconds(llm, memory, case))
    yield {"what": "prompt", "tokens": case.scored, "seconds": seconds, "elsewhere": others}
    for count in (1, *case.rows):
        yield tokens_row(llm, [memory] * count, case.scored if count == 1 else 2 * DECODED)
    if case.own_rows:
        made = [llm.memorize(document(llm.split_model, 8), Recipe(steps=1)) for _ in range(max(case.own_rows))]
        for count in case.own_rows:
            yield tokens_row(llm, made[:count], 2 * DECODED, own=True)


def first_memory(llm: FastMem, case: Case) -> tuple[Memory, Record]:
    """The memory of the first run, and the peak of that run."""
    release_freed_memory()
    peak = PeakMemory(llm.split_model.device)
    memory = llm.memorize(document(llm.split_model, case.scored, UNSCORED), Recipe(steps=case.steps))
    return memory, {"what": "peak", "tokens": case.scored, "bytes": peak.added_bytes}


def release_freed_memory() -> None:
    """Give the system back what earlier work has freed, which would hide a peak that fits into it."""
    gc.collect()
    with suppress(OSError, AttributeError):  # glibc
        ctypes.CDLL(None).malloc_trim(0)


def memorizing_seconds(llm: FastMem, case: Case) -> tuple[list[float], list[float]]:
    """Seconds of every trunk pass, and of all steps after it."""
    device, recipe = llm.split_model.device, Recipe(steps=case.steps)
    tokens, found = document(llm.split_model, case.scored, UNSCORED), []
    for _ in range(case.repeats):
        run = llm.memorizing(tokens, recipe, watch=False)
        read = seconds_of(lambda: next(run), device)  # noqa: B023
        found.append((read, seconds_of(lambda: drain(run), device)))  # noqa: B023
    return [read for read, _ in found], [steps for _, steps in found]


def prompt_seconds(llm: FastMem, memory: Memory, case: Case) -> list[float]:
    """Seconds until the first token of an answer."""
    ids, found = document(llm.split_model, case.scored, 0).ids, []
    for _ in range(case.repeats + 1):
        batch = Batch(llm.split_model)
        batch.join([request(llm, ids, memory, "fastmem", 2)])
        found.append(seconds_of(batch.step, llm.split_model.device))
    return found[1:]


def file_bytes(memory: Memory, low_rank: Memory) -> dict[str, int]:
    """Of the saved memory in every form."""
    forms = {"float32": (memory, None), "bfloat16": (memory, "bfloat16"), "int8": (memory, "int8")}
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (saved, stored) in (forms | {f"rank {RANK}": (low_rank, None)}).items():
            path = Path(folder) / name
            saved.save(path, dtype=stored)
            found[name] = path.stat().st_size
    return found


def tokens_row(llm: FastMem, memories: Sequence[Memory], prompt: int, own: bool = False) -> Record:
    """Seconds of one more token for as many answers as there are memories."""
    ids = document(llm.split_model, prompt, 0).ids
    requests = [request(llm, ids, memory, "fastmem", DECODED + 1) for memory in memories]
    past = prompt + DECODED // 2
    found = {"what": "token", "rows": len(memories), "own": own, "past": past}
    seconds, others = quietly(lambda: token_seconds(llm.split_model, requests))
    return found | {"seconds": seconds, "elsewhere": others}


def run(output: Path, cases: Sequence[Case]) -> None:
    """Measure what has not been measured yet."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with Appender(output) as file:
        done = {case_key(row["case"]) for row in file.rows if row["what"] == "end"}
        left = [case for case in cases if case_key(asdict(case)) not in done]
        rates: dict[str, Machine] = {}
        noise: dict[str, float] = {}
        for name in sorted({case.dtype for case in left}):
            wait_until_quiet()
            rates[name], noise[name] = quietly(lambda: machine_rates(getattr(torch, name)))  # noqa: B023
            print(f"{name}: {rates[name]}; others took {noise[name]:.2f} processors", file=sys.stderr, flush=True)
        for number, case in enumerate(left):
            print(f"{number + 1} of {len(left)}: {case}", file=sys.stderr, flush=True)
            common: Record = {"case": asdict(case), "rates": asdict(rates[case.dtype]), "machine": machine()}
            common["rates_elsewhere"] = noise[case.dtype]
            file.append(common | {"what": "begin"})
            for row in rows_of(case):
                file.append(common | row)
            file.append(common | {"what": "end"})


def case_key(case: Record) -> str:
    """The same for a case and for what JSON makes of it."""
    return str(sorted((name, list(value) if isinstance(value, tuple) else value) for name, value in case.items()))


def measured_rows(output: Path) -> list[Record]:
    """The rows of complete cases, the newest of each."""
    newest: dict[str, list[Record]] = {}
    case: list[Record] = []
    for row in complete_rows(output)[1]:
        if row["what"] == "begin":
            case = []
        elif row["what"] == "end":
            newest[case_key(row["case"])] = case
        else:
            case.append(row)
    return [row for rows in newest.values() for row in rows]


def main(arguments: list[str] | None = None) -> None:
    """Measure, or print the tables."""
    parser = argparse.ArgumentParser(prog="python -m studies.cost_by_size", description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="rows, one JSON document a line")
    parser.add_argument("--shapes", nargs="*", choices=SHAPES, help="only cases of these")
    parser.add_argument("--table", action="store_true", help="print the tables of all rows so far")
    parser.add_argument("--rates", type=Path, help="predict with these instead, JSON by type: of a quieter start")
    parser.add_argument("--figure", type=Path)
    args = parser.parse_args(arguments)
    if not args.table:
        run(args.output, [case for case in CASES if not args.shapes or case.shape in args.shapes])
        return
    rows = measured_rows(args.output)
    if args.rates:
        rates = json.loads(args.rates.read_text())
        rows = [row | {"rates": rates[row["case"]["dtype"]], "rates_elsewhere": 0.0} for row in rows]
    cost_table.show(cost_table.with_predictions(rows, llama_config), args.figure)
    cost_table.computed({name: llama_config(name) for name in ("1b", "3b", "8b", "70b")})


if __name__ == "__main__":
    main()
