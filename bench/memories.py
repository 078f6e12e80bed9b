"""What a smaller memory costs in answers, and what becomes of several documents: tables of accuracy, bytes, seconds.

    python bench/memories.py --limit 200                                  # the embedded model on world_swap
    python bench/memories.py --task nq_swap --data rows.json --model FOLDER
    python bench/memories.py --documents --limit 200

Every row's document is memorized once per recipe and its question asked once per variant, greedy, the document in the
prompt, graded by the paper's rule. `full` is the paper's memory; the columns + and - count the answers that are right
where `full` is wrong, and the other way round. `document` is the loss of the memorized tokens under the memory (nats
per token), which moves before answers do. Bytes are those of the stored tensors, seconds those of the processor, all
threads together, so that a busy machine does not change them. The last line is one JSON object.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F

from fastmem import FastMem, Memory, Recipe
from fastmem.core.compression import rounded, truncated
from fastmem.lab.scoring import paper_correct
from fastmem.lab.tasks import Example, load

LORA_SCALE = 2.0  # lora_alpha / rank at every rank
HEADER = "| memory | accuracy | + | - | document | bytes | memorize, CPU s |\n|---|---|---|---|---|---|---|"


@dataclass(frozen=True)
class Result:
    """One line. accuracy: share of right answers. better, worse: than `full`, in answers. document: nats per token."""

    variant: str
    accuracy: float
    better: int
    worse: int
    document: float | None
    size_bytes: int
    memorize_seconds: float

    def __str__(self) -> str:
        document = "-" if self.document is None else f"{self.document:.3f}"
        return (
            f"| {self.variant} | {self.accuracy:.3f} | {self.better} | {self.worse} | {document} | "
            f"{self.size_bytes:,} | {self.memorize_seconds:.3f} |"
        )


class Rows:
    """The examples with what is read of them; `measure` asks all of them once."""

    def __init__(self, llm: FastMem, examples: Sequence[Example]):
        self.llm, self.examples = llm, examples
        self.documents = [llm.memory_tokens(e.context) for e in examples]
        self.right: list[bool] | None = None  # of the variant that others are compared with

    def memorize(self, recipe: Recipe) -> tuple[list[Memory], float]:
        """(a memory for each row, seconds for one)."""
        started = time.process_time()
        memories = self.llm.memorize(self.documents, recipe)
        return memories, (time.process_time() - started) / len(memories)

    def measure(self, variant: str, memories: Sequence[Memory] | None, seconds: float = 0.0, size: int = 0) -> Result:
        """Ask every row with its memory."""
        prompts = [e.prompt for e in self.examples]
        method = "base" if memories is None else "fastmem"
        answers = self.llm.generate(prompts, memories, method, max_new_tokens=40)
        right = [paper_correct(a.text, e.answers) for a, e in zip(answers, self.examples, strict=True)]
        if variant == "full":
            self.right = right
        pairs = list(zip(right, self.right or right, strict=True))
        return Result(
            variant,
            sum(right) / len(right),
            sum(now and not full for now, full in pairs),
            sum(full and not now for now, full in pairs),
            self._document(memories),
            size or (memories[0].size_bytes if memories else 0),
            seconds,
        )

    def _document(self, memories: Sequence[Memory] | None) -> float:
        """Of every fourth document."""
        losses = []
        for i in range(0, len(self.documents), 4):
            tokens, scored = self.documents[i], self.documents[i].scored[1:]
            logits = self.llm.logits(tokens.ids, memories[i] if memories else None)[:-1]
            losses.append(F.cross_entropy(logits[scored], tokens.ids[1:][scored]).item())
        return sum(losses) / len(losses)


def sizes(rows: Rows, recipe: Recipe, lora_rate: float, ranks: Sequence[int]) -> Iterator[Result]:
    """The full memory, low-rank ones, and what can be made of the full one afterwards."""
    full, seconds = rows.memorize(recipe)
    yield rows.measure("full", full, seconds)
    yield rows.measure("base", None)
    for rank in ranks:
        low = replace(recipe, parametrization="lora", rank=rank, lora_alpha=LORA_SCALE * rank, learning_rate=lora_rate)
        memories, seconds = rows.memorize(low)
        yield rows.measure(f"lora, rank {rank}", memories, seconds)
        del memories
    for rank in ranks:
        kept = [truncated(memory, rank) for memory in full]
        energy = sum(share for _, share in kept) / len(kept)
        yield rows.measure(f"full, truncated to rank {rank} (energy {energy:.2f})", [m for m, _ in kept])
    for dtype, numbers in (("bfloat16", 2), ("int8", 1)):
        kept = [rounded(memory, dtype) for memory in full]
        error = sum(e for _, e in kept) / len(kept)
        size = full[0].size_bytes * numbers // 4
        yield rows.measure(f"full, {dtype} (error {error:.4f})", [m for m, _ in kept], size=size)


def several(rows: Rows, recipe: Recipe, counts: Sequence[int]) -> Iterator[Result]:
    """One memory for each document; one for `count` documents at once; `count` memories averaged, and added."""
    alone, seconds = rows.memorize(recipe)
    yield rows.measure("full", alone, seconds)
    yield rows.measure("base", None)
    for count in counts:
        groups = [range(at, min(at + count, len(alone))) for at in range(0, len(alone), count)]
        texts = ["\n\n".join(rows.examples[i].context for i in group) for group in groups]
        started = time.process_time()
        together = [rows.llm.memorize(text, recipe, truncate=True) for text in texts]
        seconds = (time.process_time() - started) / len(alone)
        yield rows.measure(f"{count} documents in one memory", _spread(together, groups), seconds)
        for name, weight in (("averaged", 1 / count), ("added", 1.0)):
            combined = [_combined([alone[i] for i in group], weight) for group in groups]
            yield rows.measure(f"{count} memories {name}", _spread(combined, groups))


def _spread(memories: Sequence[Memory], groups: Sequence[range]) -> list[Memory]:
    return [memory for memory, group in zip(memories, groups, strict=True) for _ in group]


def _combined(memories: Sequence[Memory], weight: float) -> Memory:
    tensors = {name: weight * torch.stack([m.tensors[name] for m in memories]).sum(0) for name in memories[0].tensors}
    return replace(memories[0], tensors=tensors)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", help="folder or hub id; the embedded model if left out")
    parser.add_argument("--task", default="world_swap")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="of the full memories")
    parser.add_argument("--lora-rate", type=float, default=1e-2, help="of the low-rank ones")
    parser.add_argument("--ranks", type=_whole_numbers, default=(1, 2, 4, 8, 16, 32, 64))
    parser.add_argument("--documents", action="store_true", help="several documents instead of sizes")
    parser.add_argument("--counts", type=_whole_numbers, default=(2, 4, 8), help="with --documents")
    given = parser.parse_args()
    data = load(given.task, given.data, limit=given.limit)
    llm = FastMem.from_pretrained(given.model)
    recipe = replace(llm.recipe, learning_rate=given.learning_rate)
    rows = Rows(llm, data.examples)
    print(f"{len(data.examples)} rows of {data.task}, {torch.get_num_threads()} threads", file=sys.stderr)
    if given.documents:
        found = several(rows, recipe, given.counts)
    else:
        found = sizes(rows, recipe, given.lora_rate, given.ranks)
    print(HEADER)
    results = []
    for result in found:
        print(result, flush=True)
        results.append(asdict(result))
    print(json.dumps({"task": data.task, "rows": len(data.examples), "results": results}))


def _whole_numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


if __name__ == "__main__":
    main()
