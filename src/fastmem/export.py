"""Export a memory for other engines: as a PEFT adapter, or as a checkpoint that contains it.

`export_peft` writes the files of PEFT's `LoraConfig` (adapter_config.json, adapter_model.safetensors) without
importing peft. A low-rank memory is exported exactly. A full memory is reduced to its largest singular values; the
error is measured on the document as KL(memory || export), and an export above a limit is refused.

`export_merged` writes a checkpoint folder. Its index refers to the base's own shards, which are linked and not copied,
and to one new shard with the tuned FFN. Readers load the shards in the order of their names, so the new one is last.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from fastmem.errors import FastMemError, InputError, one_of
from fastmem.learn.surprisal import token_divergences
from fastmem.memory.memory import Memory
from fastmem.memory.memory_file import write_safetensors
from fastmem.model import FastMem
from fastmem.prompts import Tokens, document_identity
from fastmem.split.compiled import uncompiled, uncompiled_name

FORMATS = ("peft", "merged")
DEFAULT_RANK = 64
MAX_KL = 0.05
"""The largest KL between a full memory and its truncation, in nats per token, that is exported without `force`."""


@dataclass(frozen=True)
class Exported:
    """What was written.

    size_bytes: of new files, without linked shards. The rest is None for a merged checkpoint. rank: of the adapter.
    retained_energy: the share of |difference|^2 that was kept. kl: KL(memory || export) in nats per scored token of
    the document; None if nothing was lost.
    """

    format: str
    folder: str
    size_bytes: int
    rank: int | None = None
    retained_energy: float | None = None
    kl: float | None = None


def export(
    llm: FastMem,
    memory: Memory,
    folder: str | Path,
    format: str = "peft",
    *,
    rank: int = DEFAULT_RANK,
    context: str | Tokens | None = None,
    max_kl: float = MAX_KL,
    force: bool = False,
) -> Exported:
    """Write `memory` to the new folder `folder`, completely or not at all.

    rank: to which a full memory is truncated. context: its document, needed for the KL unless the memory contains the
    text. max_kl: the greatest KL of a truncation, in nats per token. force: export it in any case. Errors:
    `InputError`, `MemoryMismatchError`.
    """
    one_of(format, FORMATS, "export format")
    llm.require(memory)
    if format == "merged":
        return export_merged(llm, memory, folder)
    llm.split_model.require_decoder_only("the export as a PEFT adapter")
    sides = [min(each.shape[-2:]) for each in memory.differences().values() if each.ndim > 1]
    kept, energy = memory.truncated(min(rank, max(sides, default=rank)))  # a higher rank would only add zeros
    kl = None
    if kept is not memory:
        tokens = _document_tokens(llm, memory, context)
        kl = mean_kl(llm, memory, kept, tokens)
        if kl > max_kl and not force:
            raise InputError(
                f"rank {rank} keeps {energy:.1%} of this memory and changes its answers by KL {kl:.3g} nats per token "
                f"(limit {max_kl:g}): raise the rank, export in the format 'merged', memorize with parametrization "
                "'lora', or force it.",
                options=("rank", "format", "force"),
            )
    return replace(export_peft(llm, kept, folder), retained_energy=energy, kl=kl)


def mean_kl(llm: FastMem, memory: Memory, other: Memory, tokens: Tokens) -> float:
    """KL(memory || other) in nats, mean over the scored tokens of a document. Errors: `InputError`."""
    llm.preparer.check(tokens.ids)
    reading = llm.read(tokens, memory.recipe.layers)
    return float(token_divergences(llm.split_model, reading, llm.ffn(memory), llm.ffn(other)).mean())


def export_peft(llm: FastMem, memory: Memory, folder: str | Path) -> Exported:
    """Write a low-rank memory as a PEFT adapter, exactly. Errors: `InputError`."""
    rank = memory.recipe.rank
    tensors: dict[str, Tensor] = {}
    modules, parameters, layouts = [], [], set()
    originals = llm.split_model.parameters(memory.recipe.layers)
    names = [name for name in originals if f"{name}.lora_A" in memory.tensors]
    for name in names:
        path = name.rpartition(".")[0]
        module = uncompiled(llm.model.get_submodule(path))
        a, b = (memory.tensors[f"{name}.lora_{factor}"].detach().cpu() for factor in "AB")  # [.., r, in], [.., out, r]
        inputs_first = _stores_inputs_first(module, a)
        if inputs_first:  # PEFT's A has the inputs in either layout
            a, b = b.mT, a.mT
        if not isinstance(module, torch.nn.Linear) and type(module).__name__ != "Conv1D":
            parameters.append(name)
            # PEFT wraps a module once per adapted parameter; the last one is the outermost.
            later = sum(other.rpartition(".")[0] == path for other in names[names.index(name) + 1 :])
            path += ".base_layer" * later
        else:
            modules.append(path)
            layouts.add(inputs_first)
        a, b = _padded(a, rank, -2), _padded(b, rank, -1)
        if a.ndim == 3:  # experts side by side: A [E * r, in], B [out, r * E]
            a, b = a.flatten(0, 1), b.permute(1, 2, 0).flatten(1, 2)
        tensors[f"base_model.model.{path}.lora_A.weight"] = a.contiguous()
        tensors[f"base_model.model.{path}.lora_B.weight"] = b.contiguous()
    if len(layouts) > 1:
        family = llm.split_model.family
        raise InputError(f"{family} stores the matrices of its FFN in two layouts: use the format 'merged'.")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": _base_name(llm),
        "revision": llm.revision,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": memory.recipe.lora_alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": layouts == {True},
        "target_modules": modules,
        "target_parameters": parameters or None,
    }
    with _new_folder(Path(folder)) as new:
        (new / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        with open(new / "adapter_model.safetensors", "xb") as file:
            write_safetensors(file, tensors, {"format": "pt"})
        size = sum(path.stat().st_size for path in new.iterdir())
    return Exported("peft", str(folder), size, rank=rank)


def export_merged(llm: FastMem, memory: Memory, folder: str | Path) -> Exported:
    """Write a checkpoint that contains the memory. Errors: `InputError` if the base's files are not found."""
    originals = llm.split_model.parameters(memory.recipe.layers)
    tuned = {n: w.to(originals[n].dtype).cpu().contiguous() for n, w in memory.weights(originals).items()}
    base = _base_folder(_base_name(llm), llm.revision)
    shards = _shards(base)
    stored = {name: shape for shapes in shards.values() for name, shape in shapes.items()}
    unchanged = all(stored.get(name) == list(w.shape) for name, w in tuned.items())
    own = {uncompiled_name(name): weight for name, weight in llm.model.state_dict().items()}
    with _new_folder(Path(folder)) as new:
        if unchanged and _holds(base, shards, own):
            _write_linked(base, shards, tuned, new)
        else:
            # Some models change names on loading, such as experts that are fused, and some are changed afterwards.
            # `save_pretrained` writes the model as it is, but the whole checkpoint.
            with memory.applied(llm.model):
                llm.model.save_pretrained(new)
        for path in base.iterdir():
            weights = path.suffix in (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack")
            small = path.is_file() and not weights and not path.name.endswith(".index.json")
            if small and not (new / path.name).exists():
                shutil.copy(path, new / path.name)
        size = sum(p.lstat().st_size for p in new.iterdir() if p.stat().st_nlink == 1 and not p.is_symlink())
    return Exported("merged", str(folder), size)


def _holds(base: Path, shards: Mapping[str, Mapping[str, list[int]]], weights: Mapping[str, Tensor]) -> bool:
    """Whether the weights are those of the shards: their shapes, and three rows of every tensor of the same name."""
    for shard, shapes in shards.items():
        with safe_open(base / shard, "pt") as file:
            for name in shapes.keys() & weights.keys():
                weight, shape = weights[name].detach(), shapes[name]
                if weight.is_meta or not weight.is_floating_point() or not weight.numel():
                    continue
                if list(weight.shape) != shape:
                    return False
                rows = {0, shape[0] // 2, shape[0] - 1} if shape else set()
                pairs = [(file.get_slice(name)[row : row + 1], weight[row : row + 1]) for row in rows]
                pairs = pairs or [(file.get_tensor(name), weight)]
                if not all(torch.equal(stored.to(own.dtype), own.cpu()) for stored, own in pairs):
                    return False
    return True


def _write_linked(
    base: Path, shards: Mapping[str, Mapping[str, Any]], tuned: Mapping[str, Tensor], folder: Path
) -> None:
    """Links to the base's shards, a shard with the tuned tensors, and the index."""
    count = len(shards) + 1
    weight_map: dict[str, str] = {}
    for number, (shard, shapes) in enumerate(shards.items(), 1):
        name = f"model-{number:05d}-of-{count:05d}.safetensors"
        _link((base / shard).resolve(), folder / name)
        weight_map |= dict.fromkeys(shapes, name)
    name = f"model-{count:05d}-of-{count:05d}.safetensors"
    with open(folder / name, "xb") as file:
        write_safetensors(file, tuned, {"format": "pt"})
    weight_map |= dict.fromkeys(tuned, name)
    index = {"metadata": {}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _link(source: Path, target: Path) -> None:
    """A hard link; on another file system a symbolic one."""
    try:
        os.link(source, target)
    except OSError:
        target.symlink_to(source)


def _document_tokens(llm: FastMem, memory: Memory, context: str | Tokens | None) -> Tokens:
    """The tokens that were memorized. Errors: `InputError` if they are unknown or `context` is another document."""
    context = context if context is not None else memory.details.get("text")
    if context is None:
        raise InputError(
            "the error of a truncated export is measured on the document, which this memory does not contain: give "
            "the document, or memorize with parametrization 'lora', which is exported exactly.",
            options=("context",),
        )
    if isinstance(context, Tokens):
        return context
    placement = "assistant" if memory.recipe.placement == "prompt" else memory.recipe.placement
    tokens = llm.memory_tokens(context, replace(memory.recipe, placement=placement), truncate=True)
    given = document_identity(tokens, context)["text_sha256"]
    if memory.details.get("text_sha256", given) != given:
        raise InputError(
            f"the document given (SHA-256 {given[:12]}) is not the one that was memorized "
            f"({memory.details['text_sha256'][:12]}): give that one."
        )
    return tokens


def _stores_inputs_first(module: Any, a: Tensor) -> bool:
    """Whether matrices of this module are [..., inputs, outputs]."""
    if type(module).__name__ == "Conv1D":
        return True
    return a.ndim == 3 and bool(getattr(module, "is_transposed", False))


def _padded(factor: Tensor, rank: int, dimension: int) -> Tensor:
    """A factor padded with zeros to `rank`, since an adapter has one rank, even for matrices with a smaller side."""
    missing = rank - factor.shape[dimension]
    shape = list(factor.shape)
    shape[dimension] = missing
    return torch.cat([factor, factor.new_zeros(shape)], dimension)


def _base_name(llm: FastMem) -> str:
    """The folder or hub id from which the base was loaded."""
    return str(getattr(llm.model.config, "_name_or_path", "") or llm.name)


def _base_folder(source: str, revision: str | None) -> Path:
    """The base's checkpoint on this machine. Errors: `InputError`."""
    if (path := Path(source)).is_dir():
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(source, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, HfHubHTTPError, ValueError, OSError) as error:
        raise InputError(
            f"the files of the base {source!r} are not on this machine: load it by folder or hub id first."
        ) from error


def _shards(base: Path) -> dict[str, dict[str, list[int]]]:
    """Shard file -> tensor name -> shape, of a safetensors checkpoint; empty for other formats."""
    index = base / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    else:
        names = [path.name for path in [base / "model.safetensors"] if path.is_file()]
    shards = {}
    for name in names:
        with safe_open(base / name, "pt") as shard:
            shards[name] = {key: list(shard.get_slice(key).get_shape()) for key in shard.keys()}  # noqa: SIM118
    return shards


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder, renamed to `folder` when the block ends and deleted if it raises. Errors: `InputError`."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{str(folder)!r} exists and is not an empty folder: give a new one.", field="output")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        text = f"{str(folder)!r} cannot be written ({error.strerror}): give another folder."
        raise InputError(text, field="output") from error
    try:
        yield temporary
        temporary.chmod(0o755)
        os.replace(temporary, folder)
    except FastMemError:
        raise
    except OSError as error:  # a full disk, a link in the place of the folder
        text = f"{str(folder)!r} cannot be written ({error.strerror or error}): make room, or give another folder."
        raise InputError(text, field="output") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
