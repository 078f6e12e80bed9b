"""`fastmem memorize`, `fastmem memories list|show|verify` and `fastmem export`: commands for memory files."""

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastmem.cli import error_text
from fastmem.cli.flags import ModelFlags, OutputFlags, RecipeFlags, with_flags
from fastmem.cli.output import Status, emit, say
from fastmem.cli.read_document import read_document
from fastmem.errors import FastMemError, InputError, MemoryFileError

if TYPE_CHECKING:
    from fastmem.memory.memory import Memory
    from fastmem.memory.recipe import Recipe
    from fastmem.model import FastMem

SUFFIX = ".safetensors"

memories = typer.Typer(add_completion=False, rich_markup_mode=None, help="List, show and verify memory files.")


@with_flags
def memorize(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE...", help="Documents in plain text; one memory is made of each.")
    ],
    output_folder: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for the memories.")],
    model: ModelFlags,
    recipe: RecipeFlags,
    output: OutputFlags,
    store: Annotated[
        str | None,
        typer.Option("--store", metavar="TYPE", help="float32, bfloat16 or int8; default: unrounded."),
    ] = None,
    keep_text: Annotated[bool, typer.Option("--keep-text", help="Store the document's text in the file.")] = False,
    truncate: Annotated[
        bool,
        typer.Option("--truncate", help="Cut documents that are too long for the model instead of refusing them."),
    ] = False,
) -> None:
    """Memorize documents into memory files, one for each.

    FILE becomes DIR/FILE.safetensors.

    An existing memory of the same text, recipe and base is kept, so an interrupted command can be run again. If a
    document cannot be memorized, the others still are.

    \b
    Examples:
      fastmem memorize policy.txt --output memories --model Qwen/Qwen3-0.6B
      fastmem memorize docs/*.txt -o memories --parametrization lora --rank 8 --learning-rate 3e-3
    """
    targets = _targets(files, output_folder)
    with Status(quiet=output.quiet) as status:
        llm = model.load(status)
        chosen = recipe.make(llm.recipe)
        made, failed = [], []
        for number, (source, target) in enumerate(targets.items(), 1):
            status(f"{source} ({number} of {len(targets)}) ...")
            try:
                record = _memorized(llm, source, target, chosen, store, keep_text, truncate)
            except FastMemError as error:
                status("")
                say(f"error: {source}: {error_text(error, 'memorize')}")
                failed.append({"source": source, "error": str(error)})
                continue
            made.append(record)
            if not output.json:
                status("")
                print(_line(record), flush=True)
    if output.json:
        emit({"memories": made, "failed": failed})
    if failed:
        raise InputError(f"{len(failed)} of {len(targets)} documents were not memorized: see above.")


@memories.command("list")
@with_flags
def list_memories(
    path: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of memories, or one file.")],
    output: OutputFlags,
) -> None:
    """List memories, one per line. Only file headers are read; to check the weights, use verify."""
    from fastmem.memory.memory import Memory

    records = []
    for file in _files(path):
        try:
            records.append(_record(file, Memory.peek(file)))
        except MemoryFileError as error:
            records.append({"file": str(file), "error": str(error)})
        if not output.json:
            print(_line(records[-1]))
    if output.json:
        emit({"memories": records})


@memories.command("show")
@with_flags
def show(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A memory.")],
    output: OutputFlags,
) -> None:
    """Show a memory's base, recipe, document and the losses of each step."""
    from fastmem.memory.memory import Memory

    memory = Memory.peek(file)
    tensors = {name: list(tensor.shape) for name, tensor in memory.tensors.items()}
    record = _record(file, memory) | {
        "recipe": asdict(memory.recipe),
        "base": asdict(memory.base),
        "details": dict(memory.details),
        "trace": [asdict(step) for step in memory.trace],
        "tensors": tensors,
    }
    if output.json:
        return emit(record)
    for name in ("base", "recipe", "details"):
        print(name)
        for key, value in record[name].items():
            print(f"  {key:16} {value}")
    print(f"tensors ({record['bytes']:,} bytes on disk)")
    for name, shape in tensors.items():
        print(f"  {name} {shape}")
    print("step   loss    cross entropy   KL")
    for step in memory.trace:
        print(f"{step.index:4d}   {step.loss:.4f}  {step.cross_entropy:.4f}          {step.kl:.4f}")
    if memory.stopped:
        print(f"stopped: {memory.stopped}")


@memories.command("verify")
@with_flags
def verify(
    path: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of memories, or one file.")],
    model: ModelFlags,
    output: OutputFlags,
) -> None:
    """Read each memory completely and check its digest.

    With --model, also check that it fits the model. The exit code is 2 if any check fails.
    """
    from fastmem.memory.memory import Memory

    llm = model.load() if model.model is not None else None
    records: list[dict[str, Any]] = []
    for file in _files(path):
        try:
            Memory.load(file, model=llm)
            records.append({"file": str(file), "good": True})
        except FastMemError as error:
            records.append({"file": str(file), "good": False, "error": str(error)})
        if not output.json:
            verdict = "good" if records[-1]["good"] else "BAD "
            print(f"{verdict}  {file.name}  {records[-1].get('error', '')}".rstrip())
    if output.json:
        emit({"memories": records})
    if bad := sum(not record["good"] for record in records):
        raise MemoryFileError(f"{bad} of {len(records)} memories in {str(path)!r} are unusable: memorize them again.")


@with_flags
def export(
    memory: Annotated[Path, typer.Argument(metavar="MEMORY", help="A memory file.")],
    output_folder: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="A new folder.")],
    model: ModelFlags,
    output: OutputFlags,
    format: Annotated[str, typer.Option("--format", metavar="NAME", help="peft or merged.")] = "peft",
    rank: Annotated[
        int, typer.Option(metavar="N", min=1, help="peft: rank to which a full memory is truncated.")
    ] = 64,
    context: Annotated[
        str | None,
        typer.Option("--context", "-c", metavar="FILE", help="The document, to measure the KL of the truncation."),
    ] = None,
    max_kl: Annotated[
        float, typer.Option(metavar="X", min=0, help="peft: largest accepted KL of the truncation, in nats per token.")
    ] = 0.05,
    force: Annotated[bool, typer.Option("--force", help="Export whatever the KL is.")] = False,
) -> None:
    """Export a memory as a PEFT adapter or a checkpoint.

    Other inference engines can load both. The checkpoint links to the base's own shards.

    \b
    Examples:
      fastmem export memories/policy.safetensors --model Qwen/Qwen3-0.6B --output adapter
      fastmem export memories/policy.safetensors --model ./base --format merged --output merged
    """
    from fastmem.export import export as write
    from fastmem.memory.memory import Memory

    with Status(quiet=output.quiet) as status:
        llm = model.load(status)
        loaded = Memory.load(memory, model=llm)
        text = read_document(context) if context is not None else None
        status("exporting ...")
        exported = write(llm, loaded, output_folder, format, rank=rank, context=text, max_kl=max_kl, force=force)
    if output.json:
        return emit(asdict(exported))
    print(f"{exported.folder}: {exported.format}, {exported.size_bytes:,} bytes")
    if exported.kl is not None:
        print(f"rank {exported.rank}, energy kept {exported.retained_energy:.1%}, KL {exported.kl:.3g} nats per token")


def _targets(sources: Sequence[str], folder: Path) -> dict[str, Path]:
    """Document -> memory file. Errors: `InputError` if two documents have the same memory file."""
    targets: dict[str, Path] = {}
    for source in sources:
        target = folder / (("stdin" if source == "-" else Path(source).stem) + SUFFIX)
        if target in targets.values():
            raise InputError(f"two documents are named {target.stem!r}: memorize one of them into another --output.")
        targets[source] = target
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output {str(folder)!r} is not a folder ({error.strerror}): give a folder.") from error
    return targets


def _memorized(
    llm: "FastMem",
    source: str,
    target: Path,
    recipe: "Recipe",
    store: str | None,
    keep_text: bool,
    truncate: bool,
) -> dict[str, Any]:
    """Make and write a memory if it does not exist yet. Returns its record."""
    from fastmem.memory.memory import Memory
    from fastmem.prompts import document_identity

    text = read_document(source)
    started = time.perf_counter()
    try:
        existing = Memory.load(target)
    except MemoryFileError:
        existing = None
    if existing is not None:
        tokens = llm.memory_tokens(text, recipe, truncate)
        made_of = (existing.details.get("text_sha256"), existing.details.get("tokens_sha256"))
        now = document_identity(tokens, text)
        same = made_of == (now["text_sha256"], now["tokens_sha256"])
        stored = existing.details.get("stored", {}).get("dtype")
        if (
            same
            and stored == store
            and (existing.recipe, existing.base.digest) == (recipe, llm.base(recipe.layers).digest)
        ):
            return _record(target, existing) | {"source": source, "kept": True}
    memory = llm.memorize(text, recipe, truncate=truncate)
    memory.save(target, dtype=store, text=keep_text)
    return _record(target, memory) | {"source": source, "kept": False, "seconds": time.perf_counter() - started}


def _files(path: Path) -> list[Path]:
    """The memory files in a folder, or the one file. Errors: `InputError`."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InputError(f"{str(path)!r} does not exist: give a folder of memories, or one file.")
    found = sorted(file for file in path.glob(f"*{SUFFIX}") if not file.name.startswith("."))
    if not found:
        raise InputError(f"{str(path)!r} contains no memory ({SUFFIX} file): make one with fastmem memorize.")
    return found


def _record(file: Path, memory: "Memory") -> dict[str, Any]:
    recipe = memory.recipe
    return {
        "file": str(file),
        "bytes": file.stat().st_size,
        "base": memory.base.name,
        "tokens": memory.details.get("tokens"),
        "parametrization": recipe.parametrization + (f" {recipe.rank}" if recipe.parametrization == "lora" else ""),
        "steps": len(memory.trace),
        "first_loss": memory.trace[0].loss if memory.trace else None,
        "last_loss": memory.trace[-1].loss if memory.trace else None,
        "stopped": memory.stopped,
    }


def _line(record: dict[str, Any]) -> str:
    name = Path(record["file"]).name
    if "error" in record:
        return f"{name}  {record['error']}"
    losses = f"loss {record['first_loss']:.3f} to {record['last_loss']:.3f}" if record["steps"] else "no step"
    seconds = f", {record['seconds']:.1f} s" if "seconds" in record else ", kept" if record.get("kept") else ""
    return (
        f"{name}  {record['tokens']} tokens, {record['parametrization']}, {record['steps']} steps, {losses}, "
        f"{record['bytes']:,} bytes, base {record['base']}{seconds}"
    )
