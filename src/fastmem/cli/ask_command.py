"""`fastmem ask`: a document, a question, an answer; by one method or by all of them beside each other."""

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastmem.cli import memorization_view
from fastmem.cli.flags import DecodingFlags, ModelFlags, OutputFlags, RecipeFlags, with_flags
from fastmem.cli.output import Status, console, emit, say
from fastmem.cli.read_document import document
from fastmem.errors import InputError

if TYPE_CHECKING:
    from fastmem.answer.running_batch import Answer, Stream
    from fastmem.memory.memory import Memory
    from fastmem.memory.recipe import Recipe
    from fastmem.model import FastMem
    from fastmem.surprisal_report import TokenSurprisal


@with_flags
def ask(
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="What is to be answered from the document.")],
    model: ModelFlags,
    recipe: RecipeFlags,
    decoding: DecodingFlags,
    output: OutputFlags,
    context: Annotated[
        str | None, typer.Option("--context", "-c", metavar="FILE", help="The document; - reads standard input.")
    ] = None,
    text: Annotated[str | None, typer.Option("--text", metavar="TEXT", help="The document, right here.")] = None,
    method: Annotated[str, typer.Option(metavar="NAME", help="How to answer: base, fastmem, cad, ...")] = "fastmem",
    compare: Annotated[bool, typer.Option("--compare", help="All methods beside each other.")] = False,
    show_memorization: Annotated[
        bool, typer.Option("--show-memorization", help="The losses of every step; the document before and after.")
    ] = False,
    memory: Annotated[
        str | None, typer.Option("--memory", metavar="FILE", help="A memory of this document, made before.")
    ] = None,
    truncate: Annotated[
        bool, typer.Option("--truncate", help="Cut the document, never the question, to what the model can read.")
    ] = False,
) -> None:
    """Answer a question from a document.

    The document is memorized first (a few seconds), then the answer is printed while it is generated.

    \b
    Examples:
      fastmem ask "Who is the mayor?" --context report.txt --model Qwen/Qwen3-0.6B
      cat report.txt | fastmem ask "Who is the mayor?" --context - --compare
      fastmem ask "Who is the mayor?" -c report.txt --show-memorization --steps 20
    """
    the_document = document(context, text)
    from fastmem.answer.contrast import METHODS, method_named
    from fastmem.memory.memory import Memory
    from fastmem.prompts import Tokens, document_identity

    if show_memorization and not compare and not method_named(method).memorized:
        raise InputError(f"--show-memorization with method {method!r}, which memorizes nothing: take fastmem.")
    method_named(method)
    recipe.check()
    options = decoding.options()
    with Status(quiet=output.quiet) as status:
        status(f"loading {model.model or 'the embedded model'} ...")
        llm = model.load()
        loaded = Memory.load(memory, model=llm) if memory else None
    if model.model is None and not output.quiet:
        say(
            "note: the embedded model knows only its made-up world (fastmem demo); for real documents give --model ID."
        )
    if loaded is not None and not output.quiet:
        now = document_identity(Tokens([0]), the_document)["text_sha256"]
        if loaded.details.get("text_sha256", now) != now:
            say(f"note: {memory} was made of another text than this document.")
    case = _Case(llm, question, the_document, recipe.make(llm.recipe), truncate, options, output)
    if compare:
        _compare(case, tuple(METHODS), loaded, show_memorization)
    else:
        _one(case, method, loaded, show_memorization)


@dataclass(frozen=True)
class _Case:
    """One question to one document."""

    llm: "FastMem"
    question: str
    context: str
    recipe: "Recipe"
    truncate: bool
    options: dict[str, Any]
    output: OutputFlags

    def ask(self, method: str, memory: "Memory | None", status: Status) -> "Stream":
        """Memorizes, where the method does and no memory is given; decodes while it is iterated."""
        steps = self.recipe.steps

        def on_step(step: Any) -> None:
            status(f"memorizing: step {step.index + 1} of {steps}, loss {step.loss:.3f}")

        return self.llm.ask(
            self.question,
            self.context,
            method,
            self.recipe,
            memory=memory,
            on_step=on_step if status.shown else None,
            truncate=self.truncate,
            **self.options,
        )

    def surprisals(self, memory: "Memory") -> "list[TokenSurprisal]":
        from fastmem.surprisal_report import surprisal_report

        tokens = memorization_view.memorized_tokens(
            self.llm, self.question, self.context, memory.recipe, self.truncate
        )
        return surprisal_report(self.llm, tokens, memory)

    def show(self, memory: "Memory") -> None:
        page = console()
        memorization_view.print_steps(page, memory)
        memorization_view.print_tokens(page, self.surprisals(memory))
        page.print()


def _one(case: _Case, method: str, memory: "Memory | None", show_memorization: bool) -> None:
    with Status(quiet=case.output.quiet) as status:
        stream = case.ask(method, memory, status)
    made = stream.memory if show_memorization else None
    if case.output.json:
        answer = stream.run()
        shown = {"tokens": [asdict(token) for token in case.surprisals(made)]} if made else {}
        return emit({"model": case.llm.name, "question": case.question} | _record(answer) | shown)
    if made:
        case.show(made)
    try:
        for piece in stream:
            print(piece, end="", flush=True)
    finally:  # an interrupt ends the line, too
        print(flush=True)
    if not case.output.quiet and stream.answer is not None:
        say(_summary(stream.answer, loaded=memory is not None))


def _compare(case: _Case, methods: tuple[str, ...], memory: "Memory | None", show_memorization: bool) -> None:
    answers: list[Answer] = []
    made, seconds = memory, 0.0
    with Status(quiet=case.output.quiet) as status:
        for number, method in enumerate(methods, 1):
            status(f"{method} ({number} of {len(methods)}) ...")
            answer = case.ask(method, made, status).run()
            if answer.memory is not None:
                made, seconds = answer.memory, seconds or answer.memorize_seconds
                answer = replace(answer, memorize_seconds=seconds)
            answers.append(answer)
    if case.output.json:
        shown = {"tokens": [asdict(t) for t in case.surprisals(made)]} if made and show_memorization else {}
        records = [_record(answer) for answer in answers]
        return emit({"model": case.llm.name, "question": case.question, "answers": records} | shown)
    if made and show_memorization:
        case.show(made)
    _print_table(answers)


def _print_table(answers: "list[Answer]") -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("method", no_wrap=True)
    table.add_column("answer", ratio=1)
    table.add_column("memorize\nseconds", justify="right")
    table.add_column("seconds\nper token", justify="right")
    for answer in answers:
        memorized = f"{answer.memorize_seconds:.2f}" if answer.memory is not None else "-"
        table.add_row(answer.method, " ".join(answer.text.split()), memorized, f"{_per_token(answer):.4f}")
    console().print(table)


def _record(answer: "Answer") -> dict[str, Any]:
    record: dict[str, Any] = {
        "method": answer.method,
        "text": answer.text,
        "reason": answer.reason,
        "prompt_tokens": answer.prompt_tokens,
        "new_tokens": len(answer.token_ids),
        "memorize_seconds": answer.memorize_seconds,
        "decode_seconds": answer.decode_seconds,
        "seconds_per_token": _per_token(answer),
    }
    memory = answer.memory
    if memory is None:
        return record
    trace = [asdict(step) for step in memory.trace]
    return record | {"recipe": asdict(memory.recipe), "stopped": memory.stopped, "trace": trace}


def _per_token(answer: "Answer") -> float:
    """Wall time of decoding, the reading of the prompt included, over the new tokens."""
    return answer.decode_seconds / max(len(answer.token_ids), 1)


def _summary(answer: "Answer", *, loaded: bool) -> str:
    """What it took, on one line."""
    count, memory = len(answer.token_ids), answer.memory
    text = f"{answer.method}: "
    if memory is not None and loaded:
        text += "memory from its file; "
    elif memory is not None:
        first, last = (memory.trace[0].loss, memory.trace[-1].loss) if memory.trace else (0.0, 0.0)
        losses = f", loss {first:.2f} to {last:.2f}" if memory.trace else ""
        text += f"{len(memory.trace)} steps in {answer.memorize_seconds:.2f} s{losses}; "
    text += f"{count} tokens in {answer.decode_seconds:.2f} s ({_per_token(answer):.4f} s each)"
    return text + ("; cut off at --max-new-tokens" if answer.reason == "length" else "")
