"""Memory files of documents: the memories are made by this process or by workers, the files are written here.

A part of a document is what a worker gets at once; a document that is not cut is one part. So a worker holds one
memory at a time, and the parts of one long document are made at the same time. Files are written as the memories come;
what is said about the documents keeps their order.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastmem.cli.choose_part import Part, parts_of
from fastmem.cli.eval_commands import ProgressReporter, duration
from fastmem.cli.memorization_progress import memorization_progress
from fastmem.cli.memory_listing import SUFFIX, memory_path, memory_record
from fastmem.cli.output import Status
from fastmem.errors import FastMemError, InputError, MemoryFileError, RunError

if TYPE_CHECKING:
    from fastmem.lab.workers import Workers
    from fastmem.memory.memory import Memory, Step
    from fastmem.memory.recipe import Recipe
    from fastmem.model import FastMem

Record = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """A document. read: returns its text. target: the file of its memory, if it is one part."""

    name: str
    target: Path
    read: Callable[[], str]


@dataclass(frozen=True)
class MemoryOptions:
    """How all documents are memorized and stored."""

    recipe: "Recipe"
    store: str | None
    keep_text: bool
    truncate: bool
    part_tokens: int | None


@dataclass
class Outcome:
    """What came of a document. count: its parts, None until it was read. records: by the part's number, from 1. said:
    how many of them were reported.
    """

    source: Source
    count: int | None = None
    records: dict[int, Record] = field(default_factory=dict)
    error: FastMemError | None = None
    said: int = 0

    @property
    def finished(self) -> bool:
        return self.error is not None or self.count == len(self.records)


@dataclass(frozen=True)
class PartToMemorize:
    """A part that has no memory yet. document: its index. place: document and part, for the status line."""

    document: int
    part: Part
    place: str


@dataclass(frozen=True)
class MadePart:
    """The memory of a part, or the error of making it."""

    unit: PartToMemorize
    memory: "Memory | FastMemError"
    seconds: float


class DocumentMemorizer:
    """Memorizes documents. on_memory, on_error: called for every memory and every document that fails, in order."""

    def __init__(
        self,
        llm: "FastMem",
        sources: Sequence[Source],
        options: MemoryOptions,
        status: Status,
        on_memory: Callable[[Record], None],
        on_error: Callable[[Source, FastMemError], None],
    ):
        self.llm, self.options, self.status = llm, options, status
        self.on_memory, self.on_error = on_memory, on_error
        self.outcomes = [Outcome(source) for source in sources]
        self._targets: set[Path] = set()
        self._reported = 0  # documents of which all is said

    def run(self, workers: "Workers", quiet: bool) -> None:
        """Make and write all memories. quiet: without progress."""
        from fastmem.lab.workers import Lost, ThisProcess
        from fastmem.memory.effect import warn_of_effects

        here = isinstance(workers, ThisProcess)
        recipe, truncate = self.options.recipe, self.options.truncate
        on_steps = partial(memorization_progress, self.status, steps=recipe.steps) if here else None
        progress = None if here else _WorkersProgress(self.outcomes, workers.count, self.status, quiet)
        make = partial(_part_memorizer, recipe=recipe, truncate=truncate, on_steps=on_steps)
        for found in workers.results(make, self._units(progress)):
            outcome = self.outcomes[found.unit.document]
            if outcome.error is not None:
                continue  # a part that was on its way when another one failed
            try:
                if isinstance(found, Lost):
                    raise RunError(found.reason)
                if isinstance(found.memory, FastMemError):
                    raise found.memory
                if not here:  # where it was made nobody saw the warning
                    warn_of_effects([found.memory])
                outcome.records[found.unit.part.number] = self._written(outcome.source, found.unit.part, found)
            except FastMemError as error:
                outcome.error = error
            self._report()
            if progress:
                progress.show()

    def _units(self, progress: "_WorkersProgress | None") -> Iterator[PartToMemorize]:
        """The parts to memorize. A document is read, and the memories that exist are checked, when its turn comes."""
        for index, outcome in enumerate(self.outcomes):
            place = f"{outcome.source.name} ({index + 1} of {len(self.outcomes)})"
            if progress:
                progress.show()
            else:
                self.status(f"{place} ...")
            try:
                parts = parts_of(self.llm, outcome.source.read(), self.options.part_tokens)
                outcome.count = len(parts)
                for part in parts:
                    target = _target(outcome.source, part)
                    if target in self._targets:
                        raise InputError(f"{target.name} is already the memory of another document: rename this one.")
                    self._targets.add(target)
                    if (record := self._kept(outcome.source, part)) is not None:
                        outcome.records[part.number] = record
                        self._report()
                    else:
                        what = place if part.count == 1 else f"{place}, {part.place}"
                        yield PartToMemorize(index, part, what)
                    if outcome.error is not None:
                        break
            except FastMemError as error:
                outcome.error = outcome.error or error
            self._report()

    def _kept(self, source: Source, part: Part) -> Record | None:
        """The record of the memory that is there, if it is one of this text, recipe, stored form and base."""
        from fastmem.memory.effect import warn_of_effects
        from fastmem.memory.memory import Memory
        from fastmem.model_identity import is_of_model
        from fastmem.prompts import document_identity

        recipe, target = self.options.recipe, _target(source, part)
        try:
            existing = Memory.load(target)
        except MemoryFileError:
            return None
        tokens = self.llm.memory_tokens(part.text, recipe, self.options.truncate)
        now, of = document_identity(tokens, part.text), existing.details
        if (
            any(of.get(name) != now[name] for name in ("text_sha256", "tokens_sha256"))
            or of.get("stored", {}).get("dtype") != self.options.store
            or ("text" in of) is not self.options.keep_text
            or _asked(existing) != asdict(recipe)
            or not is_of_model(existing, self.llm)
        ):
            return None
        warn_of_effects([existing])
        return memory_record(target, existing) | {"kept": True} | _origin(source, part)

    def _written(self, source: Source, part: Part, made: MadePart) -> Record:
        """Write a memory. Returns its record. Errors: `MemoryFileError`."""
        memory, target = made.memory, _target(source, part)
        assert not isinstance(memory, FastMemError)
        started = time.perf_counter()
        try:
            make_folder(target.parent)
        except InputError as error:  # not the document's fault
            raise MemoryFileError(error.text) from error
        memory.save(target, dtype=self.options.store, text=self.options.keep_text)
        seconds = made.seconds + time.perf_counter() - started
        return memory_record(target, memory) | {"kept": False, "seconds": seconds} | _origin(source, part)

    def _report(self) -> None:
        """Say what is known of the next documents in order: their memories, then the error of one that failed."""
        for outcome in self.outcomes[self._reported :]:
            while (record := outcome.records.get(outcome.said + 1)) is not None:
                outcome.said += 1
                self.on_memory(record)
            if not outcome.finished:
                return
            self._reported += 1
            if outcome.error is not None:
                for number in sorted(number for number in outcome.records if number > outcome.said):
                    self.on_memory(outcome.records[number])
                self.on_error(outcome.source, outcome.error)


def make_folder(folder: Path) -> None:
    """Errors: `InputError` if it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output {str(folder)!r} is not a folder ({error.strerror}): give a folder.") from error


def _target(source: Source, part: Part) -> Path:
    """The file of the memory of a part."""
    return memory_path(source.target.parent, part.name(source.target.name.removesuffix(SUFFIX)))


def _asked(memory: "Memory") -> Record:
    """The fields of the recipe that was asked for, of which a shortlist that was too small was replaced."""
    return asdict(memory.recipe) | {"shortlist": memory.details.get("replaced_shortlist", memory.recipe.shortlist)}


def _origin(source: Source, part: Part) -> Record:
    return {"source": source.name} | (part.record() if part.count > 1 else {})


def _part_memorizer(
    llm: "FastMem",
    *,
    recipe: "Recipe",
    truncate: bool,
    on_steps: "Callable[[str], Callable[[Step], None] | None] | None",
) -> Callable[[PartToMemorize], Iterator[MadePart]]:
    """What a worker does with a part. on_steps: returns the `on_step` of a place."""

    def made(unit: PartToMemorize) -> Iterator[MadePart]:
        started = time.perf_counter()
        try:
            on_step = on_steps(unit.place) if on_steps else None
            memory = llm.memorize(unit.part.text, recipe, truncate=truncate, on_step=on_step)
        except FastMemError as error:
            yield MadePart(unit, error, 0.0)
            return
        on_host = {name: tensor.detach().cpu() for name, tensor in memory.tensors.items()}
        yield MadePart(unit, replace(memory, tensors=on_host), time.perf_counter() - started)

    return made


class _WorkersProgress:
    """How far all workers are, on one line."""

    def __init__(self, outcomes: Sequence[Outcome], workers: int, status: Status, quiet: bool):
        self.outcomes, self.workers = outcomes, workers
        self._reporter, self._started = ProgressReporter(status, quiet), time.monotonic()

    def show(self) -> None:
        finished = sum(outcome.finished for outcome in self.outcomes)
        made = sum(not record["kept"] for outcome in self.outcomes for record in outcome.records.values())
        new = sum(o.finished and not all(r["kept"] for r in o.records.values()) for o in self.outcomes)
        seconds = time.monotonic() - self._started
        text = f"{finished} of {len(self.outcomes)} documents, {made} memories made, {self.workers} workers"
        text += f", {duration(seconds)}"
        if new and (left := len(self.outcomes) - finished):
            text += f", about {duration(seconds / new * left)} left"
        self._reporter.show(text)
