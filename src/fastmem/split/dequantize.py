"""A float copy of a quantized feed-forward network, found by what its parts do.

A quantized model stays as it is, except that what is tuned has to be a float: the FFN of the last layer. Whatever a
linear keeps (int8 with scales, packed 4 bits, codes of a table), the identity matrix sent through it comes out as its
weight, rounded once to the type of the states.
"""

import torch
from torch import Tensor, nn

from fastmem.core.anatomy import shared_copy


def is_quantized(module: nn.Module) -> bool:
    """Whether any of its matrices, parameter or buffer, is stored in something else than floats."""
    return any(_is_code(tensor) for tensor in (*module.parameters(), *module.buffers()))


def floating(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The module itself if its matrices are floats; else a copy whose quantized linears are float ones."""
    if not is_quantized(module):
        return module
    linears = {
        id(part): _linear(part, dtype)
        for part in module.modules()
        if not list(part.children()) and is_quantized(part) and hasattr(part, "in_features")
    }
    return shared_copy(module, linears)


@torch.no_grad()
def _linear(part: nn.Module, dtype: torch.dtype) -> nn.Linear:
    device = next(t for t in (*part.parameters(), *part.buffers()) if _is_code(t)).device
    width = int(part.in_features)  # type: ignore[arg-type]
    bias = part(torch.zeros(1, width, dtype=dtype, device=device))[0]
    weight = (part(torch.eye(width, dtype=dtype, device=device)) - bias).T.contiguous()
    linear = nn.Linear(width, len(weight), bias=bool(bias.any()), dtype=dtype, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if linear.bias is not None:
        linear.bias = nn.Parameter(bias, requires_grad=False)
    return linear


def _is_code(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() and tensor.ndim >= 2
