"""A handful of examples and a method -> rows: memorize, answer side by side, grade.

Whatever goes wrong with one example becomes a row with an error; the others are answered.
"""

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from fastmem import prompts
from fastmem.core.cache import Prefix, joinable, new_cache
from fastmem.core.memorize import memorize, read
from fastmem.core.memory import Memory
from fastmem.errors import InputError
from fastmem.generation import Answer
from fastmem.lab import grading
from fastmem.lab.environment import PeakBytes
from fastmem.lab.experiment import ONE_SHOT, Experiment, method_of
from fastmem.lab.tasks import TASKS, Example, messages
from fastmem.model import FastMem
from fastmem.prompts import Tokens

log = logging.getLogger("fastmem")
Record = dict[str, Any]


@dataclass(frozen=True)
class Memorized:
    """A memory and what it cost. prompt, prefix: of a memory made in place, the prompt it was made in."""

    memory: Memory
    trunk_seconds: float
    steps_seconds: float
    prompt: Tokens | None = None
    prefix: Prefix | None = None


@dataclass(frozen=True)
class _Asked:
    """One example ready to be answered by one method."""

    example: Example
    prompt: Tokens
    without: Any
    made: Memorized | None


class Answering:
    """Answers examples of one experiment, a batch at a time.

    Keeps the memories of the batch in hand, so that every method of it, and the next batch's rows of the same
    document, use the same one.
    """

    def __init__(self, llm: FastMem, experiment: Experiment):
        self.llm, self.experiment = llm, experiment
        self.peak = PeakBytes(str(llm.trunk.device))
        self._memories: dict[tuple[str, str], Memorized | Exception] = {}
        self._said: dict[str, str] = {}  # missing scores by name

    def rows(self, batch: Sequence[Example], method: str, base_texts: dict[str, str]) -> list[Record]:
        """One row per example. base_texts: what the untouched model said, by id, to say which tokens moved."""
        self.peak.reset()
        self._forget(batch)
        ready: list[_Asked] = []
        found: dict[str, Record] = {}
        for example in batch:
            try:
                ready.append(self._asked(example, method))
            except Exception as error:  # whatever it is, it is this example's, and is counted as such
                found[example.id] = self._row(example, method, _digest_of(example), error=error)
        for asked, answer, seconds in self._answers(ready, method):
            found[asked.example.id] = self._answered(asked, method, answer, seconds, len(ready), base_texts)
        rows = [found[example.id] for example in batch]
        self._score(rows, batch)
        peak = self.peak.read()
        return [row | {"peak_bytes": peak} for row in rows]

    def _asked(self, example: Example, method: str) -> _Asked:
        llm, shot = self.llm, TASKS[self.experiment.task].shot if method == ONE_SHOT else None
        made = self.memorized(example) if method_of(method).memorized else None
        if made is not None and made.prompt is not None:
            prompt = made.prompt
        else:
            prompt = Tokens(llm.ids(messages(example, shot=shot)))
        without = messages(example, with_context=False) if method_of(method).kind == "cad" else None
        options = self._options() | {"without_context": without}
        # Refuses what cannot be answered (too long, ...) here, where it concerns this example alone.
        llm.request(prompt, made.memory if made else None, method_name(method), **options)
        return _Asked(example, prompt, without, made)

    def memorized(self, example: Example) -> Memorized:
        """The memory of the example's document, made once. Errors: whatever making it raised, every time."""
        in_place = self.experiment.recipe.placement == "prompt"
        key = (example.context, example.prompt if in_place else "")
        if key not in self._memories:
            try:
                self._memories[key] = self._memorize(example, in_place)
            except Exception as error:
                self._memories[key] = error
        made = self._memories[key]
        if isinstance(made, Exception):
            raise made
        return made

    def _memorize(self, example: Example, in_place: bool) -> Memorized:
        llm, recipe = self.llm, self.experiment.recipe
        if not example.context:
            raise InputError("there is no document to memorize.")
        layers, cache = llm.trunk.indices(recipe.layers), None
        if in_place:
            tokens = prompts.in_place(llm.tokenizer, example.prompt, example.context)
            cache = new_cache(llm.model.config)
            cache = cache if joinable(cache) else None
        else:
            tokens = llm.memory_tokens(example.context, recipe)
        with self._timed() as trunk:
            reading = read(llm.trunk, tokens.ids, tokens.scored, layers, cache)
        with self._timed() as steps:
            memory = memorize(llm.trunk, reading, recipe, llm.base(layers))
        prefix = Prefix(tokens.ids, cache) if cache is not None else None
        return Memorized(memory, trunk[0], steps[0], tokens if in_place else None, prefix)

    def _forget(self, batch: Sequence[Example]) -> None:
        """Drop the memories of documents that are not in this batch: those of one batch are what must fit."""
        here = {example.context for example in batch}
        self._memories = {key: made for key, made in self._memories.items() if key[0] in here}

    def _answers(self, ready: Sequence[_Asked], method: str) -> Iterator[tuple[_Asked, Answer | Exception, float]]:
        """(what was asked, its answer or the error, its share of the seconds)."""
        if not ready:
            return
        try:
            with self._timed() as seconds:
                answers = self._generate(ready, method)
        except Exception as error:
            if len(ready) == 1:
                yield ready[0], error, 0.0
                return
            log.warning("a batch of %d failed (%s); answering one by one.", len(ready), error)
            for asked in ready:
                yield from self._answers([asked], method)
            return
        for asked, answer in zip(ready, answers, strict=True):
            yield asked, answer, seconds[0] / len(ready)

    def _generate(self, ready: Sequence[_Asked], method: str) -> list[Answer]:
        memories = [asked.made.memory if asked.made else None for asked in ready]
        prefixes = [asked.made.prefix if asked.made else None for asked in ready]
        options = self._options() | {"without_context": [asked.without for asked in ready], "prefix": prefixes}
        prompts_of: list[Any] = [asked.prompt for asked in ready]
        return self.llm.generate(prompts_of, memories, method_name(method), **options)

    def _options(self) -> Record:
        e = self.experiment
        decoding = {"alpha": e.alpha, "relative_top": e.relative_top}
        return decoding | {"max_new_tokens": e.new_tokens, "batch_size": e.batch_size}

    def _answered(
        self,
        asked: _Asked,
        method: str,
        answer: Answer | Exception,
        seconds: float,
        batch: int,
        base_texts: dict[str, str],
    ) -> Record:
        digest = hashlib.sha256(asked.prompt.ids.numpy().tobytes()).hexdigest()[:16]
        if isinstance(answer, Exception):
            return self._row(asked.example, method, digest, error=answer)
        row = self._row(asked.example, method, digest)
        row |= {"text": answer.text, "token_ids": list(answer.token_ids), "reason": answer.reason}
        row["batch"] = batch
        row["seconds"]["decode"] = round(seconds, 6)
        if asked.made is not None:
            memory = asked.made.memory
            row["seconds"] |= {
                "trunk": round(asked.made.trunk_seconds, 6),
                "steps": round(asked.made.steps_seconds, 6),
            }
            row["trace"] = [[round(v, 6) for v in (s.loss, s.cross_entropy, s.kl)] for s in memory.trace]
            row["stopped"] = memory.stopped
            if base_texts.get(asked.example.id, answer.text) != answer.text:
                row["moved"] = moved(self.llm, asked.prompt, answer, memory)
        return row

    def _row(self, example: Example, method: str, digest: str, error: Exception | None = None) -> Record:
        said = None if error is None else f"{type(error).__name__}: {str(error).strip() or 'no text'}"
        return {
            "id": example.id,
            "method": method,
            "group": example.group or example.id,
            "prompt": digest,
            "text": "",
            "token_ids": [],
            "reason": None,
            "scores": {},
            "missing": {},
            "seconds": {"trunk": 0.0, "steps": 0.0, "decode": 0.0},
            "error": said,
        }

    def _score(self, rows: Sequence[Record], batch: Sequence[Example]) -> None:
        """Fill in the scores."""
        good = [(row, example) for row, example in zip(rows, batch, strict=True) if not row["error"]]
        for row, example in zip(rows, batch, strict=True):
            if row["error"]:
                row["scores"] = grading.failed(example)
            elif example.kind != "summary":
                row["scores"] = grading.graded(row["text"], example)
        if good and good[0][1].kind == "summary":
            texts = [row["text"] for row, _ in good]
            found = grading.summarized(texts, [example for _, example in good], self.experiment.scorers)
            for (row, _), (scores, missing) in zip(good, found, strict=True):
                row["scores"], row["missing"] = scores, missing
            self._say_once(found[0][1])

    def _say_once(self, missing: dict[str, str]) -> None:
        """A score that cannot be had is said when it is first missed, not in the table at the end alone."""
        unsaid = {name: reason for name, reason in missing.items() if "was left out" not in reason} | self._said
        for name in unsaid.keys() - self._said.keys():
            log.warning("%s; the run goes on without it.", unsaid[name])
        self._said = unsaid

    @contextmanager
    def _timed(self) -> Iterator[list[float]]:
        """Seconds of the block, once the device has finished it."""
        found: list[float] = []
        wait: Callable[[], Any] = torch.cuda.synchronize if self.llm.trunk.device.type == "cuda" else lambda: None
        wait()
        started = time.perf_counter()
        yield found
        wait()
        found.append(time.perf_counter() - started)


def method_name(name: str) -> str:
    """The name that `generate` knows."""
    return "base" if name == ONE_SHOT else name


@torch.no_grad()
def moved(llm: FastMem, prompt: Tokens, answer: Answer, memory: Memory) -> list[list[Any]]:
    """[token, its log-probability under the base, under the memory] for every token of an answer.

    One trunk pass and two tails, over the positions of the answer alone.
    """
    said = torch.tensor(answer.token_ids)
    ids = torch.cat([prompt.ids, said])
    positions = torch.arange(len(prompt.ids) - 1, len(ids) - 1)
    activations = llm.trunk.read(ids, positions, memory.recipe.layers)
    sides = []
    for ffn in (None, llm.ffn(memory)):
        logits = llm.trunk.head(llm.trunk.tail(activations, ffn)).float()
        sides.append(logits.log_softmax(-1)[torch.arange(len(said)), said.to(logits.device)].tolist())
    texts = [llm.tokenizer.decode([token]) for token in answer.token_ids]
    return [[t, round(a, 4), round(b, 4)] for t, a, b in zip(texts, *sides, strict=True)]


def _digest_of(example: Example) -> str:
    return hashlib.sha256(example.prompt.encode()).hexdigest()[:16]
