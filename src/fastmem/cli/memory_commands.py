"""`fastmem memorize`, `fastmem memories list|show|verify`, `fastmem export`: memories as files."""

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastmem.cli.flags import ModelFlags, OutputFlags, RecipeFlags, with_flags
from fastmem.cli.output import Status, emit, say
from fastmem.cli.read_document import document
from fastmem.errors import FastMemError, InputError, MemoryFileError

if TYPE_CHECKING:
    from fastmem.memory.memory import Memory
    from fastmem.memory.recipe import Recipe
    from fastmem.model import FastMem

SUFFIX = ".safetensors"

memories = typer.Typer(add_completion=False, rich_markup_mode=None, help="List, show and verify memory files.")


@with_flags
def memorize(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Documents: plain text, one memory each.")],
    output_folder: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Where the memories go.")],
    model: ModelFlags,
    recipe: RecipeFlags,
    output: OutputFlags,
    store: Annotated[
        str | None,
        typer.Option("--store", metavar="TYPE", help="float32, bfloat16 or int8; unrounded if left out."),
    ] = None,
    keep_text: Annotated[bool, typer.Option("--keep-text", help="Keep the document's text in the file.")] = False,
    truncate: Annotated[
        bool, typer.Option("--truncate", help="Cut documents to what the model can read instead of refusing them.")
    ] = False,
) -> None:
    """Memorize documents into memory files, one each.

    FILE becomes DIR/FILE.safetensors.

    A memory that is there already, of the same text, recipe and base, is kept: after an interruption run the same
    command again. A document that cannot be memorized does not stop the others.

    \b
    Examples:
      fastmem memorize policy.txt --output memories --model Qwen/Qwen3-0.6B
      fastmem memorize docs/*.txt -o memories --parametrization lora --rank 8 --learning-rate 3e-3
    """
    targets = _targets(files, output_folder)
    recipe.check()
    with Status(quiet=output.quiet) as status:
        status(f"loading {model.model or 'the embedded model'} ...")
        llm = model.load()
        wanted = recipe.make(llm.recipe)
        made, failed = [], []
        for number, (source, target) in enumerate(targets.items(), 1):
            status(f"{source} ({number} of {len(targets)}) ...")
            try:
                row = _memorized(llm, source, target, wanted, store, keep_text, truncate)
            except FastMemError as error:
                status("")
                say(f"error: {source}: {' '.join(str(error).split())}")
                failed.append({"source": source, "error": str(error)})
                continue
            made.append(row)
            if not output.json:
                status("")
                print(_line(row), flush=True)
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
    """One line per memory, from the headers alone: nothing is said of the numbers (see verify)."""
    from fastmem.memory.memory import Memory

    rows = []
    for file in _files(path):
        try:
            rows.append(_row(file, Memory.peek(file)))
        except MemoryFileError as error:
            rows.append({"file": str(file), "error": str(error)})
        if not output.json:
            print(_line(rows[-1]))
    if output.json:
        emit({"memories": rows})


@memories.command("show")
@with_flags
def show(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A memory.")],
    output: OutputFlags,
) -> None:
    """All that a memory says of itself: base, recipe, document, the losses of every step."""
    from fastmem.memory.memory import Memory

    memory = Memory.peek(file)
    tensors = {name: list(tensor.shape) for name, tensor in memory.tensors.items()}
    record = _row(file, memory) | {
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
    """Read every memory whole and compare its digest.

    With --model, also whether it fits that model. The exit code is 2 if one of them fails.
    """
    from fastmem.memory.memory import Memory

    llm = model.load() if model.model is not None else None
    rows = []
    for file in _files(path):
        try:
            Memory.load(file, model=llm)
            rows.append({"file": str(file), "good": True})
        except FastMemError as error:
            rows.append({"file": str(file), "good": False, "error": str(error)})
        if not output.json:
            print(f"{'good' if rows[-1]['good'] else 'BAD '}  {file.name}  {rows[-1].get('error', '')}".rstrip())
    if output.json:
        emit({"memories": rows})
    if bad := sum(not row["good"] for row in rows):
        raise MemoryFileError(f"{bad} of {len(rows)} memories in {str(path)!r} cannot be used: memorize them again.")


@with_flags
def export(
    memory: Annotated[Path, typer.Argument(metavar="MEMORY", help="A memory file.")],
    output_folder: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="A new folder.")],
    model: ModelFlags,
    output: OutputFlags,
    format: Annotated[str, typer.Option("--format", metavar="NAME", help="peft or merged.")] = "peft",
    rank: Annotated[int, typer.Option(metavar="N", help="peft: the rank a full memory is truncated to.")] = 64,
    context: Annotated[
        str | None, typer.Option("--context", "-c", metavar="FILE", help="The document, to measure what is lost.")
    ] = None,
    max_kl: Annotated[
        float, typer.Option(metavar="X", help="peft: refuse a truncation that loses more, nats per token.")
    ] = 0.05,
    force: Annotated[bool, typer.Option("--force", help="Export whatever is lost.")] = False,
) -> None:
    """Write a memory as a PEFT adapter or a checkpoint.

    For other engines; the checkpoint links the base's own shards.

    \b
    Examples:
      fastmem export memories/policy.safetensors --model Qwen/Qwen3-0.6B --output adapter
      fastmem export memories/policy.safetensors --model ./base --format merged --output merged
    """
    from fastmem.export import export as write
    from fastmem.memory.memory import Memory

    with Status(quiet=output.quiet) as status:
        status(f"loading {model.model or 'the embedded model'} ...")
        llm = model.load()
        loaded = Memory.load(memory, model=llm)
        text = document(context, None) if context is not None else None
        status("exporting ...")
        exported = write(llm, loaded, output_folder, format, rank=rank, context=text, max_kl=max_kl, force=force)
    if output.json:
        return emit(asdict(exported))
    print(f"{exported.folder}: {exported.format}, {exported.size_bytes:,} bytes")
    if exported.kl is not None:
        print(f"rank {exported.rank}, energy kept {exported.retained_energy:.1%}, KL {exported.kl:.3g} nats per token")


def _targets(sources: Sequence[str], folder: Path) -> dict[str, Path]:
    """Document -> memory file. Errors: `InputError` where two documents would have one."""
    targets: dict[str, Path] = {}
    for source in sources:
        target = folder / (("stdin" if source == "-" else Path(source).stem) + SUFFIX)
        if target in targets.values():
            raise InputError(f"two documents are called {target.stem!r}: memorize one of them into another --output.")
        targets[source] = target
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output {str(folder)!r} is no folder ({error.strerror}): give another.") from error
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
    """Make and write one memory, unless it is there; its row."""
    from fastmem.memory.memory import Memory
    from fastmem.prompts import document_identity

    text = document(source, None)
    started = time.perf_counter()
    try:
        there = Memory.load(target)
    except MemoryFileError:
        there = None
    if there is not None:
        tokens = llm.memory_tokens(text, recipe, truncate)
        made_of = (there.details.get("text_sha256"), there.details.get("tokens_sha256"))
        now = document_identity(tokens, text)
        same = made_of == (now["text_sha256"], now["tokens_sha256"])
        stored = there.details.get("stored", {}).get("dtype")
        if same and stored == store and (there.recipe, there.base.digest) == (recipe, llm.base(recipe.layers).digest):
            return _row(target, there) | {"source": source, "kept": True}
    memory = llm.memorize(text, recipe, truncate=truncate)
    memory.save(target, dtype=store, text=keep_text)
    return _row(target, memory) | {"source": source, "kept": False, "seconds": time.perf_counter() - started}


def _files(path: Path) -> list[Path]:
    """The memory files in a folder, or the one file. Errors: `InputError`."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InputError(f"{str(path)!r} does not exist: give a folder of memories, or one file.")
    found = sorted(file for file in path.glob(f"*{SUFFIX}") if not file.name.startswith("."))
    if not found:
        raise InputError(f"{str(path)!r} holds no memory ({SUFFIX} file): make one with fastmem memorize.")
    return found


def _row(file: Path, memory: "Memory") -> dict[str, Any]:
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


def _line(row: dict[str, Any]) -> str:
    name = Path(row["file"]).name
    if "error" in row:
        return f"{name}  {row['error']}"
    losses = f"loss {row['first_loss']:.3f} to {row['last_loss']:.3f}" if row["steps"] else "no step"
    seconds = f", {row['seconds']:.1f} s" if "seconds" in row else ", kept" if row.get("kept") else ""
    return (
        f"{name}  {row['tokens']} tokens, {row['parametrization']}, {row['steps']} steps, {losses}, "
        f"{row['bytes']:,} bytes, base {row['base']}{seconds}"
    )
