"""Smaller memories made of a finished one, with the error stated: fewer bytes per number, or fewer numbers.

`bfloat16` keeps 8 significant bits of every number; `int8` keeps one byte of each and one float32 scale per row of a
matrix (its largest absolute value over 127). Vectors are never quantized: they are few. All are relative to the size
of the difference, so the error of the tuned weights themselves is smaller by the ratio of both.

`truncated` keeps the largest singular values of every matrix: what an adapter format with low-rank factors can hold.
AdamW's differences have nearly full rank, so this loses much where a memory that was low-rank from the start loses
nothing (docs/memories.md has the figures).
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from fastmem.core import lora
from fastmem.core.memory import Memory

STORED_AS = ("float32", "bfloat16", "int8")
SCALE = ".int8_scale"


def rounded(memory: Memory, dtype: str) -> tuple[Memory, float]:
    """(what is left of the memory, |change| / |difference| over all tuned weights)."""
    if dtype == "int8":
        tensors = unquantized(quantized(memory.tensors))
    else:
        tensors = {name: t.to(getattr(torch, dtype)) for name, t in memory.tensors.items()}
    kept = replace(memory, tensors=tensors)
    return kept, relative_error(memory.differences(), kept.differences())


def truncated(memory: Memory, rank: int) -> tuple[Memory, float]:
    """(the memory as low-rank factors, best in the least squares for every matrix; the share of |difference|^2 kept).

    Differences of biases are left out. A memory that is low-rank already stays as it is.
    """
    if memory.recipe.parametrization == "lora":
        return memory, 1.0
    factors = {}
    for name, difference in memory.tensors.items():
        if not lora.is_matrix(name, difference):
            continue
        u, s, v = torch.linalg.svd(difference.float(), full_matrices=False)
        root = s[..., :rank].sqrt()
        factors[f"{name}.lora_A"] = (root[..., :, None] * v[..., :rank, :]).contiguous()
        factors[f"{name}.lora_B"] = (u[..., :rank] * root[..., None, :]).contiguous()
    kept = sum(float(d.double().square().sum()) for d in lora.differences(factors, 1.0).values())
    whole = sum(float(d.double().square().sum()) for d in memory.tensors.values())
    recipe = replace(memory.recipe, parametrization="lora", rank=rank, lora_alpha=float(rank))
    energy = kept / whole if whole else 1.0
    details = dict(memory.details) | {"truncated": {"rank": rank, "retained_energy": energy}}
    return replace(memory, tensors=factors, recipe=recipe, details=details), energy


def relative_error(exact: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> float:
    """|kept - exact| / |exact|, Euclidean over all tensors together; 0 where both are zero."""
    change = sum(float((kept[name].double() - exact[name].double()).square().sum()) for name in exact)
    whole = sum(float(t.double().square().sum()) for t in exact.values())
    return (change / whole) ** 0.5 if whole else 0.0


def quantized(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every matrix as int8 of its shape and, under its name and `SCALE`, float32 scales [..., 1]."""
    found = {}
    for name, tensor in tensors.items():
        if tensor.ndim < 2:
            found[name] = tensor
            continue
        scale = tensor.abs().amax(-1, keepdim=True).float() / 127
        found[name] = (tensor / scale.clamp_min(torch.finfo(torch.float32).tiny)).round().to(torch.int8)
        found[name + SCALE] = scale
    return found


def unquantized(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`quantized`, backwards; other tensors stay as they are. Errors: `ValueError` for int8 without fitting scales."""
    found = {}
    for name, tensor in tensors.items():
        if name.endswith(SCALE) and name.removesuffix(SCALE) in tensors:
            continue
        if tensor.dtype == torch.int8:
            scale = tensors.get(name + SCALE)
            if scale is None or scale.shape != (*tensor.shape[:-1], 1) or not scale.is_floating_point():
                raise ValueError(f"{name[:80]}: no scales that fit")
            tensor = tensor.float() * scale
        found[name] = tensor
    return found
