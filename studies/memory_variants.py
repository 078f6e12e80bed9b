"""The ways to memorize that `rate_without_labels.py` compares, each at many rates for one trunk pass.

    adamw N       N steps of AdamW, the product's own loop; N is 1, 3 or 10.
    ridge         one ridge step on the last matrix of the FFN, in closed form, as long as a KL on the document allows.
    ridge+adamw   the ridge step, then two steps of AdamW at the given rate.

The ridge step is the least-squares change that moves the matrix's outputs against the gradient. With inputs X [N, F],
gradients at the outputs G [N, D] and K = X X^T it is  dW = -c G^T (K + damping I)^-1 X,  of rank N at most.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fastmem import FastMem, Memory, Recipe
from fastmem.learn.budget import CHUNK_POSITIONS
from fastmem.learn.memorize import drain
from fastmem.learn.objective import Chunk
from fastmem.learn.optimize import Optimization, Reading
from fastmem.split.hooks import FFN
from fastmem.torch_modes import in_own_modes

ADAMW_STEPS = (1, 3, 10)
DAMPING = 0.1  # of the mean of K's diagonal


@dataclass(frozen=True)
class Variant:
    """How a memory was made: `name` as above, at `rate`, which is the KL in nats per token for the ridge step."""

    name: str
    rate: float


def memories(
    llm: FastMem, reading: Reading, wanted: Mapping[str, tuple[float, ...]], start_kl: float
) -> Iterator[tuple[Variant, Memory]]:
    """A memory for every wanted variant and rate. start_kl: of the ridge step that `ridge+adamw` starts with."""
    steps = [int(name.removeprefix("adamw ")) for name in wanted if name.startswith("adamw ")]
    for rate in sorted({rate for name in wanted if name.startswith("adamw ") for rate in wanted[name]}):
        at = tuple(n for n in steps if rate in wanted[f"adamw {n}"])
        recipe = replace(llm.recipe, learning_rate=rate, steps=max(at))
        made = drain(llm.memorizing(reading, recipe, at=at, watch=False))
        yield from ((Variant(f"adamw {n}", rate), memory) for n, memory in zip(at, made, strict=True))
    if wanted.keys() & {"ridge", "ridge+adamw"}:
        step = ridge_step(llm, reading)
        for kl in wanted.get("ridge", ()):
            yield Variant("ridge", kl), _memory(llm, as_long_as(llm, reading, step, kl))
        start = as_long_as(llm, reading, step, start_kl)
        for rate in wanted.get("ridge+adamw", ()):
            recipe = replace(llm.recipe, learning_rate=rate, steps=2)
            yield Variant("ridge+adamw", rate), _memory(llm, started(llm, reading, recipe, start))


def as_long_as(llm: FastMem, reading: Reading, step: Mapping[str, Tensor], kl: float) -> dict[str, Tensor]:
    """The step, scaled so that it costs about this KL on the document (within a tenth, or after eight tries)."""
    scale = 1.0
    for _ in range(8):
        scaled = {name: scale * tensor for name, tensor in step.items()}
        found = effect(llm, reading, _memory(llm, scaled)).kl
        if abs(found - kl) < 0.1 * kl:
            break
        # KL grows about with the square of a short step, and slower later on.
        scale *= min(max((kl / max(found, 1e-12)) ** 0.5, 0.1), 1000)
    return scaled


def _memory(llm: FastMem, tensors: Mapping[str, Tensor]) -> Memory:
    return Memory(dict(tensors), replace(llm.recipe, steps=1), llm.base())


@in_own_modes
def ridge_step(llm: FastMem, reading: Reading) -> dict[str, Tensor]:
    """The step at c = 1, by the name of the last matrix of the FFN. The gradient is that of the cross entropy."""
    parameters = llm.split_model.parameters((-1,))
    ffn = llm.split_model.ffn({name: w.clone() for name, w in parameters.items()})
    called: list[tuple[nn.Module, Tensor, Tensor]] = []

    def record(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
        added = torch.zeros_like(output, requires_grad=True)
        called.append((module, arguments[0].detach(), added))
        return output + added

    for modules in ffn.values():
        for module in modules.modules():  # type: ignore[attr-defined]
            if getattr(module, "weight", None) is not None and module.weight.ndim == 2:
                module.register_forward_hook(record)
    with torch.enable_grad():
        hidden = llm.split_model.tail(reading.activations, ffn)
        chunk = Chunk(llm.split_model.head, reading.targets, hidden.detach())
        gradient, _ = chunk.gradient(hidden.detach(), 0.0)
        module, inputs, added = called[-1]
        (at_outputs,) = torch.autograd.grad(hidden, added, gradient / len(reading.targets))
    rows, gradients = inputs.flatten(0, -2).float(), at_outputs.flatten(0, -2).float()
    products = rows @ rows.T
    damped = products + DAMPING * products.diagonal().mean() * torch.eye(len(rows))
    step = -gradients.T @ torch.linalg.solve(damped, rows)  # [D, F]
    (name,) = [n for n, w in parameters.items() if w.shape == step.shape and n.endswith(_suffix(ffn, module))]
    return {name: step * len(rows)}


def _suffix(ffn: FFN, wanted: nn.Module) -> str:
    """The end of the full name of a module's weight."""
    for name, modules in ffn.items():
        for inner, module in modules.named_modules():  # type: ignore[attr-defined]
            if module is wanted:
                return f"{name}.{inner}.weight"
    raise LookupError("the module is not part of the FFN")


@in_own_modes
def started(llm: FastMem, reading: Reading, recipe: Recipe, start: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The differences after steps of AdamW that begin at `start` instead of the untouched weights."""
    run = Optimization(llm.split_model, reading, recipe)
    for name, difference in start.items():
        run.masters[name].add_(difference)
    for _ in range(recipe.steps):
        run.compute_gradients()
        run.update()
    return run.memory_tensors(last=True)


@dataclass(frozen=True)
class Effect:
    """What a memory does to its document: cross entropy and KL in nats per token, and the relative change (L2) of the
    hidden states that enter the head."""

    cross_entropy: float
    kl: float
    change: float


@in_own_modes
@torch.no_grad()
def effect(llm: FastMem, reading: Reading, memory: Memory | None) -> Effect:
    """The effect of a memory on the document of `reading`; of None, on the untouched model's."""
    untouched = llm.split_model.tail(reading.activations)
    now = untouched if memory is None else llm.split_model.tail(reading.activations, llm.ffn(memory))
    losses = [
        Chunk(llm.split_model.head, *each).losses(part)
        for *each, part in zip(*(t.split(CHUNK_POSITIONS) for t in (reading.targets, untouched, now)), strict=True)
    ]
    cross_entropy, kl = torch.cat(losses).mean(0).tolist()
    return Effect(cross_entropy, kl, ((now - untouched).norm() / untouched.norm()).item())
