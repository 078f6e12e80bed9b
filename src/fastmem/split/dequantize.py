"""A float copy of a quantized feed-forward network.

A quantized model stays quantized, but the FFN that is tuned needs float weights. Whatever format a linear uses (int8
with scales, packed 4 bits, a codebook), passing the identity matrix through it yields its weight, rounded once to the
type of the hidden states. So no format needs code of its own.
"""

import torch
from torch import Tensor, nn

from fastmem.split.structure import weight_sharing_copy


def is_quantized(module: nn.Module) -> bool:
    """Whether any of its matrices, parameter or buffer, is stored as integers."""
    return any(_is_integer_matrix(tensor) for tensor in (*module.parameters(), *module.buffers()))


def dequantized(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The module itself if its matrices are floats; otherwise a copy with float linears."""
    if not is_quantized(module):
        return module
    linears = {
        id(part): _linear(part, dtype)
        for part in module.modules()
        if not list(part.children()) and is_quantized(part) and hasattr(part, "in_features")
    }
    return weight_sharing_copy(module, linears)


@torch.no_grad()
def _linear(part: nn.Module, dtype: torch.dtype) -> nn.Linear:
    device = next(t for t in (*part.parameters(), *part.buffers()) if _is_integer_matrix(t)).device
    width = int(part.in_features)  # type: ignore[arg-type]
    bias = part(torch.zeros(1, width, dtype=dtype, device=device))[0]
    weight = (part(torch.eye(width, dtype=dtype, device=device)) - bias).T.contiguous()
    linear = nn.Linear(width, len(weight), bias=bool(bias.any()), dtype=dtype, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if linear.bias is not None:
        linear.bias = nn.Parameter(bias, requires_grad=False)
    return linear


def _is_integer_matrix(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() and tensor.ndim >= 2
