"""`Memory`: what was learnt from one document, how, and for which base model.

A memory holds the difference w - w_0 of every tuned tensor, by the tensor's full name in the model, or the low-rank
factors of that difference (`low_rank.py`). It is a value: it never changes, and the model it was made on is never
written to. Its file is described in `memory_file.py`.
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastmem.errors import InputError, MemoryMismatchError, one_of
from fastmem.memory import compression, low_rank
from fastmem.memory.effect import Notice, notice_of
from fastmem.memory.memory_file import MemoryFile, one_line, opened_memory_file, refused, write_memory_file
from fastmem.memory.recipe import Recipe
from fastmem.ranges import Number, Other, checked, instance_of
from fastmem.split.compiled import uncompiled_name
from fastmem.split.dequantize import is_quantized


def _with_require(given: Any) -> Any:
    if not callable(getattr(given, "require", None)):
        raise TypeError
    return given


USER = Other("the FastMem that will use the memory, such as FastMem(model, tokenizer)", _with_require)
MODULE = Other("the transformers model itself, such as the attribute model of a FastMem", instance_of(nn.Module))


@dataclass(frozen=True)
class Step:
    """One step of memorizing, measured before its update. Losses in nats per scored token."""

    index: int
    loss: float
    cross_entropy: float
    kl: float


@dataclass(frozen=True)
class Base:
    """The model that a memory belongs to. digest: SHA-256 of the original weights of the tuned FFNs."""

    name: str
    family: str
    digest: str
    revision: str | None = None


@dataclass(frozen=True, eq=False, repr=False)
class Memory:
    """The tuned FFN of one document, as a difference from the base.

    tensors: full parameter name -> w - w_0, float32 unless a file held less; of a low-rank memory the two factors of
    each, see `low_rank.py`. trace: one `Step` per step. stopped: why memorizing ended before `recipe.steps`, or None.
    details: other information kept with the memory (digests of text, tokenizer and template; replaced_shortlist if
    the recipe asked for one that was too small).
    """

    tensors: Mapping[str, Tensor]
    recipe: Recipe
    base: Base
    trace: tuple[Step, ...] = ()
    stopped: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        loss = (
            f", cross entropy {self.trace[0].cross_entropy:.3g} to {self.trace[-1].cross_entropy:.3g}"
            if self.trace
            else ""
        )
        return (
            f"Memory(layers {list(self.recipe.layers)} of {self.base.name!r}, {self.size_bytes:,} bytes, "
            f"{self.recipe.steps} steps at {self.recipe.learning_rate:g}{loss})"
        )

    @property
    def size_bytes(self) -> int:
        """Bytes of the tensors."""
        return sum(t.numel() * t.element_size() for t in self.tensors.values())

    @property
    def notice(self) -> Notice | None:
        """A warning if memorizing had almost no effect or went too far; otherwise None."""
        return notice_of([step.cross_entropy for step in self.trace], self.stopped, self.recipe.learning_rate)

    def differences(self) -> Mapping[str, Tensor]:
        """Full parameter name -> w - w_0, in the shape of the parameter."""
        if self.recipe.parametrization == "lora":
            return low_rank.differences(self.tensors, self.recipe.lora_scale)
        return self.tensors

    def weights(self, originals: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tuned weights by name, float32 or wider, from the original tensors by name.

        Errors: `MemoryMismatchError` if a tensor has no original of its name and shape.
        """
        tuned = {}
        for name, difference in self._fitting(originals).items():
            original = originals[name]
            wide = torch.promote_types(torch.promote_types(original.dtype, difference.dtype), torch.float32)
            tuned[name] = original.to(wide) + difference.to(original.device, wide)
        return tuned

    def require(self, originals: Mapping[str, Tensor]) -> None:
        """Errors: `MemoryMismatchError` if a tensor has no original of its name and shape."""
        self._fitting(originals)

    def _fitting(self, originals: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The differences, checked against the originals."""
        try:
            differences = self.differences()
        except (KeyError, RuntimeError) as error:  # low-rank factors that do not belong together
            raise MemoryMismatchError(
                f"this memory's low-rank factors do not fit each other ({error}): memorize again."
            ) from error
        for name, difference in differences.items():
            if name not in originals or originals[name].shape != difference.shape:
                found = list(originals[name].shape) if name in originals else "no such tensor"
                raise MemoryMismatchError(
                    f"this memory belongs to {self.base.name} ({self.base.family}): it has {name} "
                    f"{list(difference.shape)}, the model has {found}; load the base it was made for."
                )
        return differences

    def rounded(self, dtype: str) -> "Memory":
        """The memory as a file of this dtype holds it: float32, bfloat16 or int8. Errors: `InputError`."""
        one_of(dtype, compression.STORED_AS, "stored type")
        return replace(self, tensors=compression.rounded(self.tensors, dtype))

    def truncated(self, rank: int) -> tuple["Memory", float]:
        """(the memory with low-rank factors, the share of |difference|^2 they keep); a low-rank memory is unchanged.

        Errors: `InputError` for a rank that is not a whole number from 1.
        """
        rank = checked(rank, Number(1, whole=True), "rank")
        if self.recipe.parametrization == "lora":
            return self, 1.0
        factors, energy = compression.truncated(self.tensors, rank)
        recipe = replace(self.recipe, parametrization="lora", rank=rank, lora_alpha=float(rank))
        details = dict(self.details) | {"truncated": {"rank": rank, "retained_energy": energy}}
        return replace(self, tensors=factors, recipe=recipe, details=details), energy

    def save(self, path: str | Path, *, dtype: str | None = None, text: bool = False) -> None:
        """Write the memory to `path`, all or nothing, replacing what is there.

        dtype: float32, bfloat16 or int8; None keeps the tensors bit for bit. The error of rounding is recorded in the
        file (`details["stored"]`). text: include the document's text. Errors: `InputError` for an unknown dtype or
        a text that the memory does not have, `MemoryFileError` if the file cannot be written.
        """
        if text and "text" not in self.details:
            raise InputError("this memory was made from token ids, so there is no text to keep: leave out text=True.")
        tensors: Mapping[str, Tensor] = self.tensors
        details = {k: v for k, v in self.details.items() if k != "text" or text}
        if dtype is not None:
            kept = self.rounded(dtype)
            error = compression.relative_error(self.differences(), kept.differences())
            tensors = compression.quantized(self.tensors) if dtype == "int8" else kept.tensors
            details["stored"] = {"dtype": dtype, "relative_error": error}
        record = {
            "recipe": asdict(self.recipe),
            "base": asdict(self.base),
            "trace": [[step.loss, step.cross_entropy, step.kl] for step in self.trace],
            "stopped": self.stopped,
            "details": details,
        }
        write_memory_file(Path(path), tensors, record)

    @classmethod
    def load(cls, path: str | Path, model: Any = None) -> "Memory":
        """The memory in `path`.

        model: the `FastMem` that will use it; a memory that does not fit it is refused before a tensor is read
        (`MemoryMismatchError`). Errors: `MemoryFileError` for a file that is missing, damaged, of a newer format or
        not a memory.
        """
        with opened_memory_file(path) as file:
            memory = cls._described(file)
            if model is not None:
                checked(model, USER, "model").require(memory)
            return replace(memory, tensors=compression.unquantized(file.tensors()))

    @classmethod
    def peek(cls, path: str | Path) -> "Memory":
        """The memory in `path` with its tensors on the `meta` device: only the header is read, and nothing verified.

        Errors: `MemoryFileError`.
        """
        with opened_memory_file(path) as file:
            return cls._described(file)

    @classmethod
    def _described(cls, file: MemoryFile) -> "Memory":
        """The memory without its numbers. Errors: `MemoryFileError` for a record that `save` does not write."""
        record = file.record
        try:
            stopped, details = record["stopped"], record["details"]
            base = Base(**record["base"])
            if not all(isinstance(text, str) for text in (base.name, base.family, base.digest)):
                raise ValueError("base")
            if not isinstance(details, dict) or not (stopped is None or isinstance(stopped, str)):
                raise ValueError("details")
            trace = tuple(Step(i, *map(float, losses)) for i, losses in enumerate(record["trace"]))
            shapes = compression.unquantized(file.shapes)
            return cls(shapes, Recipe(**record["recipe"]), base, trace, stopped, details)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise refused(file.path, f"its header is damaged ({one_line(error)})", "memorize again") from error

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[nn.Module]:
        """Within the block, `model` itself answers with this memory; afterwards it is as before, bit for bit.

        The parameters are replaced by other tensors and put back; the original storage is never written to. Several
        threads must not use it on one model, and within the block a `FastMem` of it refuses to work; outside,
        `FastMem.generate` takes a memory. Errors: `MemoryMismatchError` for another base, `InputError` for a quantized
        one, and for what is not a module.
        """
        model = checked(model, MODULE, "model")
        own_names = {uncompiled_name(name): name for name, _ in model.named_parameters()}
        parameters = {uncompiled_name(name): parameter for name, parameter in model.named_parameters()}
        modules = {uncompiled_name(name): module for name, module in model.named_modules()}
        own = {name: parameters[name] for name in self.differences() if name in parameters}
        for name in self.differences():
            holder = modules.get(name.rpartition(".")[0])
            if holder is not None and is_quantized(holder):
                raise InputError(
                    f"applied() replaces float parameters, but this model keeps {name} quantized, in "
                    f"{type(holder).__name__}: use FastMem(model).generate(prompt, memory=memory), which makes float "
                    "copies, or load the model unquantized."
                )
        originals = {name: p.detach() for name, p in own.items()}
        # A low-rank memory leaves out biases, so the digest of its weights alone says nothing.
        if self.recipe.parametrization == "full" and len(own) and digest(originals) != self.base.digest:
            raise MemoryMismatchError(
                f"this memory was made on other weights ({self.base.name}, FFN {self.base.digest[:12]}) than those of "
                "this model: load the base it was made for, or memorize the document again."
            )
        tuned = self.weights(originals)
        try:
            for name, parameter in own.items():
                _put(model, own_names[name], nn.Parameter(tuned[name].to(parameter.dtype), requires_grad=False))
            yield model
        finally:
            for name, parameter in own.items():
                _put(model, own_names[name], parameter)


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes, in the order of the names."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        sha.update(f"{name} {tensor.dtype} {list(tensor.shape)};".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def _put(model: nn.Module, name: str, parameter: nn.Parameter) -> None:
    path, _, leaf = name.rpartition(".")
    model.get_submodule(path)._parameters[leaf] = parameter
