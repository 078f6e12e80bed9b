"""`fastmem demo`: the embedded model contradicts documents, and FastMem corrects it.

Shows five conflicts, then the accuracy on a hundred examples. Everything is computed when the command runs.
"""

import time
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastmem.cli.demo_view import Conflict, command_to_ask, print_accuracies, print_conflicts, stated_in
from fastmem.cli.flags import ModelFlags, OutputFlags, with_flags
from fastmem.cli.output import Status, console, emit
from fastmem.errors import InputError

if TYPE_CHECKING:
    from fastmem.lab.scores.qa import Grade
    from fastmem.lab.tasks.example import Example
    from fastmem.memory.memory import Memory
    from fastmem.model import FastMem

BATCH_SIZE = 10
MAX_SEARCHED = 60  # examples that are searched for conflicts
NEW_TOKENS = 40
# Memorizing is most of the demo's time. Three steps at three times the model's own rate take 0.43 of it and answer as
# many development rows (100 each that contradict, agree, are irrelevant: 0.93, 0.98, 0.64; ten: 0.94, 0.98, 0.62).
STEPS, LEARNING_RATE = 3, 6e-3


@with_flags
def demo(
    output: OutputFlags,
    conflicts: Annotated[int, typer.Option(metavar="N", min=1, help="Number of conflicts to show.")] = 5,
    rows: Annotated[int, typer.Option(metavar="N", min=1, help="Number of examples for the two accuracies.")] = 100,
    pick: Annotated[
        int | None, typer.Option(metavar="SEED", min=0, help="Show other conflicts: draw the examples with this seed.")
    ] = None,
) -> None:
    """Show how a small model stops contradicting documents.

    The embedded model was trained on the facts of an invented world: people, towns, inns, ships. The documents here
    contradict them: alone it often answers with the fact it was trained on, with FastMem from the document. Memorizes
    with three steps at three times the rate instead of ten, which is as good on this model, and takes less than half
    a minute.

    \b
    Examples:
      fastmem demo
      fastmem demo --pick 7
      fastmem demo --json --rows 20
    """
    from fastmem.lab.tasks import embedded_world

    started = time.perf_counter()
    page = console()
    with Status(quiet=output.quiet or output.json) as status:
        llm = ModelFlags().load(status)
        llm.recipe = replace(llm.recipe, steps=STEPS, learning_rate=LEARNING_RATE)
        status("searching for documents that it contradicts ...")
        searched = list(embedded_world.examples("world_swap", "dev"))
        if pick is not None:
            Random(pick).shuffle(searched)
        found = _conflicts(llm, searched, conflicts)
        status("")
        if not output.json:
            print_conflicts(page, found)
        measured = list(embedded_world.examples("world_swap", "test"))[:rows]
        alone, with_memory, memorize_seconds = _accuracies(llm, measured, status)
    seconds = time.perf_counter() - started
    if output.json:
        result = {"model": llm.name, "conflicts": [vars(one) for one in found], "rows": len(measured)}
        accuracy = {"base": alone, "fastmem": with_memory}
        return emit(
            result | {"accuracy": accuracy, "steps": STEPS, "memorize_seconds": memorize_seconds, "seconds": seconds}
        )
    print_accuracies(page, len(measured), alone, with_memory)
    page.print(f"\n{memorize_seconds:.2f} s to memorize a document ({STEPS} steps), {seconds:.0f} s in all.")
    shortest = min(found, key=lambda one: len(one.document))
    page.print("\nTry one yourself:\n", style="bold")
    page.print(command_to_ask(shortest.question, shortest.document), soft_wrap=True)


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
    before, after = _grade(alone, example), _grade(fastmem, example)
    return Conflict(
        question=example.question,
        document=example.context,
        stated=stated_in(example.context, example.reference),
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
