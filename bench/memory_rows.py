"""Rows of a task with what is read of them, asked with one memory each; shared by `memories.py` and `documents.py`.

Every finished measurement is kept in a file of JSON lines (`--kept`), so that a long run may be cut into pieces.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from fastmem import FastMem, Memory, Recipe
from fastmem.lab.scores.qa import paper_correct
from fastmem.lab.scores.statistics import mean
from fastmem.lab.tasks import Example, embedded_world, load

MAX_TOKENS = 40


@dataclass(frozen=True)
class Measured:
    """One variant on all rows. right: "1" or "0" a row. document: loss of the memorized tokens, nats per token.
    seconds: CPU time of making one memory."""

    right: str
    document: float
    size_bytes: int
    seconds: float

    @property
    def rows(self) -> list[bool]:
        """Which rows are right."""
        return [one == "1" for one in self.right]


class Kept:
    """Measurements by key, from the file and into it."""

    def __init__(self, path: Path | None):
        self.path = path
        lines = path.read_text().splitlines() if path is not None and path.is_file() else []
        self.found = {json.dumps(key): Measured(**value) for key, value in map(json.loads, lines)}

    def get(self, key: list, measure: Callable[[], Measured]) -> Measured:
        """The measurement of this key, made if it is not there."""
        name = json.dumps(key)
        if name not in self.found:
            self.found[name] = measure()
            if self.path is not None:
                with self.path.open("a") as file:
                    file.write(json.dumps([key, asdict(self.found[name])]) + "\n")
        return self.found[name]


class Rows:
    """The examples, their documents as tokens, and the memories made of them."""

    def __init__(self, llm: FastMem, examples: Sequence[Example]):
        self.llm, self.examples = llm, examples
        self.documents = [llm.memory_tokens(e.context) for e in examples]

    @property
    def groups(self) -> list[str]:
        """Rows of one group are not independent."""
        return [e.group or e.id for e in self.examples]

    def memorize(self, recipe: Recipe) -> tuple[list[Memory], float]:
        """(a memory for each row, CPU seconds for one)."""
        started = time.process_time()
        memories = self.llm.memorize(self.documents, recipe)
        return memories, (time.process_time() - started) / len(memories)

    def right(self, prompts: Sequence[str], memories: Sequence[Memory] | None) -> str:
        """Greedy answers to these prompts, graded by the paper's rule."""
        method = "base" if memories is None else "fastmem"
        found = []
        for at in range(0, len(prompts), 16):
            some = None if memories is None else list(memories[at : at + 16])
            answers = self.llm.generate(list(prompts[at : at + 16]), some, method, max_new_tokens=MAX_TOKENS)
            found += [paper_correct(a.text, e.answers) for a, e in zip(answers, self.examples[at:], strict=False)]
            for memory in some or ():
                self.llm.release(memory)
        return "".join("01"[one] for one in found)

    def measure(self, memories: Sequence[Memory] | None, seconds: float = 0.0, size: int = 0) -> Measured:
        """Every row's question, its document in the prompt, with its memory."""
        right = self.right([e.prompt for e in self.examples], memories)
        size = size or (memories[0].size_bytes if memories else 0)
        return Measured(right, self._loss(memories), size, seconds)

    def _loss(self, memories: Sequence[Memory] | None) -> float:
        """Of every fourth document."""
        losses = []
        for i in range(0, len(self.documents), 4):
            tokens, scored = self.documents[i], self.documents[i].scored[1:]
            logits = self.llm.logits(tokens.ids, memories[i] if memories else None)[:-1]
            losses.append(F.cross_entropy(logits[scored], tokens.ids[1:][scored]).item())
            if memories:
                self.llm.release(memories[i])
        return torch.tensor(losses).mean().item()


def rows_of(
    task: str, data: Path | None, limit: int, choosing: int
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """(rows to report on, rows to choose on): `test` and `dev` of the world; of a file the first ones and others after
    them, of which no group is among the first."""
    if task in embedded_world.TASKS:
        return load(task, split="test", limit=limit).examples, load(task, split="dev", limit=choosing).examples
    examples = load(task, data).examples
    seen = {e.group or e.id for e in examples[:limit]}
    return examples[:limit], tuple(e for e in examples[limit:] if (e.group or e.id) not in seen)[:choosing]


def interval(measured: Measured, groups: Sequence[str]) -> str:
    """The share of right answers with its 95 % interval."""
    found = mean(measured.rows, groups)
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"
