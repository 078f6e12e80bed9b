"""`fastmem demo`: the embedded model contradicts documents; with FastMem it does not.

Five conflicts beside each other, then a hundred rows that nobody picked. Everything is computed while one looks.
"""

import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastmem.cli.flags import ModelFlags, OutputFlags, with_flags
from fastmem.cli.output import Status, console, emit, writes
from fastmem.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from fastmem.lab.tasks.example import Example
    from fastmem.memory.memory import Memory
    from fastmem.model import FastMem

BATCH = 10  # rows between two movements of the progress bar
MOST_SEARCHED = 60  # rows read to find the conflicts
NEW_TOKENS = 40


@dataclass(frozen=True)
class Conflict:
    """One row, and what was said: `known` is what the model had learned by heart."""

    question: str
    document: str
    stated: str
    gold: str
    known: str
    alone: str
    fastmem: str
    alone_right: bool
    fastmem_right: bool


@with_flags
def demo(
    output: OutputFlags,
    conflicts: Annotated[int, typer.Option(metavar="N", help="Conflicts to show beside each other.")] = 5,
    rows: Annotated[int, typer.Option(metavar="N", help="Rows behind the two accuracies.")] = 100,
) -> None:
    """See a small model stop contradicting documents; under a minute.

    The embedded model knows a made-up world by heart. Its documents here say something else than it knows: alone it
    often answers from memory, with FastMem from the document.

    \b
    Examples:
      fastmem demo
      fastmem demo --json --rows 20
    """
    if conflicts < 1 or rows < 1:
        raise InputError(f"--conflicts {conflicts}, --rows {rows}: give whole numbers, 1 or more.")
    from fastmem.lab.tasks import embedded_world

    started = time.perf_counter()
    page, quiet = console(), output.quiet or output.json
    with Status(quiet=quiet) as status:
        status("loading the embedded model ...")
        llm = ModelFlags().load()
        status("looking for documents that it contradicts ...")
        found = _conflicts(llm, list(embedded_world.examples("world_swap", "dev")), conflicts)
    if not output.json:
        _print_conflicts(page, found)
    measured = list(embedded_world.examples("world_swap", "test"))[:rows]
    with _progress(len(measured), quiet=quiet) as advance:
        alone, with_memory, memorize_seconds = _accuracies(llm, measured, advance)
    seconds = time.perf_counter() - started
    if output.json:
        result = {"model": llm.name, "conflicts": [vars(one) for one in found], "rows": len(measured)}
        accuracy = {"base": alone, "fastmem": with_memory}
        return emit(result | {"accuracy": accuracy, "memorize_seconds": memorize_seconds, "seconds": seconds})
    _print_accuracies(page, len(measured), alone, with_memory)
    page.print(
        f"\n{memorize_seconds:.2f} s to memorize a document, {seconds:.0f} s in all ({llm.split_model.device.type})."
    )
    _print_next(page, found)


def _conflicts(llm: "FastMem", rows: "list[Example]", wanted: int) -> list[Conflict]:
    """The first rows on which the model alone says what it knows instead of what the document says."""
    found: list[tuple[Example, str]] = []
    for start in range(0, MOST_SEARCHED, BATCH):
        batch = rows[start : start + BATCH]
        for row, reply in zip(batch, _replies(llm, batch), strict=True):
            if _grade(reply, row).remembered and len(found) < wanted:
                found.append((row, reply))
        if len(found) == wanted:
            break
    if not found:
        raise InputError(f"the embedded model contradicts none of {MOST_SEARCHED} documents: are its weights whole?")
    chosen = [row for row, _ in found]
    replies = _replies(llm, chosen, _memories(llm, chosen))
    return [_conflict(row, alone, reply) for (row, alone), reply in zip(found, replies, strict=True)]


def _conflict(row: "Example", alone: str, fastmem: str) -> Conflict:
    from fastmem.tiny.world import mentions

    sentences = [f"{part.rstrip('.')}." for part in row.context.split(". ")]
    before, after = _grade(alone, row), _grade(fastmem, row)
    return Conflict(
        question=row.question,
        document=row.context,
        stated=next((s for s in sentences if mentions(s, row.reference)), row.context),
        gold=row.reference,
        known=row.original_answers[0],
        alone=before.answer or alone,
        fastmem=after.answer or fastmem,
        alone_right=before.exact_match,
        fastmem_right=after.exact_match,
    )


def _accuracies(llm: "FastMem", rows: "list[Example]", advance: Callable[[int], None]) -> tuple[float, float, float]:
    """(share right alone, share right with FastMem, mean seconds to memorize)."""
    right, seconds = [0, 0], 0.0
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        began = time.perf_counter()
        memories = _memories(llm, batch)
        seconds += time.perf_counter() - began
        for side, replies in enumerate((_replies(llm, batch), _replies(llm, batch, memories))):
            right[side] += sum(_grade(reply, row).exact_match for row, reply in zip(batch, replies, strict=True))
        advance(len(batch))
    return right[0] / len(rows), right[1] / len(rows), seconds / len(rows)


def _memories(llm: "FastMem", rows: "list[Example]") -> "list[Memory]":
    return llm.memorize([row.context for row in rows])


def _replies(llm: "FastMem", rows: "list[Example]", memories: "list[Memory] | None" = None) -> list[str]:
    method = "base" if memories is None else "fastmem"
    prompts: list[Any] = [row.prompt for row in rows]
    return [a.text for a in llm.generate(prompts, memories, method, max_new_tokens=NEW_TOKENS)]


def _grade(reply: str, row: "Example") -> Any:
    from fastmem.lab.scores.qa import grade

    return grade(reply, row)


@contextmanager
def _progress(total: int, *, quiet: bool) -> Iterator[Callable[[int], None]]:
    """A bar on standard error, if that is a terminal; gives the function that moves it."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    page = console(stderr=True)
    title = TextColumn(f"{total} more, alone and with FastMem")
    parts = (title, BarColumn(), TextColumn("{task.completed} of {task.total}"), TimeElapsedColumn())
    with Progress(*parts, console=page, transient=True, disable=quiet or not page.is_terminal) as bar:
        task = bar.add_task("", total=total)
        yield lambda count: bar.advance(task, count)


def _print_conflicts(page: "Console", found: list[Conflict]) -> None:
    from rich.table import Table
    from rich.text import Text

    right, wrong = ("✓", "✗") if writes(page, "✓✗") else ("yes:", "no:")
    page.print(f"{len(found)} documents that contradict what the embedded model knows by heart\n", style="bold")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 1, 0))
    for title, ratio in (("question", 4), ("the document says", 5), ("alone", 3), ("with FastMem", 3)):
        table.add_column(title, ratio=ratio)

    def said(answer: str, is_right: bool) -> Text:
        return Text(f"{right if is_right else wrong} {answer}", style="green" if is_right else "red")

    for one in found:
        stated = Text(one.stated)
        stated.highlight_words([one.gold], "bold")
        cells = said(one.alone, one.alone_right), said(one.fastmem, one.fastmem_right)
        table.add_row(one.question, stated, *cells)
    page.print(table)


def _print_accuracies(page: "Console", rows: int, alone: float, with_memory: float) -> None:
    from rich.text import Text

    full, empty = ("█", "░") if writes(page, "█░") else ("#", ".")
    page.print(f"\n{rows} more, not picked: how often the answer is the document's\n", style="bold")
    for title, share, style in (("alone", alone, "red"), ("with FastMem", with_memory, "green")):
        cells = round(share * 40)
        page.print(
            Text(f"{title:<13} ").append(full * cells, style).append(empty * (40 - cells), "dim"), f"{share:.2f}"
        )


def _print_next(page: "Console", found: list[Conflict]) -> None:
    """A command to go on with: the shortest of the documents."""
    one = min(found, key=lambda one: len(one.document))
    page.print("\nTry one yourself:\n", style="bold")
    text = f"fastmem ask {shlex.quote(one.question)} --compare --text {shlex.quote(one.document)}"
    page.print(text, soft_wrap=True)
