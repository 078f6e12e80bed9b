"""`fastmem demo`: the embedded model contradicts documents, and FastMem corrects it.

Shows five conflicts, then the accuracy on a hundred examples. Everything is computed when the command runs.
"""

import shlex
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastmem.cli.flags import ModelFlags, OutputFlags, with_flags
from fastmem.cli.output import Status, can_encode, console, emit
from fastmem.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from fastmem.lab.scores.qa import Grade
    from fastmem.lab.tasks.example import Example
    from fastmem.memory.memory import Memory
    from fastmem.model import FastMem

BATCH_SIZE = 10
MAX_SEARCHED = 60  # examples that are searched for conflicts
NEW_TOKENS = 40


@dataclass(frozen=True)
class Conflict:
    """An example and both answers. stated: the sentence with the answer `gold`. known: the answer trained on."""

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
    conflicts: Annotated[int, typer.Option(metavar="N", min=1, help="Number of conflicts to show.")] = 5,
    rows: Annotated[int, typer.Option(metavar="N", min=1, help="Number of examples for the two accuracies.")] = 100,
) -> None:
    """Show how a small model stops contradicting documents.

    The embedded model was trained on the facts of an invented world. The documents here contradict them: alone it
    often answers with the fact it was trained on, with FastMem from the document. Takes less than a minute.

    \b
    Examples:
      fastmem demo
      fastmem demo --json --rows 20
    """
    from fastmem.lab.tasks import embedded_world

    started = time.perf_counter()
    page = console()
    with Status(quiet=output.quiet or output.json) as status:
        llm = ModelFlags().load(status)
        status("searching for documents that it contradicts ...")
        found = _conflicts(llm, list(embedded_world.examples("world_swap", "dev")), conflicts)
        status("")
        if not output.json:
            _print_conflicts(page, found)
        measured = list(embedded_world.examples("world_swap", "test"))[:rows]
        alone, with_memory, memorize_seconds = _accuracies(llm, measured, status)
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


def _conflicts(llm: "FastMem", examples: "list[Example]", wanted: int) -> list[Conflict]:
    """The first examples for which the model alone answers with the fact it was trained on."""
    found: list[tuple[Example, str]] = []
    for start in range(0, MAX_SEARCHED, BATCH_SIZE):
        batch = examples[start : start + BATCH_SIZE]
        for example, reply in zip(batch, _replies(llm, batch), strict=True):
            if _grade(reply, example).remembered and len(found) < wanted:
                found.append((example, reply))
        if len(found) == wanted:
            break
    if not found:
        raise InputError(
            f"the embedded model contradicts none of {MAX_SEARCHED} documents, so its weights may be damaged: "
            "install fastmem again."
        )
    chosen = [example for example, _ in found]
    replies = _replies(llm, chosen, _memories(llm, chosen))
    return [_conflict(example, alone, reply) for (example, alone), reply in zip(found, replies, strict=True)]


def _conflict(example: "Example", alone: str, fastmem: str) -> Conflict:
    from fastmem.tiny.world import mentions

    sentences = [f"{part.rstrip('.')}." for part in example.context.split(". ")]
    before, after = _grade(alone, example), _grade(fastmem, example)
    return Conflict(
        question=example.question,
        document=example.context,
        stated=next((s for s in sentences if mentions(s, example.reference)), example.context),
        gold=example.reference,
        known=example.original_answers[0],
        alone=before.answer or alone,
        fastmem=after.answer or fastmem,
        alone_right=before.exact_match,
        fastmem_right=after.exact_match,
    )


def _accuracies(llm: "FastMem", examples: "list[Example]", status: Status) -> tuple[float, float, float]:
    """(accuracy alone, accuracy with FastMem, mean seconds to memorize)."""
    right, seconds = [0, 0], 0.0
    for start in range(0, len(examples), BATCH_SIZE):
        status(f"measuring the accuracy alone and with FastMem: {start} of {len(examples)} examples ...")
        batch = examples[start : start + BATCH_SIZE]
        began = time.perf_counter()
        memories = _memories(llm, batch)
        seconds += time.perf_counter() - began
        for side, replies in enumerate((_replies(llm, batch), _replies(llm, batch, memories))):
            right[side] += sum(_grade(reply, one).exact_match for reply, one in zip(replies, batch, strict=True))
    return right[0] / len(examples), right[1] / len(examples), seconds / len(examples)


def _memories(llm: "FastMem", examples: "list[Example]") -> "list[Memory]":
    return llm.memorize([example.context for example in examples])


def _replies(llm: "FastMem", examples: "list[Example]", memories: "list[Memory] | None" = None) -> list[str]:
    method = "base" if memories is None else "fastmem"
    prompts: list[Any] = [example.prompt for example in examples]
    return [answer.text for answer in llm.generate(prompts, memories, method, max_new_tokens=NEW_TOKENS)]


def _grade(reply: str, example: "Example") -> "Grade":
    from fastmem.lab.scores.qa import grade

    return grade(reply, example)


def _print_conflicts(page: "Console", found: list[Conflict]) -> None:
    from rich.table import Table
    from rich.text import Text

    right, wrong = ("✓", "✗") if can_encode(page, "✓✗") else ("yes:", "no:")
    page.print(f"{len(found)} documents that contradict what the embedded model was trained on\n", style="bold")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 1, 0))
    for title, ratio in (("question", 4), ("the document says", 5), ("alone", 3), ("with FastMem", 3)):
        table.add_column(title, ratio=ratio)

    def marked(answer: str, is_right: bool) -> Text:
        return Text(f"{right if is_right else wrong} {answer}", style="green" if is_right else "red")

    for one in found:
        stated = Text(one.stated)
        stated.highlight_words([one.gold], "bold")
        alone, with_fastmem = marked(one.alone, one.alone_right), marked(one.fastmem, one.fastmem_right)
        table.add_row(one.question, stated, alone, with_fastmem)
    page.print(table)


def _print_accuracies(page: "Console", rows: int, alone: float, with_memory: float) -> None:
    from rich.text import Text

    full, empty = ("█", "░") if can_encode(page, "█░") else ("#", ".")
    page.print(f"\n{rows} more examples, not selected: share of answers that agree with the document\n", style="bold")
    for title, share, style in (("alone", alone, "red"), ("with FastMem", with_memory, "green")):
        cells = round(share * 40)
        page.print(
            Text(f"{title:<13} ").append(full * cells, style).append(empty * (40 - cells), "dim"), f"{share:.2f}"
        )


def _print_next(page: "Console", found: list[Conflict]) -> None:
    """A command to try next, with the shortest document."""
    shortest = min(found, key=lambda one: len(one.document))
    page.print("\nTry one yourself:\n", style="bold")
    text = f"fastmem ask {shlex.quote(shortest.question)} --compare --text {shlex.quote(shortest.document)}"
    page.print(text, soft_wrap=True)
