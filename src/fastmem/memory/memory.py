"""What was learnt (`Memory`), how (`Recipe`), and for which base (`Base`).

A memory is the difference  w - w_0  of every tuned tensor, by the tensor's full name in the model, or the low-rank
factors of that difference (`lora.py`). It is a value: nothing in it changes, and the model it was made on is never
written to. Its form on disk is `files.py`.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastmem.core import lora
from fastmem.core.floating import is_quantized
from fastmem.errors import InputError, MemoryMismatchError, one_of

PARAMETRIZATIONS = ("full", "lora")


@dataclass(frozen=True)
class Recipe:
    """How to memorize. The defaults are the paper's for question answering with Llama-3-8B."""

    learning_rate: float = 1e-5
    """Constant AdamW rate (betas 0.9/0.999, eps 1e-8). Small models want more: 1e-3 at 5 M parameters."""
    steps: int = 10
    """Updates, each on the whole document. 0 gives a memory that changes nothing."""
    kl_weight: float = 0.1
    """Weight of KL(original || now) beside the cross entropy."""
    weight_decay: float = 0.01
    """AdamW's decoupled weight decay; the authors' code uses torch's default, whatever its scripts say."""
    max_grad_norm: float = 1.0
    """The gradient over all tuned tensors together is clipped to this norm; the Trainer's default in their code."""
    layers: tuple[int, ...] = (-1,)
    """Layers whose FFN is tuned, from 0 or negative from the end. Only the last is fast and shares the base cache."""
    placement: str = "assistant"
    """What is memorized: the document as an `assistant` turn (the paper), a `user` turn, bare `text`, or in place in
    the question's `prompt`, which needs no trunk pass of its own."""
    adaptive_kl: float | None = None
    """Target KL in nats of the adaptive weight (Ziegler et al. 2019, arXiv 1909.08593, eq. 4 with the authors' clip at
    0.2 and `steps` as horizon; their target is 5.0). None keeps `kl_weight` constant."""
    target_loss: float | None = None
    """Stop as soon as the loss is at or below this. None: run all steps."""
    max_kl: float | None = None
    """Stop when the KL exceeds this many nats, keeping the last weights below it. None: no ceiling."""
    patience: int | None = None
    """Stop when the loss has not improved for this many steps, keeping the best weights. None: never."""
    parametrization: str = "full"
    """What is tuned of the FFN: every weight (`full`, the paper), or low-rank factors of its matrices (`lora`)."""
    rank: int = 8
    """lora: the rank of every matrix's factors, capped by its smaller side."""
    lora_alpha: float = 16.0
    """lora: the product of the factors counts lora_alpha / rank times."""
    seed: int = 0
    """lora: of the drawn factor. Nothing else is random."""
    shortlist: int | None = None
    """Tokens whose logits the objective computes, half of them standing for all others (`shortlist.py`); a step then
    hardly needs the head. The end is measured exactly, and a run that was too far off is repeated. None: the whole
    vocabulary."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))
        for name, least, greatest in (
            ("learning_rate", 0.0, 10.0),
            ("kl_weight", 0.0, math.inf),
            ("weight_decay", 0.0, 10.0),
            ("max_grad_norm", 0.0, math.inf),
        ):
            _number(name, getattr(self, name), least, greatest)
        for name in ("adaptive_kl", "target_loss", "max_kl"):
            if getattr(self, name) is not None:
                _number(name, getattr(self, name), 0.0, math.inf)
        _whole("steps", self.steps, 0)
        if self.patience is not None:
            _whole("patience", self.patience, 1)
        if self.shortlist is not None:
            _whole("shortlist", self.shortlist, 1)
        one_of(self.parametrization, PARAMETRIZATIONS, "parametrization")
        _whole("rank", self.rank, 1)
        _number("lora_alpha", self.lora_alpha, 0.0, math.inf)
        _whole("seed", self.seed, 0)
        if not self.layers or not all(isinstance(layer, int) for layer in self.layers):
            raise InputError(f"recipe layers takes layer numbers such as (-1,); given {self.layers!r}.")

    @property
    def lora_scale(self) -> float:
        """What the product of the low-rank factors is multiplied with."""
        return self.lora_alpha / self.rank


@dataclass(frozen=True)
class Step:
    """One step of memorizing, measured before its update. Losses in nats per scored token."""

    index: int
    loss: float
    cross_entropy: float
    kl: float


@dataclass(frozen=True)
class Base:
    """Which model a memory belongs to. digest: of the original weights of the tuned FFNs."""

    name: str
    family: str
    digest: str
    revision: str | None = None


@dataclass(frozen=True, eq=False)
class Memory:
    """The tuned FFN of one document, as a difference from the base.

    tensors: full parameter name -> w - w_0, float32 unless a file held less; for a low-rank memory the two factors of
    each, see `lora.py`. trace: one `Step` per step. stopped: why it ended before
    `recipe.steps`, or None. details: whatever the caller wants kept with it (digests of text, tokenizer, template).
    """

    tensors: Mapping[str, Tensor]
    recipe: Recipe
    base: Base
    trace: tuple[Step, ...] = ()
    stopped: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        """Bytes of the tensors in memory."""
        return sum(t.numel() * t.element_size() for t in self.tensors.values())

    def differences(self) -> Mapping[str, Tensor]:
        """Full parameter name -> w - w_0, in the shape of the parameter."""
        if self.recipe.parametrization == "lora":
            return lora.differences(self.tensors, self.recipe.lora_scale)
        return self.tensors

    def require(self, originals: Mapping[str, Tensor]) -> None:
        """Errors: `MemoryMismatchError` where a tensor has no original of its name and shape."""
        try:
            shapes = {name: difference.shape for name, difference in self.differences().items()}
        except (KeyError, RuntimeError) as error:  # low-rank factors that do not belong together
            raise MemoryMismatchError(
                f"this memory's low-rank factors do not fit each other ({error}): memorize again."
            ) from error
        for name, shape in shapes.items():
            if name not in originals or originals[name].shape != shape:
                found = list(originals[name].shape) if name in originals else "absent"
                raise MemoryMismatchError(
                    f"this memory belongs to {self.base.name} ({self.base.family}): it has {name} "
                    f"{list(shape)}, the model has {found}; load the base it was made for."
                )

    def weights(self, originals: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tuned weights, float32 or wider, from the original tensors by name. Errors: `MemoryMismatchError`."""
        self.require(originals)
        tuned = {}
        for name, difference in self.differences().items():
            original = originals[name]
            wide = torch.promote_types(torch.promote_types(original.dtype, difference.dtype), torch.float32)
            tuned[name] = original.to(wide) + difference.to(original.device, wide)
        return tuned

    def save(self, path: str | Path, *, dtype: str | None = None, text: bool = False) -> None:
        """Write the memory to `path`, all or nothing; see `files.save`."""
        from fastmem.core import files  # which imports this file

        files.save(self, path, dtype=dtype, text=text)

    @classmethod
    def load(cls, path: str | Path, model: Any = None) -> "Memory":
        """The memory in `path`, refused where it is damaged or does not fit `model`, a `FastMem`; see `files.load`."""
        from fastmem.core import files

        return files.load(path, model)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[nn.Module]:
        """Within the block, `model` itself answers with this memory; on leaving it is as it was, to the bit.

        The parameters are exchanged for other tensors and put back: the original storage is never written to. Not for
        several threads at once on one model; `FastMem.generate` is. Errors: `MemoryMismatchError` for another base,
        `InputError` for a quantized one.
        """
        parameters, modules = dict(model.named_parameters()), dict(model.named_modules())
        own = {name: parameters[name] for name in self.differences() if name in parameters}
        for name in self.differences():
            holder = modules.get(name.rpartition(".")[0])
            if holder is not None and is_quantized(holder):
                raise InputError(
                    f"applied() exchanges float parameters, and this model keeps {name} quantized, in "
                    f"{type(holder).__name__}: answer with FastMem(model).generate(prompt, memory=memory), which uses "
                    "float copies, or load the model unquantized."
                )
        tuned = self.weights({name: p.detach() for name, p in own.items()})
        try:
            for name, parameter in own.items():
                _put(model, name, nn.Parameter(tuned[name].to(parameter.dtype), requires_grad=False))
            yield model
        finally:
            for name, parameter in own.items():
                _put(model, name, parameter)


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


def _number(name: str, value: Any, least: float, greatest: float) -> None:
    good = isinstance(value, int | float) and not isinstance(value, bool)
    if not good or not math.isfinite(value) or not least <= value <= greatest:
        upper = "" if math.isinf(greatest) else f" to {greatest:g}"
        flag = f"--{name.replace('_', '-')}"
        raise InputError(f"recipe {name} ({flag}) is {value!r}: give a number, {least:g}{upper or ' or more'}.")


def _whole(name: str, value: Any, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(f"recipe {name} (--{name}) is {value!r}: give a whole number, {least} or more.")
