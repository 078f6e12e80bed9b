"""Smaller forms of a finished memory, with the error they cause: fewer bytes per number, or fewer numbers.

`bfloat16` keeps 8 significant bits of every number. `int8` keeps one byte of each and one float32 scale per row of a
matrix (its largest absolute value / 127); vectors stay as they are. Errors are relative to the size of the difference
w - w_0, so the relative error of the tuned weights is smaller.

`truncated` keeps the largest singular values of every matrix, which is what an adapter format with low-rank factors
can hold. The differences that AdamW makes have nearly full rank, so truncation loses much; a memory that was low-rank
from the start loses nothing (figures: docs/results/small-memories.md).

All functions map tensors by name to tensors by name.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from fastmem.memory import low_rank

STORED_AS = ("float32", "bfloat16", "int8")
SCALE = ".int8_scale"


def rounded(tensors: Mapping[str, Tensor], dtype: str) -> dict[str, Tensor]:
    """The tensors after storing them as `dtype`, one of `STORED_AS`, and loading them again."""
    if dtype == "int8":
        return unquantized(quantized(tensors))
    return {name: t.to(getattr(torch, dtype)) for name, t in tensors.items()}


def truncated(differences: Mapping[str, Tensor], rank: int) -> tuple[dict[str, Tensor], float]:
    """(low-rank factors, optimal in least squares for every matrix; the share of |difference|^2 they keep).

    Differences of biases are dropped.
    """
    factors = {}
    for name, difference in differences.items():
        if not low_rank.is_matrix(name, difference):
            continue
        u, s, v = torch.linalg.svd(difference.float(), full_matrices=False)
        root = s[..., :rank].sqrt()
        factors[f"{name}.lora_A"] = (root[..., :, None] * v[..., :rank, :]).contiguous()
        factors[f"{name}.lora_B"] = (u[..., :rank] * root[..., None, :]).contiguous()
    kept = sum(float(d.double().square().sum()) for d in low_rank.differences(factors, 1.0).values())
    whole = sum(float(d.double().square().sum()) for d in differences.values())
    return factors, kept / whole if whole else 1.0


def relative_error(exact: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> float:
    """|kept - exact| / |exact|, Euclidean over all tensors together; 0 if both are zero."""
    change = sum(float((kept[name].double() - exact[name].double()).square().sum()) for name in exact)
    whole = sum(float(t.double().square().sum()) for t in exact.values())
    return (change / whole) ** 0.5 if whole else 0.0


def quantized(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every matrix as int8 and, under its name and `SCALE`, its float32 scales [..., 1]."""
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
    """The inverse of `quantized`; other tensors stay as they are. Errors: `ValueError` for int8 without its scales."""
    found = {}
    for name, tensor in tensors.items():
        if name.endswith(SCALE) and name.removesuffix(SCALE) in tensors:
            continue
        if tensor.dtype == torch.int8:
            scale = tensors.get(name + SCALE)
            if scale is None or scale.shape != (*tensor.shape[:-1], 1) or not scale.is_floating_point():
                raise ValueError(f"{name[:80]}: its scales are missing or do not fit")
            tensor = tensor.float() * scale
        found[name] = tensor
    return found
