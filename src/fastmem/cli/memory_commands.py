"""`fastmem memories list|show|verify` and `fastmem export`: commands for memory files."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from fastmem.cli import Command
from fastmem.cli.flags import ModelFlags, OutputFlags, require_effect, with_flags
from fastmem.cli.memory_listing import memory_files, memory_line, memory_name, memory_record
from fastmem.cli.output import Status, emit
from fastmem.cli.read_document import read_document
from fastmem.errors import FastMemError, MemoryFileError, one_of

memories = typer.Typer(add_completion=False, rich_markup_mode=None, help="List, show and verify memory files.")


@memories.command("list", cls=Command)
@with_flags
def list_memories(
    path: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of memories, or one file.")],
    output: OutputFlags,
) -> None:
    """List memories, one per line. Only file headers are read; to check the weights, use verify."""
    from fastmem.memory.memory import Memory

    records = []
    for file in memory_files(path):
        try:
            records.append(memory_record(file, Memory.peek(file)))
        except MemoryFileError as error:
            records.append({"file": str(file), "error": str(error)})
        if not output.json:
            print(memory_line(records[-1], memory_name(file, path)))
    if output.json:
        emit({"memories": records})


@memories.command("show", cls=Command)
@with_flags
def show(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A memory.")],
    output: OutputFlags,
) -> None:
    """Show a memory's base, recipe, document and the losses of each step."""
    from fastmem.memory.memory import Memory

    memory = Memory.peek(file)
    tensors = {name: list(tensor.shape) for name, tensor in memory.tensors.items()}
    record = memory_record(file, memory) | {
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
    if record["notice"]:
        print(f"notice: {record['notice']}")


@memories.command("verify", cls=Command)
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
    for file in memory_files(path):
        try:
            Memory.load(file, model=llm)
            records.append({"file": str(file), "good": True})
        except FastMemError as error:
            records.append({"file": str(file), "good": False, "error": str(error)})
        if not output.json:
            verdict = "good" if records[-1]["good"] else "BAD "
            print(f"{verdict}  {memory_name(file, path)}  {records[-1].get('error', '')}".rstrip())
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
        int | None,
        typer.Option(metavar="N", min=1, help="peft: rank to which a full memory is truncated; default: 64."),
    ] = None,
    context: Annotated[
        str | None,
        typer.Option(
            "--context", "-c", metavar="FILE", help="peft: the document, to measure the KL of the truncation."
        ),
    ] = None,
    max_kl: Annotated[
        float | None,
        typer.Option(
            metavar="X", min=0, help="peft: largest accepted KL of the truncation, in nats per token; default: 0.05."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="peft: export even if the KL is too large.")] = False,
) -> None:
    """Export a memory as a PEFT adapter or a checkpoint.

    Other inference engines can load both. The checkpoint links to the base's own shards.

    \b
    Examples:
      fastmem export memories/policy.safetensors --model Qwen/Qwen3-0.6B --output adapter
      fastmem export memories/policy.safetensors --model ./base --format merged --output merged
    """
    from fastmem.export import DEFAULT_RANK, FORMATS, MAX_KL
    from fastmem.export import export as write
    from fastmem.memory.memory import Memory

    one_of(format, FORMATS, "export format", field="format")
    truncation = {"--rank": rank, "--context": context, "--max-kl": max_kl, "--force": force or None}
    if format == "merged":
        require_effect(truncation, "--format peft: a merged checkpoint contains the whole memory", "format")
    if Memory.peek(memory).recipe.parametrization == "lora":
        require_effect(truncation, f"a full memory: {memory} is low-rank, and is exported exactly", "memory")
    with Status(quiet=output.quiet) as status:
        llm = model.load(status)
        loaded = Memory.load(memory, model=llm)
        text = read_document(context) if context is not None else None
        status("exporting ...")
        exported = write(
            llm,
            loaded,
            output_folder,
            format,
            rank=DEFAULT_RANK if rank is None else rank,
            context=text,
            max_kl=MAX_KL if max_kl is None else max_kl,
            force=force,
        )
    if output.json:
        return emit(asdict(exported))
    print(f"{exported.folder}: {exported.format}, {exported.size_bytes:,} bytes")
    if exported.kl is not None:
        print(f"rank {exported.rank}, energy kept {exported.retained_energy:.1%}, KL {exported.kl:.3g} nats per token")
