"""`fastmem memorize`: memory files of documents, given one by one or as a folder."""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from fastmem.cli import error_text
from fastmem.cli.flags import ModelFlags, OutputFlags, RecipeFlags, with_flags
from fastmem.cli.memorize_documents import DocumentMemorizer, MemoryOptions, Source, make_folder
from fastmem.cli.memory_listing import SUFFIX, document_name, memory_line, memory_name, memory_path
from fastmem.cli.output import Status, emit, say
from fastmem.cli.read_document import no_documents, read_document, read_from_folder
from fastmem.cli.worker_flags import WorkerFlags
from fastmem.documents import find_documents
from fastmem.documents.document_files import require_readers
from fastmem.documents.text_process import TextProcess
from fastmem.errors import DocumentError, FastMemError, InputError, one_of
from fastmem.home_path import expanded


@with_flags
def memorize(
    output_folder: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for the memories.")],
    model: ModelFlags,
    recipe: RecipeFlags,
    workers: WorkerFlags,
    output: OutputFlags,
    files: Annotated[
        list[str] | None, typer.Argument(metavar="FILE...", help="Documents; one memory is made of each.")
    ] = None,
    documents: Annotated[
        Path | None, typer.Option("--documents", metavar="DIR", help="A folder of documents instead of FILE...")
    ] = None,
    store: Annotated[
        str | None,
        typer.Option("--store", metavar="TYPE", help="float32, bfloat16 or int8; default: unrounded."),
    ] = None,
    keep_text: Annotated[bool, typer.Option("--keep-text", help="Store the document's text in the file.")] = False,
    truncate: Annotated[
        bool,
        typer.Option("--truncate", help="Cut documents that are too long for the model instead of refusing them."),
    ] = False,
    part_tokens: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Cut documents into parts of at most N tokens, with a memory each."),
    ] = None,
) -> None:
    """Memorize documents into memory files, one for each.

    FILE becomes DIR/FILE.safetensors. Text, Markdown, HTML, PDF and Word files are read.

    With --documents, every document in a folder and its subfolders becomes a memory: hr/leave.pdf becomes
    hr/leave.pdf.safetensors. Files that cannot be read and documents that are too long are skipped, and named at the
    end.

    With --part-tokens, each part of a longer document has a memory: policy.part-1.safetensors and so on.
    fastmem ask --part-tokens N --memory DIR uses the one that fits the question.

    An existing memory of the same text, recipe and base is kept, so an interrupted command can be run again. If a
    document cannot be memorized, the others still are. With --workers several are memorized at the same time, into the
    same files.

    \b
    Examples:
      fastmem memorize policy.txt --output memories --model Qwen/Qwen3-0.6B --recipe auto
      fastmem memorize --documents policies --output memories --model Qwen/Qwen3-0.6B --recipe auto
      fastmem memorize --documents policies --output memories --model Qwen/Qwen3-0.6B --recipe auto --workers 2
      fastmem memorize docs/*.txt -o memories --parametrization lora --rank 8 --learning-rate 3e-3
    """
    if bool(files) == (documents is not None):
        given = "documents are given twice" if files else "no document is given"
        raise InputError(f"{given}: give FILE..., or a folder with --documents.")
    if recipe.known().placement == "prompt":
        raise InputError(
            "placement 'prompt' lays the document out inside a question, and memorize has none: give assistant, user "
            "or text, or ask the question with 'fastmem ask'.",
            field="placement",
        )
    if store is not None:
        from fastmem.memory.compression import STORED_AS

        one_of(store, STORED_AS, "stored type", field="store")
    if output_folder.suffix == SUFFIX and not output_folder.is_dir():
        folder = output_folder.parent if output_folder.parent != Path() else output_folder.stem
        raise InputError(
            f"--output is the folder of the memories, which are named after their documents; given the file "
            f"{str(output_folder)!r}. Give a folder, such as {str(folder)!r}."
        )
    with TextProcess() as process, Status(quiet=output.quiet) as status:
        if documents is not None:
            sources, skipped = _in_folder(documents, output_folder, process)
        else:
            sources, skipped = _given(files or [], output_folder), []
        make_folder(output_folder)
        llm = workers.driver(model).load(status)
        options = MemoryOptions(recipe.of(llm, status), store, keep_text, truncate, part_tokens)
        made: list[dict[str, Any]] = []
        failed: list[dict[str, Any]] = []

        def on_memory(record: dict[str, Any]) -> None:
            made.append(record)
            if not output.json:
                status("")
                print(memory_line(record, memory_name(Path(record["file"]), output_folder)), flush=True)

        def on_error(source: Source, error: FastMemError) -> None:
            status("")
            text = error_text(error, "memorize")
            if documents is not None and isinstance(error, InputError):  # no memory of this document is possible
                skipped.append((source.name, error.reason if isinstance(error, DocumentError) else text))
                return
            say(f"error: {source.name}: {text}")
            failed.append({"source": source.name, "error": str(error)})

        try:
            with workers.opened(model, llm) as working:
                DocumentMemorizer(llm, sources, options, status, on_memory, on_error).run(working, output.quiet)
        except BrokenPipeError:
            say("stopped, since standard output was closed: run the same command again to go on.")
            raise
    skipped.sort()
    if documents is not None and not output.quiet:
        _report(made, skipped, output_folder)
    if output.json:
        rest = [{"source": name, "reason": reason} for name, reason in skipped]
        emit({"memories": made, "failed": failed} | ({"skipped": rest} if documents is not None else {}))
    if failed:
        raise InputError(f"{len(failed)} of {len(sources)} documents were not memorized: see above.")
    if not made:
        raise InputError(f"no document in {str(documents)!r} was memorized.", field="documents")


def _given(files: Sequence[str], folder: Path) -> list[Source]:
    """The documents that were named. Errors: `InputError` if two of them have the same memory file."""
    require_readers(Path(file) for file in files)
    sources: dict[Path, Source] = {}
    for file in files:
        target = memory_path(folder, document_name(file))
        if target in sources:
            raise InputError(f"two documents are named {target.stem!r}: memorize one of them into another --output.")
        sources[target] = Source(file, target, partial(read_document, file))
    return list(sources.values())


def _in_folder(
    documents: Path, output_folder: Path, process: TextProcess
) -> tuple[list[Source], list[tuple[str, str]]]:
    """The documents of a folder, and name and reason of files that are none. Errors: `InputError` if it has none."""
    found, others = find_documents(documents, exclude=output_folder)
    # The memories may lie beside the documents.
    if output_folder.resolve() == expanded(documents).resolve():
        others = [other for other in others if other.path.suffix != SUFFIX]
    if not found:
        raise no_documents(documents, others)
    require_readers(file.path for file in found)
    sources = [
        Source(file.name, memory_path(output_folder, file.name), partial(read_from_folder, file, process))
        for file in found
    ]
    if twice := [name for name, count in Counter(file.name for file in found).items() if count > 1]:
        text = f"two documents are named {twice[0]!r} once unprintable characters are replaced: rename one."
        raise InputError(text, field="documents")
    return sources, [(other.name, other.reason) for other in others]


def _report(made: list[dict[str, Any]], skipped: list[tuple[str, str]], folder: Path) -> None:
    """Name each skipped file, and say how many memories there are."""
    for name, reason in skipped:
        say(f"skipped: {name}: {reason.rstrip('.')}.")
    kept = sum(record["kept"] for record in made)
    say(f"{len(made)} memories in {folder}: {len(made) - kept} made, {kept} kept; {len(skipped)} skipped.")
