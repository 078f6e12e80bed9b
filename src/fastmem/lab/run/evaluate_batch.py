"""Evaluate a batch of examples with its methods: memorize, answer, grade. The result is a row per example and method.

An error in one example becomes a row with that error; the other examples are still answered.
"""

import hashlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastmem.answer.cache import Prefix
from fastmem.answer.request import Request
from fastmem.answer.running_batch import Answer, answers
from fastmem.device_memory import PeakMemory
from fastmem.errors import InputError, RunError, without_frames
from fastmem.lab.run.experiment import ONE_SHOT, Experiment, file_score
from fastmem.lab.run.own_method import OwnMethod
from fastmem.lab.run.run_files import Record
from fastmem.lab.scores import grading
from fastmem.lab.scores.own_metric import with_scores
from fastmem.lab.tasks import Example, messages
from fastmem.learn.memorize import drain
from fastmem.memory.memory import Memory
from fastmem.model import FastMem
from fastmem.prompts import Prompt, Tokens
from fastmem.timing import timed

log = logging.getLogger("fastmem")


@dataclass(frozen=True)
class Memorized:
    """A memory and its cost. prompt, prefix: for the placement "prompt", the prompt that contained the document."""

    memory: Memory
    trunk_seconds: float
    steps_seconds: float
    prompt: Tokens | None = None
    prefix: Prefix | None = None


@dataclass(frozen=True)
class _Prepared:
    """One example, ready to be answered with one method."""

    example: Example
    request: Request
    made: Memorized | None


@dataclass(frozen=True)
class Batch:
    """Examples that are answered together. methods: those of which rows are missing. base_texts: the base's answers by
    id, as far as they are there."""

    examples: tuple[Example, ...]
    methods: tuple[str, ...]
    base_texts: Mapping[str, str]


@dataclass(frozen=True)
class BatchRows:
    """The rows of a batch with one method. seconds: that they took."""

    method: str
    rows: list[Record]
    seconds: float


class BatchEvaluator:
    """Evaluates the examples of one experiment, a batch at a time.

    It keeps the memories of the current batch, so that all methods, and rows of the same document in the next batch,
    share them.
    """

    def __init__(self, llm: FastMem, experiment: Experiment):
        self.llm, self.experiment = llm, experiment
        self.peak = PeakMemory(llm.split_model.device)
        self._memories: dict[tuple[str, str], Memorized | Exception] = {}
        self._reported: set[str] = set()  # names of missing scores
        self._warm: set[str] = set()  # methods

    def __call__(self, batch: Batch) -> Iterator[BatchRows]:
        """The rows of every missing method, as they are made."""
        base_texts = dict(batch.base_texts)
        for method in batch.methods:
            if method not in self._warm:
                self._warm.add(method)
                self.warm_up(batch.examples[0], method)
            started = time.perf_counter()
            rows = self.rows(batch.examples, method, base_texts)
            if method == "base":
                base_texts |= {row["id"]: row["text"] for row in rows}
            yield BatchRows(method, rows, time.perf_counter() - started)

    def given_up(self, batch: Batch, reason: str) -> Iterator[BatchRows]:
        """Rows with an error for a batch that was not answered."""
        for method in batch.methods:
            error = RunError(reason)
            rows = [self._row(e, method, _digest(e.prompt.encode()), error=error) for e in batch.examples]
            yield BatchRows(method, self._graded(rows, batch.examples), 0.0)

    def warm_up(self, example: Example, method: str) -> None:
        """Memorize and answer an example in one step and two tokens, so that what a first run costs once (code that is
        loaded, memory that is allocated) is counted for no row. What fails here fails again in its row."""
        recipe = self.experiment.recipe
        short = replace(self.experiment, recipe=replace(recipe, steps=min(recipe.steps, 1)), max_new_tokens=2)
        evaluator = BatchEvaluator(self.llm, short)
        try:
            answers(self.llm.batch(), [evaluator._prepared(example, method).request], 1)
        except Exception as error:
            log.debug("the warm-up of %s failed (%s).", method, error)

    def rows(self, batch: Sequence[Example], method: str, base_texts: dict[str, str]) -> list[Record]:
        """One row per example. base_texts: the base's answers by id, to find out which answers the memory changed."""
        self.peak.reset()
        self._forget(batch)
        ready: list[_Prepared] = []
        found: dict[str, Record] = {}
        for example in batch:
            try:
                ready.append(self._prepared(example, method))
            except Exception as error:  # any error belongs to this example and is counted there
                failure = without_frames(error)
                found[example.id] = self._row(example, method, _digest(example.prompt.encode()), error=failure)
        for prepared, answer, seconds in self._answers(ready):
            found[prepared.example.id] = self._answered(prepared, method, answer, seconds, len(ready), base_texts)
        rows = self._graded([found[example.id] for example in batch], batch)
        for row in rows:
            self._report_once(row["missing"])
        return rows

    def _graded(self, rows: list[Record], batch: Sequence[Example]) -> list[Record]:
        """The rows with their scores and the peak of the memory that is used."""
        self._score(rows, batch)
        peak = {"peak_bytes": self.peak.bytes}
        return [with_scores(row, self.experiment.own_scores, e) | peak for row, e in zip(rows, batch, strict=True)]

    def _prepared(self, example: Example, method: str) -> _Prepared:
        llm, e, wanted = self.llm, self.experiment, self.experiment.method(method)
        made = self.memorized(example) if wanted.memorized else None
        prompt: Prompt | None = made.prompt if made else None
        if prompt is None:
            prompt = messages(example, shot=e.definition.shot if method == ONE_SHOT else None)
        own = wanted if isinstance(wanted, OwnMethod) else None
        plain = "cad" if wanted.compares_prompts else "base"  # with the prompts that a method of one's own needs
        request = llm.prepare(
            prompt,
            plain if own or method == ONE_SHOT else method,
            alpha=e.alpha,
            relative_top=e.relative_top,
            repetition_penalty=e.repetition_penalty,
            max_new_tokens=e.new_tokens,
            without_context=messages(example, with_context=False) if wanted.compares_prompts else None,
            prefix=made.prefix if made else None,
        )
        request = llm.with_memory(request, made.memory) if made else request
        if own is not None:
            request = replace(request, method=method, contrast=own.combination)
        return _Prepared(example, request, made)

    def memorized(self, example: Example) -> Memorized:
        """The memory of the example's document, made once. Errors: any error of making it, on every call."""
        in_place = self.experiment.recipe.placement == "prompt"
        key = (example.context, example.prompt if in_place else "")
        if key not in self._memories:
            try:
                self._memories[key] = self._memorize(example, in_place)
            except Exception as error:
                self._memories[key] = without_frames(error)
        made = self._memories[key]
        if isinstance(made, Exception):
            raise made
        return made

    def _memorize(self, example: Example, in_place: bool) -> Memorized:
        llm, recipe, cache = self.llm, self.experiment.recipe, None
        if not example.context:
            raise InputError("there is no document to memorize.")
        if in_place:
            tokens = example.in_place(llm.tokenizer)
            cache = llm.split_model.shareable_cache()
        else:
            tokens = llm.memory_tokens(example.context, recipe)
        run = llm.memorizing(tokens, recipe, cache=cache, watch=False)
        with timed(llm.split_model.device) as trunk:
            next(run)
        with timed(llm.split_model.device) as steps:
            (memory,) = drain(run)
        prefix = Prefix(tokens.ids, cache) if cache is not None else None
        return Memorized(memory, trunk[0], steps[0], tokens if in_place else None, prefix)

    def _forget(self, batch: Sequence[Example]) -> None:
        """Drop the memories of documents that are not in this batch: those of one batch must fit into memory."""
        here = {example.context for example in batch}
        self._memories = {key: made for key, made in self._memories.items() if key[0] in here}

    def _answers(self, ready: Sequence[_Prepared]) -> Iterator[tuple[_Prepared, Answer | Exception, float]]:
        """(example, its answer or the error, its share of the seconds)."""
        if not ready:
            return
        try:
            with timed(self.llm.split_model.device) as seconds:
                found = answers(self.llm.batch(), [p.request for p in ready], self.experiment.batch_size)
        except Exception as error:
            failure = without_frames(error)  # so that the caches of this batch are free before it is tried again
        else:
            for prepared, answer in zip(ready, found, strict=True):
                yield prepared, answer, seconds[0] / len(ready)
            return
        if len(ready) == 1:
            yield ready[0], failure, 0.0
            return
        log.warning("a batch of %d failed (%s); answering one by one.", len(ready), failure)
        for prepared in ready:
            yield from self._answers([prepared])

    def _answered(
        self,
        prepared: _Prepared,
        method: str,
        answer: Answer | Exception,
        seconds: float,
        batch: int,
        base_texts: dict[str, str],
    ) -> Record:
        example, prompt, made = prepared.example, prepared.request.prompt, prepared.made
        digest = _digest(prompt.numpy().tobytes())
        if isinstance(answer, Exception):
            return self._row(example, method, digest, error=answer)
        row = self._row(example, method, digest)
        row |= {"text": answer.text, "token_ids": list(answer.token_ids), "reason": answer.reason, "batch": batch}
        row["seconds"]["decode"] = round(seconds, 6)
        if made is not None:
            row["seconds"] |= {"trunk": round(made.trunk_seconds, 6), "steps": round(made.steps_seconds, 6)}
            row["trace"] = [[round(v, 6) for v in (s.loss, s.cross_entropy, s.kl)] for s in made.memory.trace]
            row["stopped"] = made.memory.stopped
            if base_texts.get(example.id, answer.text) != answer.text:
                row["moved"] = token_log_probabilities(self.llm, prompt, answer, made.memory)
        return row

    def _row(self, example: Example, method: str, digest: str, error: Exception | None = None) -> Record:
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
            "error": None if error is None else f"{type(error).__name__}: {str(error).strip() or 'no text'}",
        }

    def _score(self, rows: Sequence[Record], batch: Sequence[Example]) -> None:
        """Fill in the scores."""
        summaries: list[tuple[Record, Example]] = []
        for row, example in zip(rows, batch, strict=True):
            if file_score(self.experiment.definition):
                continue  # which grades it alone
            if (score := self.experiment.definition.score) is not None:
                row["scores"] = score(row["text"], example)
            elif row["error"]:
                row["scores"] = grading.failed(example)
            elif example.kind == "summary":
                summaries.append((row, example))
            else:
                row["scores"] = grading.graded(row["text"], example, self.experiment.definition.whole_words)
        if summaries:
            texts = [row["text"] for row, _ in summaries]
            found = grading.summarized(texts, [example for _, example in summaries], self.experiment.scorers)
            for (row, _), (scores, missing) in zip(summaries, found, strict=True):
                row["scores"], row["missing"] = scores, missing

    def _report_once(self, missing: dict[str, str]) -> None:
        """Report a score that cannot be computed when it is first missing, not only in the final table."""
        for name, reason in missing.items():
            if name not in self._reported and "was left out" not in reason:
                self._reported.add(name)
                log.warning("%s; the run continues without it.", reason)


@torch.no_grad()
def token_log_probabilities(
    llm: FastMem,
    prompt: Tensor,  # [S]
    answer: Answer,
    memory: Memory,
) -> list[tuple[str, float, float]]:
    """(token, its log-probability under the base, under the memory) for every token of an answer.

    It takes one trunk pass, and two tails over the positions of the answer.
    """
    tokens, encoded, opening = torch.tensor(answer.token_ids), None, llm.preparer.opening
    if opening is not None:  # the encoder reads the prompt
        encoded, prompt = llm.preparer.encoded(prompt), torch.tensor([opening.start])
    ids = torch.cat([prompt, tokens])
    positions = torch.arange(len(prompt) - 1, len(ids) - 1)
    activations = llm.split_model.read(ids, positions, memory.recipe.layers, encoded=encoded)
    sides = []
    for ffn in (None, llm.ffn(memory)):
        logits = llm.split_model.head(llm.split_model.tail(activations, ffn)).float()
        sides.append(logits.log_softmax(-1)[torch.arange(len(tokens)), tokens.to(logits.device)].tolist())
    texts = [llm.tokenizer.decode([token]) for token in answer.token_ids]
    return [(t, round(a, 4), round(b, 4)) for t, a, b in zip(texts, *sides, strict=True)]


def _digest(prompt: bytes) -> str:
    return hashlib.sha256(prompt).hexdigest()[:16]
