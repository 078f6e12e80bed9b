"""Fewer bytes per number of a memory, with the error stated.

`bfloat16` keeps 8 significant bits of every number; `int8` keeps one byte of each and one float32 scale per row of a
matrix (its largest absolute value over 127). Vectors are never quantized: they are few. All are relative to the size
of the difference, so the error of the tuned weights themselves is smaller by the ratio of both.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

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
