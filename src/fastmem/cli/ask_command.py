"""`fastmem ask`: answers a question about a document, with one method or with all methods for comparison."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastmem.cli import memorization_view
from fastmem.cli.choose_document import Choice, fitting_document, named_document, say_choice
from fastmem.cli.choose_part import Part, fitting_part_of
from fastmem.cli.demo_view import print_example
from fastmem.cli.flags import DecodingFlags, ModelFlags, OutputFlags, RecipeFlags, given_values, with_flags
from fastmem.cli.memorization_progress import memorization_progress
from fastmem.cli.memory_listing import document_name, memory_of, names_in_folders
from fastmem.cli.output import Status, console, emit, notice_text, say
from fastmem.cli.read_document import read_document
from fastmem.errors import InputError
from fastmem.home_path import expanded

if TYPE_CHECKING:
    from fastmem.answer.running_batch import Answer, Stream
    from fastmem.memory.memory import Memory
    from fastmem.memory.recipe import Recipe
    from fastmem.model import FastMem
    from fastmem.surprisal_report import TokenSurprisal


@with_flags
def ask(
    model: ModelFlags,
    recipe: RecipeFlags,
    decoding: DecodingFlags,
    output: OutputFlags,
    question: Annotated[
        str | None, typer.Argument(metavar="QUESTION", help="The question about the document.")
    ] = None,
    context: Annotated[
        str | None, typer.Option("--context", "-c", metavar="FILE", help="The document; - reads standard input.")
    ] = None,
    text: Annotated[str | None, typer.Option("--text", metavar="TEXT", help="The document as an argument.")] = None,
    documents: Annotated[
        Path | None,
        typer.Option("--documents", metavar="DIR", help="A folder; the document whose words fit best is taken."),
    ] = None,
    document_name: Annotated[
        str | None, typer.Option("--document", metavar="NAME", help="The document of --documents with this name.")
    ] = None,
    method: Annotated[
        str | None, typer.Option(metavar="NAME", help="How to answer: base, fastmem, cad, ...; default: fastmem.")
    ] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Answer with all methods and print a table.")] = False,
    show_memorization: Annotated[
        bool,
        typer.Option("--show-memorization", help="Print the losses of each step and the surprisal of each token."),
    ] = False,
    memory: Annotated[
        str | None,
        typer.Option(
            "--memory",
            metavar="FILE",
            help="A memory of this document, or the folder where memorize wrote it.",
        ),
    ] = None,
    part_tokens: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Cut a long document into parts of at most N tokens; the part that fits best is taken.",
        ),
    ] = None,
    truncate: Annotated[
        bool, typer.Option("--truncate", help="Cut a document that is too long for the model, never the question.")
    ] = False,
) -> None:
    """Answer a question from a document.

    The document is memorized first (a few seconds), then the answer is printed while it is generated. Text, Markdown,
    HTML, PDF and Word files are read.

    With --documents, the answer comes from one document of the folder: the one that shares most with the question in
    words (BM25). It is named, and so are the next ones.

    With --part-tokens, the answer comes from one part of the document, chosen likewise: for documents that are longer
    than the model can read.

    Without a question, a document of the embedded model's world is printed, and the command that asks about it.

    \b
    Examples:
      fastmem ask
      fastmem ask "Who is the mayor?" --context report.txt --model Qwen/Qwen3-0.6B --recipe auto
      cat report.txt | fastmem ask "Who is the mayor?" --context - --compare
      fastmem ask "How many days of leave do I have?" --documents policies --model Qwen/Qwen3-0.6B --recipe auto
      fastmem ask "Who is the mayor?" -c report.txt --show-memorization --steps 20
    """
    if question is None:
        flags = [value for flags in (model, recipe, decoding) for value in vars(flags).values()]
        own = [context, text, documents, document_name, method, memory, part_tokens]
        return _example([*flags, *own, compare, show_memorization, truncate, output.json])
    if documents is None and document_name is not None:
        raise InputError("--document names a document of --documents: give that folder too, or --context FILE.")
    if documents is not None and (context is not None or text is not None):
        raise InputError("documents are given twice: give one of --documents DIR, --context FILE, --text TEXT.")
    if compare and method is not None:
        raise InputError("--compare answers with all methods: leave out --method, or --compare.")
    changed = [f"--{name.replace('_', '-')}" for name in given_values(recipe)]
    if memory is not None and changed and not Path(memory).is_dir():
        raise InputError(f"a memory is used as it was made: leave out {', '.join(changed)}, or --memory.")
    from fastmem.answer.contrast import METHODS, method_named
    from fastmem.memory.effect import warn_of_effects
    from fastmem.memory.memory import Memory

    method = method or "fastmem"
    if not method_named(method).memorized and show_memorization and not compare:
        raise InputError(f"--show-memorization: method {method!r} does not memorize; use --method fastmem.")
    options = decoding.options()
    choice: Choice | None = None
    with Status(quiet=output.quiet) as status:
        if documents is None:
            if context is None and text is None:
                raise _no_document(memory)
            document = read_document(context, text)
        else:
            choice = _chosen(documents, document_name, question, status, output.quiet)
            document = choice.document.text
        llm = model.load(status)
        status("")
        part = fitting_part_of(llm, document, part_tokens, question, output.quiet)
        names = _names(context, choice) if choice or part_tokens or text is None else []
        file = _memory_file(memory, [part.name(name) for name in names], part.text, output.quiet)
        loaded = Memory.load(file, model=llm) if file else None
        if loaded is not None:
            if changed and not output.quiet:
                say(f"note: {file} is used as it was made, without {', '.join(changed)}.")
            warn_of_effects([loaded])
        needed = loaded is None and (compare or method_named(method).memorized)
        made = recipe.of(llm, status) if needed else recipe.known()
    if model.model is None and not output.quiet:
        say("note: the embedded model is small and reads short, plain texts only; use --model ID for real documents.")
    query = _Query(llm, question, part.text, made, loaded, truncate, options, output.quiet, choice, part)
    if compare:
        _compare(query, tuple(METHODS), output.json, show_memorization)
    else:
        _answer(query, method, output.json, show_memorization)


def _example(given: list[Any]) -> None:
    """What `fastmem ask` alone shows. given: the options. Errors: `InputError` if there is one."""
    if any(one is not None and one is not False for one in given):
        raise InputError('the question is missing: fastmem ask "QUESTION" --context FILE.')
    print_example(console())


@dataclass(frozen=True)
class _Query:
    """A question about a document. memory: from a file, or None. choice: how the document was found in a folder.

    part: which part of the document the context is.
    """

    llm: "FastMem"
    question: str
    context: str
    recipe: "Recipe"
    memory: "Memory | None"
    truncate: bool
    options: dict[str, Any]
    quiet: bool
    choice: Choice | None
    part: Part

    def ask(self, method: str, memory: "Memory | None", status: Status) -> "Stream":
        """Memorizes if the method needs it and no memory is given; decodes while it is iterated."""
        from fastmem.answer.contrast import method_named

        what = "memorizing" if self.part.count == 1 else f"memorizing {self.part.place}"
        memorizes = memory is None and method_named(method).memorized
        return self.llm.ask(
            self.question,
            self.context,
            method,
            self.recipe,
            memory=memory,
            on_step=memorization_progress(status, what, self.recipe.steps) if memorizes else None,
            truncate=self.truncate,
            **self.options,
        )

    def warm_up(self, method: str) -> None:
        """Memorize and answer a short text, so that what a first run costs once is not taken for the method's cost."""
        recipe, options = replace(self.recipe, steps=1), self.options | {"max_new_tokens": 3}
        self.llm.answer("Warm up?", "Warm up.", method, recipe, **options)

    def surprisals(self, memory: "Memory") -> "list[TokenSurprisal]":
        from fastmem.answer.request import Decoding
        from fastmem.surprisal_report import surprisal_report

        asked = self.llm.preparer.question(
            self.question,
            self.context,
            "fastmem",
            Decoding.of(self.options),
            memory.recipe.placement,
            self.truncate,
        )
        assert asked.document is not None
        return surprisal_report(self.llm, asked.document, memory)

    def emit(self, answers: dict[str, Any], shown: "Memory | None") -> None:
        """Print the answers as JSON. shown: the memory whose surprisals are added."""
        tokens = {"tokens": [asdict(token) for token in self.surprisals(shown)]} if shown else {}
        found = self.choice.record() if self.choice else {}
        found |= self.part.record() if self.part.count > 1 else {}
        emit({"model": self.llm.name, "question": self.question} | found | answers | tokens)

    def show(self, memory: "Memory") -> None:
        page = console()
        memorization_view.print_steps(page, memory)
        memorization_view.print_tokens(page, self.surprisals(memory))
        page.print()


def _no_document(memory: str | None) -> InputError:
    missing = "no document is given" if memory is None else "the document is missing (a memory does not replace it)"
    return InputError(
        f"{missing}: give one of --context FILE, --context - (standard input), --text TEXT, --documents DIR."
    )


def _chosen(folder: Path, name: str | None, question: str, status: Status, quiet: bool) -> Choice:
    choice = fitting_document(folder, question, status) if name is None else named_document(folder, name)
    if not quiet:
        say_choice(choice)
    return choice


def _names(context: str | None, choice: Choice | None) -> list[str]:
    """The names under which `fastmem memorize` may have kept a document's memory, its own first."""
    if choice is not None:
        return [choice.document.name, *names_in_folders(choice.document.path)]
    return ["stdin"] if context in (None, "-") else [document_name(context), *names_in_folders(expanded(context))]


def _memory_file(memory: str | None, names: Sequence[str], text: str, quiet: bool) -> str | None:
    """The file of the memory. In a folder of memories it is that of this text; None if there is none."""
    if memory is None or not names or not Path(memory).is_dir():
        return memory
    file = memory_of(Path(memory), names, text)
    if file is None and not quiet:
        say(f"note: {memory} has no memory of {names[0]}: it is memorized now.")
    return None if file is None else str(file)


def _answer(query: _Query, method: str, as_json: bool, show_memorization: bool) -> None:
    with Status(quiet=query.quiet) as status:
        stream = query.ask(method, query.memory, status)
    shown = stream.memory if show_memorization else None
    if as_json:
        return query.emit(_record(stream.run()), shown)
    if shown:
        query.show(shown)
    try:
        for piece in stream:
            print(piece, end="", flush=True)
    finally:  # also end the line after an interrupt
        print(flush=True)
    if not query.quiet and stream.answer is not None:
        say(_summary(stream.answer, loaded=query.memory is not None))


def _compare(query: _Query, methods: tuple[str, ...], as_json: bool, show_memorization: bool) -> None:
    from fastmem.answer.contrast import METHODS

    answers: list[Answer] = []
    memory, seconds = query.memory, 0.0
    with Status(quiet=query.quiet) as status:
        for number, method in enumerate(methods, 1):
            status(f"{method} ({number} of {len(methods)}) ...")
            query.warm_up(method)
            answer = query.ask(method, memory if METHODS[method].memorized else None, status).run()
            if answer.memory is not None:
                memory, seconds = answer.memory, seconds or answer.memorize_seconds
                answer = replace(answer, memorize_seconds=seconds)
            answers.append(answer)
    shown = memory if show_memorization else None
    if as_json:
        return query.emit({"answers": [_record(answer) for answer in answers]}, shown)
    if shown:
        query.show(shown)
    _print_table(answers)


def _print_table(answers: "list[Answer]") -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("method", no_wrap=True)
    table.add_column("answer", ratio=1)
    for title in ("memorize\nseconds", "prompt\nseconds", "seconds\nper token"):
        table.add_column(title, justify="right")
    for answer in answers:
        memorize = f"{answer.memorize_seconds:.2f}" if answer.memory is not None else "-"
        token = "-" if answer.seconds_per_token is None else f"{answer.seconds_per_token:.4f}"
        table.add_row(answer.method, " ".join(answer.text.split()), memorize, f"{answer.prompt_seconds:.3f}", token)
    page = console()
    page.print(table)
    page.print(
        "\nTimes after a warm-up on a short text: memorizing, once per document; reading the prompt, up to the first "
        "token; the mean of the tokens after it."
    )


def _record(answer: "Answer") -> dict[str, Any]:
    record: dict[str, Any] = {
        "method": answer.method,
        "text": answer.text,
        "reason": answer.reason,
        "prompt_tokens": answer.prompt_tokens,
        "new_tokens": len(answer.token_ids),
        "memorize_seconds": answer.memorize_seconds,
        "decode_seconds": answer.decode_seconds,
        "prompt_seconds": answer.prompt_seconds,
        "seconds_per_token": answer.seconds_per_token,
    }
    memory = answer.memory
    if memory is None:
        return record
    trace = [asdict(step) for step in memory.trace]
    said = {"stopped": memory.stopped, "notice": notice_text(memory.notice)}
    return record | {"recipe": asdict(memory.recipe), "trace": trace} | said


def _summary(answer: "Answer", *, loaded: bool) -> str:
    """Steps, tokens and seconds, on one line."""
    count, memory = len(answer.token_ids), answer.memory
    text = f"{answer.method}: "
    if memory is not None and loaded:
        text += "memory from file; "
    elif memory is not None:
        first, last = (memory.trace[0].loss, memory.trace[-1].loss) if memory.trace else (0.0, 0.0)
        losses = f", loss {first:.2f} to {last:.2f}" if memory.trace else ""
        text += f"{len(memory.trace)} steps in {answer.memorize_seconds:.2f} s{losses}; "
    text += f"prompt in {answer.prompt_seconds:.2f} s; {count} tokens"
    if answer.seconds_per_token is not None:
        text += f", {answer.seconds_per_token:.4f} s for each after the first"
    return text + ("; cut off at --max-new-tokens" if answer.reason == "length" else "")
